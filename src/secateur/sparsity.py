"""What a mask must obey, and the best mask that obeys it.

A mask is a bool tensor of the weight's shape ``(O, I)``; true means kept. Every selection in the
package goes through :func:`select`.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateur.errors import InputError

Scope = Literal["row", "matrix"]

# In groups of at most so many, comparing all pairs is faster than selection: 3 times at 2:4 and 4:8, 1.9 times at 8:16;
# at 16:32 it is slower.
FEW = 16


@dataclass(frozen=True)
class Unstructured:
    """Any weight may go: a share ``sparsity`` in [0, 1) of them is removed.

    ``scope`` says which weights compete: those of one output row, or those of the whole matrix.
    """

    sparsity: float
    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity {self.sparsity} is not in [0, 1)")

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.4g} %"


@dataclass(frozen=True)
class NM:
    """``kept`` weights stay of every ``group`` consecutive input channels, in each output row."""

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 0 < self.kept <= self.group:
            raise InputError(
                f"pattern {self.kept}:{self.group} does not keep 1 to {self.group} weights of {self.group}"
            )

    @property
    def sparsity(self) -> float:
        """The share of weights removed."""
        return 1 - self.kept / self.group

    def __str__(self) -> str:
        return f"{self.kept}:{self.group} ({100 * self.sparsity:.4g} %)"


Pattern = Unstructured | NM


def parse_nm(text: str) -> NM:
    """Read ``"2:4"`` as :class:`NM`. Raises :class:`InputError` for anything else."""
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if match is None:
        raise InputError(f"pattern {text!r} is not of the form N:M, such as 2:4 (N weights kept of every M)")
    return NM(int(match[1]), int(match[2]))


def check_fits(pattern: Pattern, in_features: int) -> None:
    """Raise :class:`InputError` when a weight of ``in_features`` columns cannot have ``pattern``."""
    if isinstance(pattern, NM) and in_features % pattern.group:
        raise InputError(f"{in_features} input channels are not a multiple of {pattern.group}, as {pattern} needs")


def select(score: Tensor, pattern: Pattern) -> Tensor:
    """The mask of largest total score under ``pattern``.

    Exactly the asked number of weights is kept, rounded to the nearest integer for a share; among
    equal scores the one with the lower column, then the lower row, is kept.

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
    smallest_kept = score.kthvalue(score.shape[1] - keep + 1, dim=1, keepdim=True).values
    above, tied = score > smallest_kept, score == smallest_kept
    missing = keep - above.sum(1, keepdim=True)
    if torch.equal(tied.sum(1, keepdim=True), missing):
        return above | tied
    return above | (tied & (tied.cumsum(1, dtype=torch.int32) <= missing))


def _keep_largest_of_few(score: Tensor, keep: int) -> Tensor:
    """The same by comparing every pair of columns: no row is sorted."""
    columns = score.T.contiguous()
    larger = torch.zeros(columns.shape, dtype=torch.int8, device=score.device)  # or equal, and before it
    for i, j in itertools.combinations(range(len(columns)), 2):
        first = columns[i] >= columns[j]
        larger[j] += first
        larger[i] += ~first
    return (larger < keep).T


def count_kept(rows: int, columns: int, pattern: Pattern) -> int:
    """How many weights :func:`select` keeps of a matrix of this shape.

    Raises:
        InputError: when ``columns`` is not a multiple of the group of an N:M pattern.
    """
    check_fits(pattern, columns)
    match pattern:
        case NM(kept, group):
            return rows * columns // group * kept
        case Unstructured(sparsity, scope):
            number, length = (1, rows * columns) if scope == "matrix" else (rows, columns)
            return number * (length - round(sparsity * length))


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
    total = score.sum(dtype=torch.float64)
    return (torch.where(mask, score, 0).sum(dtype=torch.float64) / total).item() if total > 0 else 1.0
