"""The best mask that a pattern allows, and what a mask keeps.

A mask is a bool tensor of the weight's shape ``(O, I)``; true means kept. Every selection in the
package goes through :func:`select`.
"""

import itertools

import torch
from torch import Tensor

from secateur.patterns import NM, Pattern, Unstructured, check_fits

# In groups of at most so many, comparing all pairs is faster than selection: 3 times at 2:4 and 4:8, 1.9 times at 8:16;
# at 16:32 it is slower.
FEW = 16
# Numbers that a CPU works on at a time, so that what is computed of them stays in its cache.
CACHED = 1 << 18


def select(score: Tensor, pattern: Pattern) -> Tensor:
    """The mask of largest total score under ``pattern``.

    Exactly the asked number of weights is kept, rounded to the nearest integer for a share. Among equal scores that
    compete the first is kept: of a group or row from left to right, of a matrix row after row.

    Args:
        score: ``(O, I)``, floating point, finite.
    Returns:
        bool ``(O, I)``.
    Raises:
        InputError: when I is not a multiple of the group of an N:M pattern.
    """
    check_fits(pattern, score.shape[1])
    match pattern:
        case NM(kept, group):
            competitors, keep = score.reshape(-1, group), kept
        case Unstructured(sparsity, scope):
            competitors = score.reshape(1, -1) if scope == "matrix" else score
            keep = competitors.shape[1] - round(sparsity * competitors.shape[1])
    keep_largest = _keep_largest_of_few if competitors.shape[1] <= FEW else _keep_largest
    return keep_largest(competitors, keep).reshape(score.shape)


def _keep_largest(score: Tensor, keep: int) -> Tensor:
    """Mark the ``keep`` largest of every row of ``score`` (R, C), the first ones among equals."""
    if keep == 0 or keep == score.shape[1] or score.numel() == 0:
        return torch.full_like(score, keep > 0, dtype=torch.bool)
    smallest_kept = _kth_largest(score, keep)
    mask = score >= smallest_kept  # so many of each row, or more
    if mask.count_nonzero() > keep * len(mask):
        tied = score == smallest_kept
        wanted = tied.sum(1, keepdim=True) - (mask.sum(1, keepdim=True) - keep)
        mask &= ~tied | (tied.cumsum(1, dtype=torch.int32) <= wanted)
    return mask


def _kth_largest(score: Tensor, k: int) -> Tensor:
    """The k-th largest of every row of ``score`` (R, C): ``(R, 1)``.

    Of one long row by a histogram of the upper halves of its numbers, and then among those few that share the upper
    half where the k-th must lie: some linear passes. torch selects in a single row on one core, on a GPU on one block
    of threads.
    """
    if len(score) > 1 or score.dtype != torch.float32:
        return score.kthvalue(score.shape[1] - k + 1, dim=1, keepdim=True).values
    parts = score[0].split(CACHED if score.device.type == "cpu" else score.shape[1])
    counts = torch.stack([torch.bincount(_upper_half(part), minlength=0x10000) for part in parts]).sum(0)
    reached = counts.flip(0).cumsum(0)  # so many are at least as large
    place = torch.searchsorted(reached, k)
    beyond = reached[place - 1] if place > 0 else 0
    candidates = torch.cat([part[_upper_half(part) == 0xFFFF - place] for part in parts])
    return candidates.kthvalue(int(len(candidates) - (k - beyond) + 1)).values.reshape(1, 1)


def _upper_half(numbers: Tensor) -> Tensor:
    """The upper halves of float32 ``numbers`` (C,) as integers in [0, 2¹⁶) that keep their order: int32 ``(C,)``."""
    # Floats keep their order as integers, with all bits but the sign of negative ones turned round. Adding 0 makes 0
    # and -0 equal.
    bits = (numbers + 0.0).view(torch.int32)
    return ((bits ^ ((bits >> 31) & 0x7FFF_FFFF)) >> 16).add_(0x8000)


def _keep_largest_of_few(score: Tensor, keep: int) -> Tensor:
    """The same by comparing every pair of columns: no row is sorted."""
    columns = score.T.contiguous()
    larger = torch.zeros(columns.shape, dtype=torch.int8, device=score.device)  # or equal, and before it
    for i, j in itertools.combinations(range(len(columns)), 2):
        first = columns[i] >= columns[j]
        larger[j] += first
        larger[i] += ~first
    return (larger < keep).T


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """``weight`` where ``mask`` is true, bit for bit, and +0.0 elsewhere: not −0.0, which formats that go by bits keep.

    A product of integers, which takes a quarter of the time of ``torch.where`` on a CPU.
    """
    bits = weight.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.itemsize])
    return (bits * mask).view(weight.dtype)


def obeys(weight: Tensor, pattern: Pattern) -> bool:
    """Whether the non-zeros of ``weight`` (O, I), or a mask, have at most what ``pattern`` allows in each place."""
    kept = weight != 0
    match pattern:
        case NM(count, group):
            return weight.shape[1] % group == 0 and bool((kept.reshape(-1, group).sum(1) <= count).all())
        case Unstructured(sparsity, scope):
            rows = kept.reshape(1, -1) if scope == "matrix" else kept
            return bool((rows.sum(1) <= rows.shape[1] - round(sparsity * rows.shape[1])).all())


def sparsity_of(weight: Tensor) -> float:
    """The share of entries of ``weight`` that are exactly zero; 0 for an empty tensor."""
    return 1 - weight.count_nonzero().item() / weight.numel() if weight.numel() else 0.0


def retained(score: Tensor, mask: Tensor) -> float:
    """The share of the total of ``score`` (O, I) that ``mask`` keeps, in [0, 1]; 1 when there is no score at all."""
    total, kept = (part.sum(1).sum(dtype=torch.float64) for part in (score, score * mask))
    return (kept / total).item() if total > 0 else 1.0
