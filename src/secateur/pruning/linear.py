"""Prune one linear: score, order of its own, mask, and steps that change mask and weights."""

from contextlib import nullcontext

import torch
from torch import Tensor

from secateur.devices import bfloat16_products
from secateur.masks import masked, retained, select, sparsity_of
from secateur.memory import Kept, Room
from secateur.options import Step
from secateur.patterns import NM, Pattern
from secateur.permute.orders import find_order, inverse
from secateur.pruning.result import LayerResult
from secateur.recipe import Recipe
from secateur.reconstruct.methods import RECONSTRUCTIONS, Pruned
from secateur.reconstruct.refine import refined
from secateur.reconstruct.sparsegpt import sweep
from secateur.scores import SCORES, compute
from secateur.stats.gram import output_error
from secateur.stats.inputs import InputStats

# A linear that sees fewer calibration tokens, such as an expert to which few are routed, is pruned by its weights
# alone.
FEWEST_TOKENS = 32
# An output error that is rounding, as a share of the output: float32 has seven digits.
NEGLIGIBLE = 1e-6


def score_of(name: str, weight: Tensor, stats: InputStats | None, recipe: Recipe) -> Tensor:
    """The score of the linear ``name``: the recipe's, or RI where that reads inputs and too few were seen for it.

    Raises:
        InputError: unless weight and inputs are finite.
    """
    return compute(score_name(stats, recipe), weight, stats, recipe.alpha, name)


def score_name(stats: InputStats | None, recipe: Recipe) -> str:
    """The score of a linear of these inputs: see :func:`score_of`."""
    return recipe.score if sees_enough(stats) or not SCORES[recipe.score].needs_inputs else "ri"


def sees_enough(stats: InputStats | None) -> bool:
    """Whether a linear of these inputs can be pruned by them. A recipe that needs none has None."""
    return stats is None or stats.tokens >= FEWEST_TOKENS


def search_order(score: Tensor, pattern: NM, recipe: Recipe) -> Tensor:
    """An order of the columns of ``score`` (R, I) by the recipe's search, int64, on the score's device."""
    return find_order(score, pattern, recipe.permute, communities=recipe.communities, seed=recipe.seed)


