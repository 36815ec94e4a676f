"""Prune one linear, and say how it went."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.data.tokens import digest
from secateur.models.fold import inverse
from secateur.permute import find_order, kept_score
from secateur.recipe import Recipe
from secateur.reconstruct import admm, damped, masked_cg, output_error, sparsegpt
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
        relative_error: ‖X(W − W′)ᵀ‖ / ‖XWᵀ‖ in the Frobenius norm, over its calibration inputs X or a sample
            of them; None when there were none.
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
    nonzeros_sha256: str
    weight_sha256: str
    folds: dict[str, float] = field(default_factory=dict)


def score_of(name: str, weight: Tensor, stats: InputStats | None, recipe: Recipe) -> Tensor:
    """The score of the linear ``name``; raises :class:`InputError` unless weight and inputs are finite."""
    return compute(recipe.score, weight, stats, recipe.alpha, name)


def search_order(score: Tensor, recipe: Recipe) -> Tensor:
    """An order of the columns of ``score`` (R, I) by the recipe's method, int64, on the score's device."""
    assert isinstance(recipe.target, NM)
    return find_order(score, recipe.target, recipe.permute, communities=recipe.communities, seed=recipe.seed)


def prune_linear(
    name: str, weight: Tensor, stats: InputStats | None, recipe: Recipe, device: torch.device, orders: dict[str, Tensor]
) -> LayerResult:
    """Prune ``weight`` (O, I) in place, as stored, and mend what is left if the recipe says so.

    In fold mode ``none`` it gets an order of its own, which is added to ``orders``: mask and weights are found
    in that order and mapped back, so that the weight obeys the pattern only in the other.
    """
    dense, pattern = weight.to(device).float(), recipe.target
    score = score_of(name, dense, stats, recipe)
    order = None
    if recipe.orders_channels and recipe.fold == "none":
        order = search_order(score, recipe)
        orders[name] = order.cpu()
        score, dense, stats = score[:, order], dense[:, order], stats.select(order) if stats else None
    mask = select(score, pattern)
    mask, pruned = mend(dense, mask, stats, recipe)
    # Rounded as it is stored, and exactly zero where it is masked: all bits of it, for formats that go by bits.
    stored = pruned.to(weight.dtype).where(mask, 0)
    error = relative_error(dense, stored.float(), stats) if stats else None
    free = Unstructured(pattern.sparsity, SCORES[recipe.score].scope)
    kept = retained(score, mask)
    weight.copy_(stored if order is None else stored[:, inverse(order)])
    return LayerResult(
        name=name,
        shape=(weight.shape[0], weight.shape[1]),
        sparsity=sparsity_of(weight),
        retained=kept,
        unstructured=retained(score, select(score, free)) if isinstance(pattern, NM) else kept,
        relative_error=error,
        nonzeros_sha256=nonzeros_digest(weight),
        weight_sha256=bytes_digest(weight),
    )


def mend(dense: Tensor, mask: Tensor, stats: InputStats | None, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The recipe's reconstruction of ``dense`` (O, I) under ``mask``: the mask, perhaps moved, and the weights."""
    if stats is None or stats.gram is None or recipe.reconstruct == "none":
        return mask, dense * mask
    gram = damped(stats.gram)
    match recipe.reconstruct:
        case "sparsegpt" if recipe.score == "sparsegpt":  # as published: the mask is chosen on the way
            pruned = sparsegpt(dense, gram, pattern=recipe.target)
            return pruned != 0, pruned
        case "sparsegpt":
            return mask, sparsegpt(dense, gram, mask=mask)
        case "admm":
            return admm(dense, mask, gram, recipe.target)
        case _:
            return mask, masked_cg(dense, mask, gram)


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
    return digest(weight.contiguous().view(torch.uint8))


def share_kept(score: Tensor, pattern: NM) -> float:
    """The share of the total of ``score`` that N:M retains with its columns as they are."""
    total = score.sum(dtype=torch.float64).item()
    return kept_score(score, pattern) / total if total > 0 else 1.0
