"""Prune one linear, and say how it went."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.data.tokens import digest
from secateur.permute import find_order, kept_score
from secateur.recipe import Recipe
from secateur.scores import SCORES, compute
from secateur.sparsity import NM, Unstructured, retained, select, sparsity_of
from secateur.stats import InputStats


@dataclass(frozen=True)
class LayerResult:
    """What became of one linear.

    Attributes:
        name: its full name.
        shape: ``(O, I)``.
        sparsity: the share of its weights that are zero now.
        retained: the share of the total score that its kept weights hold.
        unstructured: the share that unstructured sparsity of the same degree would hold.
        relative_error: ‖X(W − W′)ᵀ‖ / ‖XWᵀ‖ in the Frobenius norm, over a sample X of its calibration
            inputs; None when it was scored without inputs.
        nonzeros_sha256: of where its weights are not zero, as bytes 0 and 1, row by row.
        folds: with ``compare_folds``, the share that other orders would hold, by the name of the fold mode,
            and ``unordered``.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    retained: float
    unstructured: float
    relative_error: float | None
    nonzeros_sha256: str
    folds: dict[str, float] = field(default_factory=dict)


def score_of(name: str, weight: Tensor, stats: InputStats | None, recipe: Recipe) -> Tensor:
    """The score of the linear ``name``; raises :class:`InputError` unless weight and inputs are finite."""
    return compute(recipe.score, weight, stats, recipe.alpha, name)


def prune_linear(
    name: str, weight: Tensor, stats: InputStats | None, recipe: Recipe, device: torch.device, orders: dict[str, Tensor]
) -> LayerResult:
    """Prune ``weight`` (O, I) in place, as stored.

    In fold mode ``none`` it gets an order of its own, which is added to ``orders``, and the mask is mapped
    back: the weight stays in its order, and the mask obeys the pattern only in the other.
    """
    dense, pattern = weight.to(device), recipe.target
    score = score_of(name, dense, stats, recipe)
    if recipe.orders_channels and recipe.fold == "none" and isinstance(pattern, NM):
        order = find_order(score, pattern, recipe.permute, communities=recipe.communities, seed=recipe.seed)
        orders[name] = order.cpu()
        mask = torch.empty_like(score, dtype=torch.bool)
        mask[:, order] = select(score[:, order], pattern)
    else:
        mask = select(score, pattern)
    error = relative_error(dense, mask, stats) if stats else None
    weight.masked_fill_(~mask.to(weight.device), 0)
    free = Unstructured(pattern.sparsity, SCORES[recipe.score].scope)
    return LayerResult(
        name=name,
        shape=(weight.shape[0], weight.shape[1]),
        sparsity=sparsity_of(weight),
        retained=retained(score, mask),
        unstructured=retained(score, select(score, free)) if isinstance(pattern, NM) else retained(score, mask),
        relative_error=error,
        nonzeros_sha256=nonzeros_digest(weight),
    )


def relative_error(weight: Tensor, mask: Tensor, stats: InputStats) -> float:
    """See :class:`LayerResult`; 0 for a linear whose outputs are all zero."""
    inputs, weight = stats.sample.float(), weight.float()
    size = (inputs @ weight.T).norm()
    lost = (inputs @ weight.masked_fill(mask, 0).T).norm()
    return (lost / size).item() if size > 0 else 0.0


def nonzeros_digest(weight: Tensor) -> str:
    """SHA-256 of where ``weight`` is not zero."""
    return digest((weight != 0).cpu())


def share_kept(score: Tensor, pattern: NM) -> float:
    """The share of the total of ``score`` that N:M retains with its columns as they are."""
    total = score.sum(dtype=torch.float64).item()
    return kept_score(score, pattern) / total if total > 0 else 1.0
