"""From the score of a weight to an order of its columns, by any of the searches."""

import torch
from torch import Tensor

from secateur.patterns import NM, check_fits
from secateur.permute.assign import heuristic_groups, kept_sum
from secateur.permute.searches import SEARCHES


def find_order(score: Tensor, pattern: NM, search: str = "lsa", *, communities: int = 1, seed: int = 0) -> Tensor:
    """An order of the columns of ``score`` under which ``pattern`` retains much of it.

    Args:
        score: ``(R, I)``, finite and not negative. Weights that must share one order are stacked along R.
        pattern: N:M.
        search: one of :data:`~secateur.permute.searches.SEARCHES`, or ``none``: the columns as they are.
        communities: split the columns into so many parts and search inside each (RIA, Appendix F.2): less
            work for the published searches, by that factor. Channels of all ranks are in every part.
        seed: of what is drawn at random.

    Returns:
        int64 ``(I,)``; never retains less than the columns as they are.

    Raises:
        InputError: when I is not a multiple of M.
    """
    check_fits(pattern, score.shape[1])
    as_it_is = torch.arange(score.shape[1], device=score.device)
    if search == "none" or pattern.kept == pattern.group or score.shape[1] == pattern.group or not len(score):
        return as_it_is
    columns = score.float().T.contiguous()
    groups_of = SEARCHES[search]
    if communities > 1:
        parts = _split(columns, pattern, communities)
        order = torch.cat([part[groups_of(columns[part].contiguous(), pattern, seed).flatten()] for part in parts])
    else:
        order = groups_of(columns, pattern, seed).flatten()
    before, after = (kept_sum(columns, o.reshape(-1, pattern.group), pattern.kept) for o in (as_it_is, order))
    return order if after > before else as_it_is


def kept_score(score: Tensor, pattern: NM) -> float:
    """The total of ``score`` (R, I) that the best N:M mask retains with the columns as they are."""
    return kept_sum(score.float().T, unordered(score.T, pattern), pattern.kept)


def share_kept(score: Tensor, pattern: NM) -> float:
    """:func:`kept_score` as a share of the total of ``score``; 1 where there is no score at all."""
    total = score.sum(dtype=torch.float64).item()
    return kept_score(score, pattern) / total if total > 0 else 1.0


def inverse(order: Tensor) -> Tensor:
    """The order that undoes ``order``."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def unordered(columns: Tensor, pattern: NM) -> Tensor:
    """The groups ``(K, M)`` that the channels of ``columns`` (I, R) form as they lie."""
    return torch.arange(len(columns), device=columns.device).reshape(-1, pattern.group)


def _split(columns: Tensor, pattern: NM, communities: int) -> list[Tensor]:
    """Deal the channels, by rank, to communities whose sizes are multiples of the group."""
    groups = heuristic_groups(columns, pattern.group)  # every group has channels of all ranks
    return [part.flatten() for part in groups.tensor_split(min(communities, len(groups)))]
