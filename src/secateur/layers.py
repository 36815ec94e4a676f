"""Prune one linear, and say how it went."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.data.tokens import digest
from secateur.models.fold import inverse
from secateur.permute import find_order, kept_score
from secateur.recipe import Recipe, Step
from secateur.reconstruct import admm, masked_cg, output_error, refined, sparsegpt
from secateur.scores import SCORES, compute
from secateur.sparsity import NM, Unstructured, retained, select, sparsity_of
from secateur.stats import InputStats

# A linear that sees fewer calibration tokens, such as an expert to which few are routed, is pruned by its weights
# alone.
FEWEST_TOKENS = 32


@dataclass(frozen=True)
class LayerResult:
    """What became of one linear.

    Attributes:
        name: its full name.
        shape: ``(O, I)``.
        sparsity: the share of its weights that are zero now.
        retained: the share of the total score that its kept weights hold.
        unstructured: the share that unstructured sparsity of the same degree would hold.
        relative_error: ‖X(W − W′)ᵀ‖ / ‖XWᵀ‖ in the Frobenius norm, over its calibration inputs X or a sample
            of them; None when there were none.
        score: what it was pruned by: the recipe's score, or ri where it saw too few tokens.
        tokens: the number of calibration tokens that it was pruned by, or None.
        dead_channels: the number of its input channels that were zero at all of them, or None.
        nonzeros_sha256: of where its weights are not zero, as bytes 0 and 1, row by row.
        weight_sha256: of its weights' bytes as stored.
        folds: with ``compare_folds``, the share that other orders would hold, by the name of the fold mode,
            and ``unordered``.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    retained: float
    unstructured: float
    relative_error: float | None
    score: str
    tokens: int | None
    dead_channels: int | None
    nonzeros_sha256: str
    weight_sha256: str
    folds: dict[str, float] = field(default_factory=dict)


def score_of(name: str, weight: Tensor, stats: InputStats | None, recipe: Recipe) -> Tensor:
    """The score of the linear ``name``: the recipe's, or RI where too few tokens were seen for it.

    Raises:
        InputError: unless weight and inputs are finite.
    """
    return compute(recipe.score if sees_enough(stats) else "ri", weight, stats, recipe.alpha, name)


def sees_enough(stats: InputStats | None) -> bool:
    """Whether a linear of these inputs can be pruned by them. A recipe that needs none has None."""
    return stats is None or stats.tokens >= FEWEST_TOKENS


def search_order(score: Tensor, recipe: Recipe) -> Tensor:
    """An order of the columns of ``score`` (R, I) by the recipe's method, int64, on the score's device."""
    assert isinstance(recipe.target, NM)
    return find_order(score, recipe.target, recipe.permute, communities=recipe.communities, seed=recipe.seed)


class Pruning:
    """One linear on its way through a recipe: a mask, and weights that may change with further steps.

    In fold mode ``none`` it gets an order of its own: mask and weights are found in that order and mapped
    back, so that the weight obeys the pattern only in the other.

    Attributes:
        name: its full name.
        weight: as it is to be stored, ``(O, I)``: rounded to its dtype and exactly zero where it is masked.
    """

    def __init__(
        self,
        name: str,
        weight: Tensor,
        stats: InputStats | None,
        recipe: Recipe,
        device: torch.device,
        orders: dict[str, Tensor],
    ) -> None:
        """Choose the mask of the dense ``weight`` as stored; an order of its own is added to ``orders``."""
        self.name, self._dtype = name, weight.dtype
        self._recipe, self._informed = recipe, stats is not None and sees_enough(stats)
        dense = weight.to(device, torch.float32, copy=True)  # what it was copied from will be written to
        score = score_of(name, dense, stats, recipe)
        self._order = None
        if recipe.orders_channels and recipe.fold == "none":
            self._order = search_order(score, recipe)
            orders[name] = self._order.cpu()
            score, dense = score[:, self._order], dense[:, self._order]
            stats = stats.select(self._order) if stats else None
        self._dense, self._score, self._stats = dense, score, stats
        self.accept(*self._own_mask())

    def _own_mask(self) -> tuple[Tensor, Tensor]:
        if self._recipe.sweeps and self._stats and self._informed:  # SparseGPT as published chooses its mask on the way
            pruned = sparsegpt(self._dense, self._stats.damped, pattern=self._recipe.target)
            return pruned != 0, pruned
        mask = select(self._score, self._recipe.target)
        return mask, self._dense * mask

    def accept(self, mask: Tensor, changed: Tensor) -> None:
        """Make mask and float32 weights of a step, both ``(O, I)`` in this linear's own order, the current ones."""
        self._mask, self._changed = mask, changed
        stored = self.stored
        self.weight = stored if self._order is None else stored[:, inverse(self._order)]

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
        gram, pattern, method = self._stats.shrunk, self._recipe.target, self._recipe.reconstruct
        mask, weight = self.state
        if name == "refine":
            self.accept(*refined(self._dense, mask, gram, pattern, weight, refit=method != "none"))
        elif method == "sparsegpt":
            self.accept(mask, sparsegpt(self._dense, self._stats.damped, mask=mask))
        elif method == "admm":
            self.accept(*admm(self._dense, mask, gram, pattern))
        else:
            self.accept(mask, masked_cg(self._dense, mask, gram, weight))

    def result(self) -> LayerResult:
        """What became of it."""
        pattern, stats = self._recipe.target, self._stats
        free = Unstructured(pattern.sparsity, SCORES[self._recipe.score].scope)
        kept = retained(self._score, self._mask)
        return LayerResult(
            name=self.name,
            shape=(self.weight.shape[0], self.weight.shape[1]),
            sparsity=sparsity_of(self.weight),
            retained=kept,
            unstructured=retained(self._score, select(self._score, free)) if isinstance(pattern, NM) else kept,
            relative_error=relative_error(self._dense, self.stored.float(), stats) if stats and stats.tokens else None,
            score=self._recipe.score if sees_enough(stats) else "ri",
            tokens=stats.tokens if stats else None,
            dead_channels=stats.dead if stats else None,
            nonzeros_sha256=nonzeros_digest(self.weight),
            weight_sha256=bytes_digest(self.weight),
        )


def relative_error(dense: Tensor, pruned: Tensor, stats: InputStats) -> float:
    """See :class:`LayerResult`: over all inputs where their Gram matrix is known, else over the sample."""
    if stats.gram is not None:
        return output_error(pruned, dense, stats.gram)
    inputs = stats.sample.float()
    size, lost = (inputs @ dense.T).norm(), (inputs @ (dense - pruned).T).norm()
    return (lost / size).item() if size > 0 else 0.0


def nonzeros_digest(weight: Tensor) -> str:
    """SHA-256 of where ``weight`` is not zero."""
    return digest((weight != 0).cpu())


def bytes_digest(weight: Tensor) -> str:
    """SHA-256 of the bytes of ``weight`` as it is stored."""
    return digest(weight.cpu().contiguous().view(torch.uint8))


def share_kept(score: Tensor, pattern: NM) -> float:
    """The share of the total of ``score`` that N:M retains with its columns as they are."""
    total = score.sum(dtype=torch.float64).item()
    return kept_score(score, pattern) / total if total > 0 else 1.0
