"""How far a mean over a text, and a difference between two models' answers, can be trusted.

Texts: the method of batch means.

Neighbouring windows come from the same article, so that they are not independent draws. They are gathered
into at most 30 blocks of consecutive windows (Schmeiser, *Batch Size Effects in the Analysis of Simulation
Output*, 1982, advises 10 to 30), and the spread of the blocks' means gives the standard error of the whole.
It says how another text of the same kind would differ, not how the same text read again would.

Answers: of two models that were asked the same, only items count that one of them got right and the other did not. If
neither is better, each of these is as likely to be the one's as the other's: that is McNemar's test, exact by the
binomial distribution (McNemar, *Note on the Sampling Error of the Difference between Correlated Proportions or
Percentages*, 1947). The interval is that of Clopper and Pearson (1934) for the one's share of these items, their number
taken as given, so that it leaves zero out just where the test's p is below 5 %.
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


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p of so many items won against so many lost, if neither model were better: exact."""
    number = gained + lost
    tail = sum(math.comb(number, few) for few in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**number)  # of integers, rounded once


def paired_interval(gained: int, lost: int, items: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares of right answers: (gained - lost) / items."""
    low, high = 1 - _share_at_most(lost, gained), _share_at_most(gained, lost)
    return tuple((2 * share - 1) * (gained + lost) / items for share in (low, high))  # type: ignore[return-value]


def _share_at_most(hits: int, misses: int) -> float:
    """The largest chance of a hit with which so few would still come in 2.5 % of all cases (Clopper and Pearson)."""
    if not misses:
        return 1.0
    number, low, high = hits + misses, 0.0, 1.0
    ways = [_log_ways(number, few) for few in range(hits + 1)]
    for _ in range(50):
        share = (low + high) / 2
        terms = (w + few * math.log(share) + (number - few) * math.log1p(-share) for few, w in enumerate(ways))
        if sum(map(math.exp, terms)) > (1 - CONFIDENCE) / 2:
            low = share
        else:
            high = share
    return (low + high) / 2


def _log_ways(number: int, few: int) -> float:
    return math.lgamma(number + 1) - math.lgamma(few + 1) - math.lgamma(number - few + 1)


def student(freedom: int) -> float:
    """Student's t for the interval, by Fisher's expansion: within 4 % for 3 degrees of freedom, 0.1 % from 10 on."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
