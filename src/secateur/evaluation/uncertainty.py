"""How far a mean over a text can be trusted: the method of batch means.

Neighbouring windows come from the same article, so that they are not independent draws. They are gathered
into at most 30 blocks of consecutive windows (Schmeiser, *Batch Size Effects in the Analysis of Simulation
Output*, 1982, advises 10 to 30), and the spread of the blocks' means gives the standard error of the whole.
It says how another text of the same kind would differ, not how the same text read again would.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, stdev

from torch import Tensor

BLOCKS = 30
FEWEST = 4  # fewer say nothing
CONFIDENCE = 0.95


def block_means(totals: Tensor, counts: Tensor) -> tuple[float, ...]:
    """Means over blocks of consecutive windows, of as equal a number as can be.

    Args:
        totals: per window, the sum of what is averaged: float64 ``(n,)``.
        counts: per window, the number of its terms: float64 ``(n,)``.
    """
    blocks = min(BLOCKS, len(totals))
    parts = zip(totals.tensor_split(blocks), counts.tensor_split(blocks), strict=True)
    return tuple((total.sum() / count.sum()).item() for total, count in parts)


def interval(mean: float, blocks: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of ``mean`` by the standard error of ``blocks`` and Student's t; None where there is none."""
    if len(blocks) < FEWEST or not all(map(math.isfinite, blocks)):
        return None
    half = student(len(blocks) - 1) * stdev(blocks) / math.sqrt(len(blocks))
    return mean - half, mean + half


def student(freedom: int) -> float:
    """Student's t for the interval, by Fisher's expansion: within 4 % for 3 degrees of freedom, 0.1 % from 10 on."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