class LinearPruning:
    """One linear on its way through a recipe: a mask, and weights that may change with further steps.

    In fold mode ``none`` it gets an order of its own: mask and weights are found in that order and mapped
    back, so that the weight obeys the pattern only in the other.

    Between two steps it holds its mask, and in ``room`` the weights that a step has changed: what is computed of the
    dense weight is computed when it is needed. Many experts wait for each other so.

    Attributes:
        name: its full name.
        order: its own order, int64 ``(I,)``, or None.
        mask: the current one, bool ``(O, I)``, in its own order.
    """

    def __init__(
        self,
        name: str,
        weight: Tensor | Kept,
        pattern: Pattern,
        stats: InputStats | None,
        recipe: Recipe,
        device: torch.device,
        room: Room | None = None,
    ) -> None:
        """Choose the mask of the dense ``weight`` as stored, which must not change as long as this is in use."""
        self.name, self._pattern = name, pattern
        self._kept = weight.to(device) if isinstance(weight, Tensor) else weight
        self._recipe, self._informed = recipe, stats is not None and sees_enough(stats)
        self._room, self._inputs = room or Room(), stats
        self.order: Tensor | None = None
        score = self._score()
        if isinstance(pattern, NM) and recipe.permute != "none" and recipe.fold == "none":
            self.order = search_order(score, pattern, recipe)
            score, stats = score[:, self.order], stats.select(self.order) if stats else None
        self._stats = stats
        self._refused: list[str] = []
        self.mask = select(score, pattern)
        self._changed: Kept | None = None  # by a step
        self._first, self._retained = self.mask, retained(score, self.mask)
        if recipe.sweeps and stats and self._informed:  # SparseGPT as published chooses its mask on the way
            pruned = sweep(self._dense(), stats.damped, pattern=pattern)
            self._take("reconstruct", pruned != 0, pruned)

    @property
    def _weight(self) -> Tensor:
        """The dense weight as stored, ``(O, I)``."""
        return self._kept.get() if isinstance(self._kept, Kept) else self._kept

    def _dense(self) -> Tensor:
        """The dense weight, ``(O, I)`` float32, in this linear's own order."""
        return self._ordered(self._weight.float())

    def _score(self) -> Tensor:
        """The score of the dense weight, ``(O, I)`` float32, in this linear's own order."""
        return self._ordered(score_of(self.name, self._weight.float(), self._inputs, self._recipe))

    def _ordered(self, columns: Tensor) -> Tensor:
        return columns if self.order is None else columns[:, self.order]

    def accept(self, mask: Tensor, changed: Tensor) -> None:
        """Make mask and float32 weights of a step, both ``(O, I)`` in this linear's own order, the current ones."""
        self.mask, self._changed = mask, self._room.keep(changed)

    def _take(self, step: str, mask: Tensor, changed: Tensor) -> None:
        """Accept what ``step`` came to, unless the dtype of the weight cannot hold it: float16 ends at 65,504."""
        if changed.to(self._weight.dtype).isfinite().all():
            self.accept(mask, changed)
        else:
            self._refused.append(step)

    @property
    def loses(self) -> bool:
        """Whether outputs for the calibration inputs are not what they were, beyond rounding: a step might help."""
        if self._stats is None or not self._informed:
            return True
        return relative_error(self._dense(), self.changed, self._stats) > NEGLIGIBLE

    @property
    def changed(self) -> Tensor:
        """The current weights, ``(O, I)`` float32, in this linear's own order, before they are rounded."""
        return self._dense() * self.mask if self._changed is None else self._changed.get()

    @property
    def stored(self) -> Tensor:
        """The current weights in this linear's own order, rounded as stored: what masking leaves is exactly zero."""
        dense = self._weight
        whole = self._ordered(dense) if self._changed is None else self._changed.get()
        return masked(whole.to(dense.dtype), self.mask)

    @property
    def weight(self) -> Tensor:
        """As it is to be stored, ``(O, I)``: rounded to its dtype and exactly zero where it is masked."""
        return self.stored if self.order is None else self.stored[:, inverse(self.order)]

    @property
    def state(self) -> tuple[Tensor, Kept | None]:
        """Mask and weights as they are now, to come back to."""
        return self.mask, self._changed

    @state.setter
    def state(self, state: tuple[Tensor, Kept | None]) -> None:
        self.mask, self._changed = state

    def step(self, name: Step) -> None:
        """Take a step: ``reconstruct``, or ``refine`` the mask (and reconstruct again)."""
        if self._stats is None or not self._informed:
            return
        dense, changed, method = self._dense(), self.changed, self._recipe.reconstruct
        if name == "refine":
            gram, refit = self._stats.shrunk, method != "none"
            self._take(name, *refined(dense, self.mask, gram, self._pattern, changed, refit=refit))
        else:
            pruned = Pruned(dense, self.mask, changed, self._stats, self._pattern)
            self._take(name, *RECONSTRUCTIONS[method](pruned))

    def forget(self) -> None:
        """Free what has been computed from the Gram matrix; it is computed anew when it is needed."""
        for stats in (self._inputs, self._stats):
            if stats is not None:
                stats.forget()

    def result(self) -> LayerResult:
        """What it is now."""
        stats, stored = self._stats, self.stored
        return LayerResult(
            name=self.name,
            shape=(stored.shape[0], stored.shape[1]),
            sparsity=sparsity_of(stored),
            retained=self._retained if self.mask is self._first else retained(self._score(), self.mask),
            relative_error=relative_error(self._dense(), stored.float(), stats) if stats and stats.tokens else None,
            score=score_name(stats, self._recipe),
            tokens=stats.tokens if stats else None,
            dead_channels=stats.dead if stats else None,
            refused=self._refused,
        )


def relative_error(dense: Tensor, pruned: Tensor, stats: InputStats) -> float:
    """See :class:`LayerResult`: over all inputs where their Gram matrix is known, else over the sample."""
    if (gram := stats.gram) is not None:
        return output_error(pruned, dense, gram)
    inputs = stats.sample
    # bfloat16 inputs tell the error to two or three digits anyway.
    with bfloat16_products() if inputs.dtype == torch.bfloat16 else nullcontext():
        size, lost = ((inputs.float() @ weight.T).norm() for weight in (dense, dense - pruned))
    return (lost / size).item() if size > 0 else 0.0
