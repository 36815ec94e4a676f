"""Grids of levels for weights of a few bits, in which zero is a level.

Each row of a weight has a grid for each group of so many columns: 2^b levels, evenly spaced,

    w = (q − z) · s        with a code q and a zero-point z in 0 … 2^b − 1, and a scale s > 0

The zero-point is an integer among the codes, so q = z decodes to exactly 0: a weight that pruning has removed stays so.
A symmetric grid is the case in which all zero-points are 2^(b−1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import InputError

# Shares of the range that :func:`fit_clipped` tries, the whole one first.
RANGES = [1 - step / 20 for step in range(11)]


@dataclass(frozen=True)
class Grid:
    """The levels of a weight ``(O, I)`` in groups of columns.

    Attributes:
        bits: b.
        group: columns that share a grid, G of them along a row.
        scales: s, float32 ``(O, G)``, each a number that bfloat16 holds.
        zeros: z, uint8 ``(O, G)``.
    """

    bits: int
    group: int
    scales: Tensor
    zeros: Tensor

    @property
    def symmetric(self) -> bool:
        """Whether every zero-point is the middle code."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest codes of a float32 weight ``(O, I)``, uint8; halves go to the even one."""
        steps = (weight / self.per_column(self.scales)).round_() + self.per_column(self.zeros)
        return steps.clamp_(0, (1 << self.bits) - 1).to(torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """What codes ``(O, I)`` stand for, float32, which holds them exactly."""
        return (codes.float() - self.per_column(self.zeros)) * self.per_column(self.scales)

    def column(self, j: int) -> "Grid":
        """That of column j alone."""
        here = slice(j // self.group, j // self.group + 1)
        return Grid(self.bits, 1, self.scales[:, here], self.zeros[:, here])

    def per_column(self, numbers: Tensor) -> Tensor:
        """Numbers ``(O, G)`` as ``(O, I)``."""
        return numbers.repeat_interleave(self.group, 1)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight on its grid.

    Attributes:
        grid: of ``(O, I)``.
        codes: uint8 ``(O, I)``.
        dtype: of the dense weight that it stands for.
    """

    grid: Grid
    codes: Tensor
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """The weight ``(O, I)`` in ``dtype``, rounded to it once."""
        return self.grid.values(self.codes).to(self.dtype)


def check_group(columns: int, group: int) -> None:
    """Raise :class:`InputError` unless ``group`` divides the width of a weight."""
    if group < 1 or columns % group:
        fitting = [size for size in (256, 128, 96, 64, 48, 32, 16) if columns % size == 0]
        hint = f"; {', '.join(map(str, fitting))} would" if fitting else ""
        raise InputError(f"groups of {group} columns do not divide {columns}{hint}")


def fit(weight: Tensor, bits: int, group: int, symmetric: bool = False) -> Grid:
    """The grids that reach from the smallest to the largest weight of each group, and to zero.

    Args:
        weight: float32 ``(O, I)``.
        bits: 2 to 8.
        group: columns that share a grid; divides I.
        symmetric: let every zero-point be the middle code: the levels above zero reach to the largest magnitude.
    """
    levels = (1 << bits) - 1
    parts = weight.unflatten(1, (-1, group))
    low, high = parts.amin(-1).clamp_(max=0), parts.amax(-1).clamp_(min=0)
    scales = torch.maximum(high, -low) / (levels // 2) if symmetric else (high - low) / levels
    scales = scales.to(torch.bfloat16).float()
    scales = torch.where(scales > 0, scales, 1)
    middle = torch.full_like(scales, 1 << (bits - 1))
    zeros = middle if symmetric else (-low / scales).round_().clamp_(0, levels)
    return Grid(bits, group, scales, zeros.to(torch.uint8))


def fit_clipped(weight: Tensor, bits: int, group: int, symmetric: bool, cost: Callable[[Tensor], Tensor]) -> Grid:
    """The grids that cost least, of those that reach to some share of each group's range (:data:`RANGES`).

    The largest weights are clipped, and all others are on finer levels. Each group of each row has a share of its own.

    Args:
        weight: float32 ``(O, I)``.
        bits: 2 to 8.
        group: columns that share a grid; divides I.
        symmetric: as in :func:`fit`.
        cost: of a change of the weight to the nearest levels, ``(O, I)``, to each group, ``(O, G)``. Of equals the
            widest range is taken.
    """
    best = fit(weight, bits, group, symmetric)
    least = torch.full_like(best.scales, torch.inf)
    for share in RANGES:
        grid = fit(weight * share, bits, group, symmetric)
        costs = cost(grid.values(grid.codes(weight)) - weight)
        better = costs < least
        least = torch.where(better, costs, least)
        scales, zeros = (
            torch.where(better, new, old) for new, old in ((grid.scales, best.scales), (grid.zeros, best.zeros))
        )
        best = Grid(bits, group, scales, zeros)
    return best


def fit_nearest(weight: Tensor, bits: int, group: int, symmetric: bool = False) -> Grid:
    """Those of the grids of :func:`fit_clipped` that are nearest to the weight: the sum of squared errors is least."""
    return fit_clipped(weight, bits, group, symmetric, lambda change: change.square().unflatten(1, (-1, group)).sum(-1))
