"""The searches for an order of channels, by name.

Each is a function of ``columns (I, R)``, the score with one row of memory per input channel, the N:M pattern, and a
seed for what is drawn at random; it returns the channels of each group, int64 ``(K, M)``, K = I/M. A new search is a
function here and its entry in :data:`SEARCHES`: recipes, the command line's help (the first sentence of its docstring)
and the tests over all searches follow from that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from secateur.patterns import NM

if TYPE_CHECKING:  # the names in the table are wanted before torch is loaded
    from torch import Tensor

Search = Callable[["Tensor", NM, int], "Tensor"]

# Random swaps that the baseline of the paper's Table 11 may try.
GREEDY_ESCAPES = 100


def heuristic(columns: Tensor, pattern: NM, seed: int) -> Tensor:
    """Deal the channels out to the groups by the sum of their score (step 1 of the paper)."""
    from secateur.permute.assign import heuristic_groups

    return heuristic_groups(columns, pattern.group)


def lsa(columns: Tensor, pattern: NM, seed: int) -> Tensor:
    """Grow the groups by assignment, then repeat step 2 over shuffled slots while it gains."""
    from secateur.permute.lsa import grown_groups, reassign_shuffled

    return reassign_shuffled(columns, grown_groups(columns, pattern.kept, pattern.group), pattern.kept, seed)


def lsa_published(columns: Tensor, pattern: NM, seed: int) -> Tensor:
    """Step 1, then step 2 once: the channels of each slot are assigned to the groups anew (RIA, §4.2)."""
    from secateur.permute.assign import heuristic_groups, reassign

    return reassign(columns, heuristic_groups(columns, pattern.group), pattern.kept)


def greedy(columns: Tensor, pattern: NM, seed: int) -> Tensor:
    """Swap channels between groups, best gain first, with bounded escapes (Pool & Yu, 2021)."""
    from secateur.permute.greedy import greedy_groups
    from secateur.permute.orders import unordered

    return greedy_groups(columns, unordered(columns, pattern), pattern.kept, GREEDY_ESCAPES, seed)


SEARCHES: dict[str, Search] = {
    "heuristic": heuristic,
    "lsa": lsa,
    "lsa-published": lsa_published,
    "greedy": greedy,
}
