"""Which channels would do a group most good: one matrix product in place of the distances between all pairs.

What group g retains with channel c beside its fixed ones is Σ_r max(t_gr, x_cr), and so −Σ_r min(t_gr, x_cr), but for
what depends on g or on c alone (``assign.py``). The smaller of two numbers is nearly a sum of few products:

    min(t, x) ≈ a(t) + b(x) + Σ_l f_l(t) g_l(x)

a and b are the same whatever is assigned. f and g are the singular functions of the kernel less its means, under the
distributions of t and of x: no other sum of so many products comes closer. With them in place of t and x the sum
over the rows is a product of matrices, which any machine is built for.

The numbers are rounded to integers so small that float32 sums them exactly, in any order: the same channels are
found with any number of threads.
"""

import torch
from torch import Tensor

from secateur.devices import has_fast_bfloat16
from secateur.permute.assign import at_a_time

# Products in the sum. Two leave 1.3 % of the kernel's variance on real weights, one 5 %, three 0.5 %.
TERMS = 2
# Values at which the singular functions are known, and of each side about how many they are found by.
BINS, SAMPLE = 64, 1 << 15
# float32 has every integer up to here. No sum of products is larger where the lengths of both factors multiply to it.
EXACT = 1 << 24


def shortlist(thresholds: Tensor, candidates: Tensor, count: int) -> Tensor:
    """For each group ``count`` candidates: those with which it would retain most, and its own, the one of its number.

    Args:
        thresholds: t, ``(K, R)`` float32, not negative.
        candidates: x, ``(K, R)`` float32, not negative.
        count: k < K.

    Returns:
        ``(K, k)`` int64, ascending in each row.
    """
    ours, theirs = _factors(thresholds, candidates)
    lost = ours @ theirs.T  # less is better
    # What is good for every group is best for none: a candidate counts by how much better it is here than elsewhere.
    lost -= lost.topk(count, 0, largest=False).values[-1]
    listed, own = lost.topk(count, 1, largest=False).indices, torch.arange(len(lost), device=lost.device)
    missing = (listed != own[:, None]).all(1)
    listed[missing, -1] = own[missing]
    return listed.sort(1).values


def _factors(thresholds: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Integers ``(K, R·TERMS)`` with products of nearly Σ_r min(t, x), but for a scale and what is one side's alone."""
    tiny = torch.finfo(torch.float32).tiny
    # Rows differ in size, and not much in shape.
    unit = ((thresholds.mean(0) + candidates.mean(0)) / 2).clamp_min(tiny)
    t, x = (_sample(values, unit) for values in (thresholds, candidates))
    width = max(t.quantile(0.999).item(), 1e-6) / BINS  # min(t, x) is t for any larger x
    tables = _singular_functions(_histogram(t, width), _histogram(x, width))
    size = unit.sqrt()  # on each side, so that each row counts by its unit
    length = (EXACT**0.5 - (TERMS * len(unit)) ** 0.5 / 2) / size.norm().item()  # rounding may add half of one to each
    dtype = torch.bfloat16 if thresholds.is_cuda or has_fast_bfloat16() else torch.float32
    widths = (width * unit).clamp_min(tiny)
    f, g = (table * (length / table.norm(dim=1).max().clamp_min(1e-30)) for table in tables)
    return _look_up(thresholds, widths, f, size, dtype), _look_up(candidates, widths, g, size, dtype)


def _sample(values: Tensor, unit: Tensor) -> Tensor:
    """Some of ``values`` (K, R), taken evenly, in units of their rows: flat, on the CPU."""
    groups = values[:: max(1, len(values) // 256)]
    stride = max(1, groups.numel() // SAMPLE)
    return (groups[:, ::stride] / unit[::stride]).flatten().cpu()


def _histogram(sample: Tensor, width: float) -> Tensor:
    """The share of ``sample`` in each of :data:`BINS` bins of this width, all that is larger in the last: float64."""
    return (sample / width).clamp_max(BINS - 1).long().bincount(minlength=BINS).double() / len(sample)


def _singular_functions(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """f and g at the bins, each ``(BINS, TERMS)``, where t falls into the bins with shares ``p`` and x with ``q``."""
    bins = torch.arange(BINS, dtype=torch.float64)
    kernel = torch.minimum(bins[:, None], bins[None])
    kernel = kernel - (p @ kernel)[None] - (kernel @ q)[:, None] + p @ kernel @ q
    u, s, v = torch.linalg.svd(p.sqrt()[:, None] * kernel * q.sqrt()[None])
    # Both also where no value was in the sample: what a singular function is elsewhere follows from where it is known.
    weight = s[:TERMS].clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
    f, g = kernel @ (q.sqrt()[:, None] * v[:TERMS].T), kernel.T @ (p.sqrt()[:, None] * u[:, :TERMS])
    return f * weight, g * weight


def _look_up(values: Tensor, width: Tensor, table: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of ``table`` (BINS, TERMS) for the bins of ``values`` (K, R), times ``size`` (R,), as integers."""
    table, size = table.float().to(values.device), size.repeat_interleave(TERMS)
    factors = torch.empty(len(values), len(size), dtype=dtype, device=values.device)
    at_once = at_a_time(factors)
    for part, out in zip(values.split(at_once), factors.split(at_once), strict=True):
        bins = (part / width).clamp_max_(BINS - 1).int()
        out.copy_(torch.nn.functional.embedding(bins, table).flatten(1).mul_(size).round_())
    return factors
