"""Channel permutation by linear sum assignment (RIA, §4.2 and Appendix H), in closed form.

Notation, in all of this package: the score lies as ``columns (I, R)``, one row of memory per input
channel; ``groups (K, M)`` holds the channels of each of the K = I/M groups; N of every M are kept.

Put channel c into group g beside M−1 fixed channels. In row r the group then keeps the N−1 largest of the
fixed scores, and of the N-th largest fixed score t_gr and the candidate's x_cr the larger one. So

    value[g, c] = const_g + Σ_r max(t_gr, x_cr) = const_g + ½ (Σ_r t_gr + Σ_r x_cr + ‖t_g − x_c‖₁)

and in an assignment of channels to groups, where every g and every c counts once, all but the last term
is the same whatever is assigned: maximise the sum of L1 distances. No sorting per pair is needed.

Cost of a pass: M distance matrices of K² R operations, and M assignments of K³ at worst, on one core. Secateur's own
search (``lsa.py``) stands on the same sum and computes neither.
"""

from collections.abc import Iterable

import lap
import torch
from torch import Tensor

# Rows at a time in a distance matrix: so few that a panel of all channels stays in the processor's cache.
PANEL = 32
# Numbers worked on at a time: so few that they stay in the processor's cache; a GPU wants more to do for each launch.
CACHED, LAUNCHED = 1 << 18, 1 << 26


def heuristic_groups(columns: Tensor, group: int) -> Tensor:
    """Step 1 of the paper: sort the channels by their sum, and deal them out, turning round at each end.

    Args:
        columns: ``(I, R)``.
        group: M, a divisor of I.

    Returns:
        ``(K, M)`` int64. Slot s of the groups holds the s-th K channels of the ranking.
    """
    slots = ranked(columns).reshape(group, -1).clone()
    slots[1::2] = slots[1::2].flip(1)
    return slots.T.contiguous()


def reassign(columns: Tensor, groups: Tensor, kept: int, slots: Iterable[int] | None = None) -> Tensor:
    """Step 2 of the paper, one pass: take slot s out of every group, reassign those K channels, for every s.

    The retained score never falls.

    Args:
        columns: ``(I, R)``.
        groups: ``(K, M)`` int64.
        kept: N < M.
        slots: which slots, in which order; all by default.
    """
    groups = groups.clone()
    for slot in range(groups.shape[1]) if slots is None else slots:
        fixed = torch.cat([groups[:, :slot], groups[:, slot + 1 :]], 1)
        values = l1_distances(nth_largest(columns, fixed, kept), columns[groups[:, slot]])
        chosen = _assign(values)
        gain = values.gather(1, chosen[:, None]).sum(dtype=torch.float64) - values.diagonal().sum(dtype=torch.float64)
        if gain > 0:  # in a tie, and where rounding decides, leave things as they are
            groups[:, slot] = groups[chosen, slot]
    return groups


def nth_largest(columns: Tensor, groups: Tensor, n: int) -> Tensor:
    """The n-th largest score in each row of each group: ``(K, R)``."""
    return torch.cat([_largest(columns, part, n)[-1] for part in groups.split(at_a_time(columns))])


def kept_sum(columns: Tensor, groups: Tensor, kept: int) -> float:
    """The score that an N:M mask retains over these groups."""
    parts = (_largest(columns, part, kept) for part in groups.split(at_a_time(columns)))
    return sum(largest.sum(1, dtype=torch.float64).sum().item() for part in parts for largest in part)


def at_a_time(values: Tensor) -> int:
    """How many rows of ``values`` (…, R) to work on at a time on their device."""
    return max(1, (CACHED if values.device.type == "cpu" else LAUNCHED) // max(1, values.shape[-1]))


def l1_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖₁ for all i and j: ``(A, R)``, ``(B, R)`` → ``(A, B)``, in panels of rows."""
    panel = PANEL if a.device.type == "cpu" else a.shape[1]
    distances = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    for start in range(0, a.shape[1], panel):
        rows = slice(start, start + panel)
        distances += torch.cdist(a[:, rows].contiguous(), b[:, rows].contiguous(), p=1)
    return distances


def _largest(columns: Tensor, groups: Tensor, n: int) -> list[Tensor]:
    """The n largest scores in each row of each group, largest first: n tensors ``(K, R)``.

    Insertion into a short sorted list, for all rows and groups at once: M·N cheap passes and no sort.
    """
    largest: list[Tensor] = []
    for slot in range(groups.shape[1]):
        incoming = columns[groups[:, slot]]
        for i, held in enumerate(largest):
            largest[i], incoming = torch.maximum(held, incoming), torch.minimum(held, incoming)
        if len(largest) < n:
            largest.append(incoming)
    return largest


def ranked(columns: Tensor) -> Tensor:
    """Channels by their sum, largest first, the lower index first among equals."""
    return columns.sum(1, dtype=torch.float64).argsort(descending=True, stable=True)


def _assign(values: Tensor) -> Tensor:
    """The assignment of largest total value: ``(K, K)`` → for each row its column, ``(K,)`` int64."""
    _, chosen = lap.lapjvs(-values.double().cpu().numpy(), return_cost=False)
    return torch.from_numpy(chosen).to(values.device, torch.int64)
