"""Move a mask to a better one by exchanging weights, under the layer's exact objective. Ours.

With R = (W₀ − W)G, removing w_i from a row raises its error by w_i² G_ii + 2 r_i w_i, and giving w_j the value v after
that changes it by v² G_jj − 2v(r_j + w_i G_ij), which is least for v = (r_j + w_i G_ij) / G_jj. So what every exchange
of a kept for a removed weight does is known exactly without trying it: the best of each row and group is made where
it lowers the error, group after group, with R kept up to date. The error never rises, and the counts of the pattern
stay.

N:M exchanges inside its groups; unstructured masks among 16 channels that are drawn anew each round. The other weights
of a row do not follow an exchange at once: rounds of exchanges take turns with some steps of conjugate gradient.

Cost: a round is one pass over M² entries per group and row, and two products ``(O, I) @ (I, I)`` for R.
"""

import torch
from torch import Tensor

from secateur.patterns import NM, Pattern
from secateur.reconstruct.cg import masked_cg
from secateur.stats.gram import Gram

# Channels among which an unstructured mask exchanges weights in one visit; each round draws other ones.
NEIGHBOURS = 16
# The columns whose changes reach the rest of the matrix in one product.
PANEL = 128
# Of exchanges and new weights in turn: after three, further ones gain less than 1 % of the error, and warm-started
# as they are, so few steps of conjugate gradient suffice.
ROUNDS, STEPS = 3, 4


def refine(
    target: Tensor,
    mask: Tensor,
    gram: Gram,
    pattern: Pattern,
    weight: Tensor | None = None,
    *,
    refit: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Make the best exchange in each group of each row once, where there is one.

    The output error never rises, and each row of each group keeps its number of weights.

    Args:
        target: W₀, ``(O, I)`` float32.
        mask: bool ``(O, I)``, where to start.
        gram: of the inputs.
        pattern: what the mask obeys. N:M exchanges inside its groups, unstructured inside drawn sets of channels.
        weight: the weights to start from; ``target * mask`` by default.
        refit: give what comes its best value, rather than that of W₀.
        seed: of the draw of the sets.

    Returns:
        mask and weights, ``(O, I)`` both: bool, and float32 that is exactly zero outside the mask.
    """
    mask, weight = mask.clone(), (target if weight is None else weight) * mask
    if isinstance(pattern, NM):
        _pass(target, mask, gram.matrix, weight, pattern.group, refit)
        return mask, weight
    order = torch.randperm(mask.shape[1], generator=torch.Generator().manual_seed(seed)).to(mask.device)
    moved, changed = mask[:, order], weight[:, order]
    _pass(target[:, order], moved, gram.matrix[order][:, order], changed, NEIGHBOURS, refit)
    mask[:, order], weight[:, order] = moved, changed
    return mask, weight


def refined(
    target: Tensor, mask: Tensor, gram: Gram, pattern: Pattern, weight: Tensor, *, refit: bool, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """:func:`refine`, in turn with the best weights for the mask found so far if ``refit``: mask and weights.

    Exchanges go on paying after the other weights have followed. Neither half raises the output error.
    """
    for turn in range(rounds):
        mask, weight = refine(target, mask, gram, pattern, weight, refit=refit, seed=turn)
        if refit:
            weight = masked_cg(target, mask, gram, weight, STEPS)
    return mask, weight


def _pass(target: Tensor, mask: Tensor, gram: Tensor, weight: Tensor, group: int, refit: bool) -> None:
    """Visit every group of ``group`` columns once, changing ``mask`` and ``weight`` in place."""
    residual = (target - weight) @ gram
    channels, width = weight.shape[1], max(group, PANEL - PANEL % group)
    for start in range(0, channels, width):
        panel = slice(start, min(start + width, channels))
        before = weight[:, panel].clone()
        for first in range(start, panel.stop, group):
            here = slice(first, min(first + group, panel.stop))
            new = None if refit else target[:, here]
            change = _exchange(weight[:, here], mask[:, here], residual[:, here], gram[here, here], new)
            residual[:, panel] -= change @ gram[here, panel]
        residual[:, panel.stop :] -= (weight[:, panel] - before) @ gram[panel, panel.stop :]


def _exchange(weight: Tensor, mask: Tensor, residual: Tensor, gram: Tensor, new: Tensor | None) -> Tensor:
    """Make the best exchange of every row in one group, in place, where there is one; the change of the weights.

    ``new`` are the values that weights get when they come in, by default their best; all others are ``(O, M)``
    of the group's columns, or its ``(M, M)`` block of G.
    """
    size = gram.diagonal()
    removal = weight**2 * size + 2 * residual * weight  # (O, M)
    after = residual[:, None, :] + weight[:, :, None] * gram  # (O, M, M): the residual of j when i is gone
    value = after / size if new is None else new[:, None, :].expand_as(after)
    rise = removal[:, :, None] - (2 * after - value * size) * value
    rise = torch.where(mask[:, :, None] & ~mask[:, None, :], rise, torch.inf)
    least, place = rise.flatten(1).min(1)
    rows = (least < 0).nonzero()[:, 0]
    gone, come = place[rows] // len(size), place[rows] % len(size)
    change = torch.zeros_like(weight)
    change[rows, gone] = -weight[rows, gone]
    change[rows, come] = value[rows, gone, come]
    mask[rows, gone], mask[rows, come] = False, True
    weight += change
    weight[rows, gone] = 0
    return change
