"""The greedy channel permutation search of Pool & Yu (*Channel Permutations for N:M Sparsity*, NeurIPS 2021).

Swap two channels between two groups, best gain first, until no swap gains anything; then escape the local
optimum by a random swap, and go on, a bounded number of times. A baseline (RIA, Table 11).

What a swap of channel b, in slot i of group k, with channel c, in slot j of group l, gains is a sum of two entries of
the table ``values[slot, channel]`` less two others: what each group retains with the other's channel in place of its
own, in the closed form of ``assign.py``. So all gains are one matrix, and a swap changes only the 2M rows of the
table, and the 2M rows and columns of gains, that belong to its two groups. Published is the search, by forming and
sorting every pair of groups.

Cost: I² R operations to fill the table, 2M I R and I² for each swap, of which there are about as many as channels,
and again for each escape: it grows faster with width than the assignment does.
"""

import torch
from torch import Tensor

from secateur.permute.assign import PANEL, kept_sum, l1_distances, nth_largest


def greedy_groups(columns: Tensor, groups: Tensor, kept: int, escapes: int = 0, seed: int = 0) -> Tensor:
    """Improve ``groups (K, M)`` by swaps; the result retains at least as much.

    Args:
        columns: the score, ``(I, R)``.
        groups: where to start.
        kept: N < M.
        escapes: how many random swaps may be tried once no swap gains.
        seed: of the random swaps.
    """
    draw = torch.Generator().manual_seed(seed)
    groups = groups.clone()
    values = torch.zeros(groups.numel(), len(columns), device=columns.device)
    _value_groups(columns, groups, kept, values, torch.arange(len(groups), device=columns.device))
    _descend(columns, groups, kept, values)
    best, best_score = groups.clone(), kept_sum(columns, groups, kept)
    for _ in range(escapes if len(groups) > 1 else 0):
        a, b = torch.randperm(len(groups), generator=draw)[:2].tolist()
        i, j = torch.randint(groups.shape[1], (2,), generator=draw).tolist()
        _swap(columns, groups, kept, values, a, i, b, j)
        _descend(columns, groups, kept, values)
        score = kept_sum(columns, groups, kept)
        if score > best_score:
            best, best_score = groups.clone(), score
    return best


def _value_groups(columns: Tensor, groups: Tensor, kept: int, values: Tensor, changed: Tensor) -> None:
    """Fill ``values[k·M + s, c]``: what group k retains with channel c in slot s, but for a constant per (k, s)."""
    size = groups.shape[1]
    slots = torch.arange(size, device=groups.device)
    others = torch.stack([slots[slots != slot] for slot in slots])  # (M, M-1)
    fixed = groups[changed][:, others].flatten(0, 1)
    values[(changed[:, None] * size + slots).flatten()] = _distances(nth_largest(columns, fixed, kept), columns) / 2


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖₁: few rows of ``a`` are not worth the panels, for which all of ``b`` is copied."""
    return l1_distances(a, b) if len(a) > PANEL else torch.cdist(a, b, p=1)


def _descend(columns: Tensor, groups: Tensor, kept: int, values: Tensor) -> None:
    """Make the swap of largest gain until there is none, in place."""
    size = groups.shape[1]
    tolerance = 1e-6 * columns.sum().item() / len(groups)  # rounding must not look like a gain
    places = torch.arange(groups.numel(), device=columns.device)
    gains = _gains(groups, values, places)
    while True:
        a = int(gains.amax(1).argmax())
        b = int(gains[a].argmax())
        if gains[a, b] <= tolerance:
            return
        _swap(columns, groups, kept, values, a // size, a % size, b // size, b % size)
        changed = torch.cat([places[place - place % size :][:size] for place in (a, b)])
        gains[changed] = _gains(groups, values, changed)
        gains[:, changed] = gains[changed].T


def _gains(groups: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """What it gains to swap the channel in each of ``places`` with that in each place of all groups, ``(P, I)``."""
    channels, size = groups.flatten(), groups.shape[1]
    everywhere = torch.arange(len(channels), device=groups.device)
    stay = values[everywhere, channels]
    gains = values[places][:, channels] + values[:, channels[places]].T - stay[places][:, None] - stay
    gains[places[:, None] // size == everywhere // size] = 0
    return gains


def _swap(columns: Tensor, groups: Tensor, kept: int, values: Tensor, a: int, i: int, b: int, j: int) -> None:
    """Exchange slot i of group a with slot j of group b, in place."""
    groups[a, i], groups[b, j] = groups[b, j].clone(), groups[a, i].clone()
    _value_groups(columns, groups, kept, values, torch.tensor([a, b], device=groups.device))
