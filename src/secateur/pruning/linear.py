"""Prune one linear: score, order of its own, mask, and steps that change mask and weights."""

import torch
from torch import Tensor

from secateur.masks import retained, select, sparsity_of
from secateur.patterns import NM, Pattern
from secateur.permute.orders import find_order, inverse
from secateur.pruning.result import LayerResult
from secateur.recipe import Recipe, Step
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

    Attributes:
        name: its full name.
        weight: as it is to be stored, ``(O, I)``: rounded to its dtype and exactly zero where it is masked.
        order: its own order, int64 ``(I,)``, or None.
    """

    def __init__(
        self,
        name: str,
        weight: Tensor,
        pattern: Pattern,
        stats: InputStats | None,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        """Choose the mask of the dense ``weight`` as stored."""
        self.name, self._dtype, self._pattern = name, weight.dtype, pattern
        self._recipe, self._informed = recipe, stats is not None and sees_enough(stats)
        # A copy, since what it comes from will be written to; and across as few bytes as are stored.
        dense = weight.to(device).to(torch.float32, copy=True)
        score = score_of(name, dense, stats, recipe)
        self.order: Tensor | None = None
        if isinstance(pattern, NM) and recipe.permute != "none" and recipe.fold == "none":
            self.order = search_order(score, pattern, recipe)
            score, dense = score[:, self.order], dense[:, self.order]
            stats = stats.select(self.order) if stats else None
        self._dense, self._score, self._stats = dense, score, stats
        self._refused: list[str] = []
        mask = select(score, pattern)
        self.accept(mask, dense * mask)
        if recipe.sweeps and stats and self._informed:  # SparseGPT as published chooses its mask on the way
            pruned = sweep(dense, stats.damped, pattern=pattern)
            self._take("reconstruct", pruned != 0, pruned)

    def accept(self, mask: Tensor, changed: Tensor) -> None:
        """Make mask and float32 weights of a step, both ``(O, I)`` in this linear's own order, the current ones."""
        self._mask, self._changed = mask, changed
        stored = self.stored
        self.weight = stored if self.order is None else stored[:, inverse(self.order)]

    def _take(self, step: str, mask: Tensor, changed: Tensor) -> None:
        """Accept what ``step`` came to, unless the dtype of the weight cannot hold it: float16 ends at 65,504."""
        if changed.to(self._dtype).isfinite().all():
            self.accept(mask, changed)
        else:
            self._refused.append(step)

    @property
    def loses(self) -> bool:
        """Whether outputs for the calibration inputs are not what they were, beyond rounding: a step might help."""
        if self._stats is None or not self._informed:
            return True
        return relative_error(self._dense, self._changed, self._stats) > NEGLIGIBLE

    @property
    def stored(self) -> Tensor:
        """The current weights in this linear's own order, rounded as stored: what masking leaves is exactly zero."""
        return self._changed.to(self._dtype).where(self._mask, 0)  # and never -0, which formats that go by bits keep

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """The current mask and float32 weights, to come back to with :meth:`accept`."""
        return self._mask, self._changed

    def step(self, name: Step) -> None:
        """Take a step: ``reconstruct``, or ``refine`` the mask (and reconstruct again)."""
        if self._stats is None or not self._informed:
            return
        method = self._recipe.reconstruct
        if name == "refine":
            gram, refit = self._stats.shrunk, method != "none"
            self._take(name, *refined(self._dense, self._mask, gram, self._pattern, self._changed, refit=refit))
        else:
            pruned = Pruned(self._dense, self._mask, self._changed, self._stats, self._pattern)
            self._take(name, *RECONSTRUCTIONS[method](pruned))

    def result(self) -> LayerResult:
        """What it is now."""
        stats = self._stats
        return LayerResult(
            name=self.name,
            shape=(self.weight.shape[0], self.weight.shape[1]),
            sparsity=sparsity_of(self.weight),
            retained=retained(self._score, self._mask),
            relative_error=relative_error(self._dense, self.stored.float(), stats) if stats and stats.tokens else None,
            score=score_name(stats, self._recipe),
            tokens=stats.tokens if stats else None,
            dead_channels=stats.dead if stats else None,
            refused=self._refused,
        )


def relative_error(dense: Tensor, pruned: Tensor, stats: InputStats) -> float:
    """See :class:`LayerResult`: over all inputs where their Gram matrix is known, else over the sample."""
    if stats.gram is not None:
        return output_error(pruned, dense, stats.gram)
    inputs = stats.sample.float()
    size, lost = (inputs @ dense.T).norm(), (inputs @ (dense - pruned).T).norm()
    return (lost / size).item() if size > 0 else 0.0
