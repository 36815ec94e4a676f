"""Searches for an order, by name."""

from typing import Literal, get_args

import torch
from torch import Tensor

from secateur.permute.assign import grown_groups, heuristic_groups, kept_sum, reassign
from secateur.permute.greedy import greedy_groups
from secateur.sparsity import NM, check_fits

Method = Literal["none", "heuristic", "lsa", "lsa-published", "greedy"]
METHODS: tuple[Method, ...] = get_args(Method)

# Passes of lsa end when one gains less than this share of the retained score, or after so many.
TOLERANCE, MOST_PASSES = 1e-4, 8
GREEDY_ESCAPES = 100


def find_order(score: Tensor, pattern: NM, method: Method = "lsa", *, communities: int = 1, seed: int = 0) -> Tensor:
    """An order of the columns of ``score`` under which ``pattern`` retains much of it.

    Args:
        score: ``(R, I)``, finite and not negative. Weights that must share one order are stacked along R.
        pattern: N:M.
        method:
            ``none``: the columns as they are;
            ``heuristic``: the published step 1, dealing out by column sums;
            ``lsa-published``: step 1, then step 2 once: each slot of the groups reassigned optimally;
            ``lsa``: groups grown by assignment, then passes of step 2, each over other slots, while they gain;
            ``greedy``: Pool & Yu's swaps with bounded escapes, from the columns as they are.
        communities: split the columns into so many parts and search inside each (RIA, Appendix F.2): less
            work by that factor. Channels of all ranks are in every part.
        seed: of what is drawn at random.

    Returns:
        int64 ``(I,)``; never retains less than the columns as they are.

    Raises:
        InputError: when I is not a multiple of M.
    """
    check_fits(pattern, score.shape[1])
    as_it_is = torch.arange(score.shape[1], device=score.device)
    if method == "none" or pattern.kept == pattern.group or score.shape[1] == pattern.group or not len(score):
        return as_it_is
    columns = score.float().T.contiguous()
    if communities > 1:
        order = torch.cat(
            [
                part[_groups(columns[part].contiguous(), pattern, method, seed).flatten()]
                for part in _split(columns, pattern, communities)
            ]
        )
    else:
        order = _groups(columns, pattern, method, seed).flatten()
    before, after = (kept_sum(columns, o.reshape(-1, pattern.group), pattern.kept) for o in (as_it_is, order))
    return order if after > before else as_it_is


def kept_score(score: Tensor, pattern: NM) -> float:
    """The total of ``score`` (R, I) that the best N:M mask retains with the columns as they are."""
    groups = torch.arange(score.shape[1], device=score.device).reshape(-1, pattern.group)
    return kept_sum(score.float().T, groups, pattern.kept)


def _groups(columns: Tensor, pattern: NM, method: Method, seed: int) -> Tensor:
    match method:
        case "heuristic":
            return heuristic_groups(columns, pattern.group)
        case "lsa-published":
            return reassign(columns, heuristic_groups(columns, pattern.group), pattern.kept)
        case "greedy":
            start = torch.arange(len(columns), device=columns.device).reshape(-1, pattern.group)
            return greedy_groups(columns, start, pattern.kept, GREEDY_ESCAPES, seed)
        case _:
            return _grow_and_refine(columns, pattern, seed)


def _grow_and_refine(columns: Tensor, pattern: NM, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    groups = grown_groups(columns, pattern.kept, pattern.group)
    score = kept_sum(columns, groups, pattern.kept)
    for _ in range(MOST_PASSES):
        # Shuffled slots take another channel out of each group beside the others': a pass over the
        # same slots as before soon finds nothing more.
        shuffle = torch.rand(groups.shape, generator=draw).argsort(1).to(groups.device)
        groups = reassign(columns, groups.gather(1, shuffle), pattern.kept)
        before, score = score, kept_sum(columns, groups, pattern.kept)
        if score - before <= TOLERANCE * before:
            break
    return groups


def _split(columns: Tensor, pattern: NM, communities: int) -> list[Tensor]:
    """Deal the channels, by rank, to communities whose sizes are multiples of the group."""
    groups = heuristic_groups(columns, pattern.group)  # every group has channels of all ranks
    return [part.flatten() for part in groups.tensor_split(min(communities, len(groups)))]
