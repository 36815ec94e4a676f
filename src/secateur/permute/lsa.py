"""Secateur's own search: groups grown by assignment, then passes over shuffled slots.

It stands on the closed form of ``assign.py`` and differs from the published search in four things. Two retain more:
groups are grown by assignment instead of dealt out (:func:`grown_groups`), and passes are repeated while they gain,
each over other slots (:func:`reassign_shuffled`). Two make it fast and lose nothing that could be told from noise
(docs/permutation.md has the figures): a group is valued not with every channel but with the few that a matrix product
finds best for it (``shortlist.py``), and the assignment is solved over those alone. What is listed may be wrong; what
it is worth is computed from the scores themselves, so that the retained score never falls.

Cost of a pass: M products of matrices (K, 2R) and (2R, K), and M assignments of K·k values instead of K².
"""

import lap
import torch
from torch import Tensor

from secateur.permute.assign import at_a_time, kept_sum, nth_largest, ranked
from secateur.permute.shortlist import shortlist

# Channels that are valued for each group, and the number of groups up to which that is all of them.
LISTED, FEW = 16, 64
# Steps that values are rounded to: equal ones save the solver half of its time, and cost no more than 5e-4 of a gain.
STEPS = 1 << 12
# Repeated passes end when one gains less than this share of the retained score, or after so many.
TOLERANCE, MOST_PASSES = 1e-4, 8


def grown_groups(columns: Tensor, kept: int, group: int) -> Tensor:
    """Grow the groups a channel at a time, each time by the best assignment of the next K of the ranking.

    As in the paper's step 1 every group gets a channel of each rank, but one that is large where the
    group is not yet. Costs M−1 assignments, fewer than one pass of the paper's step 2, and retains more.

    Args:
        columns: ``(I, R)``.
        kept: N < M.
        group: M, a divisor of I.

    Returns:
        ``(K, M)`` int64.
    """
    slots = ranked(columns).reshape(group, -1)
    groups = slots[0][:, None]
    for candidates in slots[1:]:
        threshold = nth_largest(columns, groups, min(kept, groups.shape[1]))
        chosen = assigned(threshold, columns[candidates])
        groups = torch.cat([groups, candidates[chosen][:, None]], 1)
    return groups


def reassign_shuffled(columns: Tensor, groups: Tensor, kept: int, seed: int) -> Tensor:
    """Reassign slot after slot, pass after pass, until one gains less than :data:`TOLERANCE`.

    A pass over the same slots as before soon finds nothing more: shuffled slots take another channel out of each
    group beside the others'. The retained score never falls.

    Args:
        columns: ``(I, R)``.
        groups: ``(K, M)`` int64.
        kept: N < M.
        seed: of the shuffles.
    """
    draw = torch.Generator().manual_seed(seed)
    score = kept_sum(columns, groups, kept)
    for _ in range(MOST_PASSES):
        shuffle = torch.rand(groups.shape, generator=draw).argsort(1).to(groups.device)
        groups = groups.gather(1, shuffle)
        for slot in range(groups.shape[1]):
            fixed = torch.cat([groups[:, :slot], groups[:, slot + 1 :]], 1)
            chosen = assigned(nth_largest(columns, fixed, kept), columns[groups[:, slot]])
            groups[:, slot] = groups[chosen, slot]
        before, score = score, kept_sum(columns, groups, kept)
        if score - before <= TOLERANCE * before:
            break
    return groups


def assigned(thresholds: Tensor, candidates: Tensor) -> Tensor:
    """An assignment of candidates to groups that retains much, and no less than each group with that of its number.

    Args:
        thresholds: the N-th largest fixed score of each group and row, ``(K, R)``.
        candidates: ``(K, R)``.

    Returns:
        for each group its candidate, int64 ``(K,)``.
    """
    count = len(thresholds)
    if count <= FEW:
        listed = torch.arange(count, device=thresholds.device).expand(count, -1)
    else:
        listed = shortlist(thresholds, candidates, LISTED)
    values = _retained(thresholds, candidates, listed)
    chosen = _solve(values, listed)
    here = values[listed == chosen[:, None]].sum(dtype=torch.float64)
    own = torch.arange(count, device=chosen.device)
    gains = here > values[listed == own[:, None]].sum(dtype=torch.float64)
    return chosen if gains else own  # in a tie, and where rounding decides, leave things as they are


def _retained(thresholds: Tensor, candidates: Tensor, listed: Tensor) -> Tensor:
    """Σ_r max(t_gr, x_cr) for each group and the candidates ``listed (K, k)`` for it: ``(K, k)`` float32."""
    size = max(1, at_a_time(thresholds) // listed.shape[1])
    parts = zip(thresholds.split(size), listed.split(size), strict=True)
    everyone = listed.shape[1] == len(candidates)
    rivals = ((part, candidates if everyone else candidates[few]) for part, few in parts)
    return torch.cat([torch.maximum(scores, part[:, None]).sum(2) for part, scores in rivals])


def _solve(values: Tensor, listed: Tensor) -> Tensor:
    """The assignment of largest total value among the columns ``listed (K, k)`` for each row, int64 ``(K,)``.

    There has to be one, as there is where every row lists the column of its number.
    """
    count, each = listed.shape
    costs = values.amax(1, keepdim=True) - values
    costs = (costs / costs.max().clamp_min(torch.finfo(torch.float32).tiny) * STEPS).round_().double()
    starts = torch.arange(0, count * each + 1, each, dtype=torch.int32)
    sparse = (costs.flatten().cpu().numpy(), starts.numpy(), listed.flatten().int().cpu().numpy())
    chosen, _ = lap.lapmod(count, *sparse, return_cost=False)
    return torch.from_numpy(chosen).to(listed.device, torch.int64)
