"""Move mask and weights together, by the alternating direction method of multipliers.

Source: ALPS (Meng et al., *ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models*,
NeurIPS 2024, arXiv 2406.07831). Minimise the output error tr((W₀ − W) G (W₀ − W)ᵀ) subject to W = D, where D obeys the
pattern. With a multiplier V and a penalty ρ > 0, in turn:

    W ← (G + ρI)⁻¹ (G W₀ − V + ρD)        the best weights that are drawn towards D
    D ← P(W + V/ρ)                         the nearest weights that obey the pattern
    V ← V + ρ (W − D)

ρ grows from step to step: from where the mask still moves freely to where it has settled. Then the mask stays, and
conjugate gradient finds its best weights.

What differs from ALPS: all is done in units in which every channel has the same input, so that one ρ fits all layers;
ρ follows a fixed schedule, where ALPS grows it by how much the mask moved, which took twice as many steps to end no
lower; and what it ends with is kept only where it is better than the given mask with its own best weights.

Cost: one eigendecomposition of G, which linears that share their inputs share, and two products ``(O, I) @ (I, I)`` a
step.
"""

import torch
from torch import Tensor

from secateur.masks import select
from secateur.patterns import Pattern
from secateur.reconstruct.cg import masked_cg
from secateur.stats.gram import Gram, output_error

STEPS, RHO, GROWTH = 30, 0.3, 1.1


def masked_admm(dense: Tensor, mask: Tensor, gram: Gram, pattern: Pattern, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Look for a better mask than ``mask``, and its weights.

    Args:
        dense: W₀, ``(O, I)`` float32.
        mask: bool ``(O, I)``, where to start.
        gram: of the inputs.
        pattern: what the mask must obey.
        steps: each is two matrix products ``(O, I) @ (I, I)``.

    Returns:
        mask and weights, both ``(O, I)``.
    """
    # W, D, V and G W₀ as above, in units of gram.unit: weights are multiplied by it, what G multiplies is divided.
    values, vectors = gram.spectrum
    gw0 = (dense @ gram.matrix) / gram.unit
    d, v, rho, moved = dense * gram.unit * mask, torch.zeros_like(dense), RHO, mask
    for _ in range(steps):
        w = ((gw0 - v + rho * d) @ vectors / (values + rho)) @ vectors.T
        target = w + v / rho
        moved = select(target.abs(), pattern)
        d = target * moved
        v += rho * (w - d)
        rho *= GROWTH
    before, after = masked_cg(dense, mask, gram), masked_cg(dense, moved, gram, d / gram.unit)
    if output_error(after, dense, gram.matrix) < output_error(before, dense, gram.matrix):
        return moved, after
    return mask, before
