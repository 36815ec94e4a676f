"""Move mask and weights together, by ADMM (ALPS; Meng et al., *ALPS: Improved Optimization for Highly Sparse
One-Shot Pruning for Large Language Models*, NeurIPS 2024, arXiv 2406.07831)."""

import torch
from torch import Tensor

from secateur.reconstruct.cg import masked_cg
from secateur.reconstruct.gram import Gram, output_error
from secateur.sparsity import Pattern, select

# ρ, in units in which every channel has the same input, grows geometrically: from where masks still move freely to
# where they have settled. ALPS grows it by how much the mask moved; twice as many steps of that ended no lower.
STEPS, RHO, GROWTH = 30, 0.3, 1.1


def admm(dense: Tensor, mask: Tensor, gram: Gram, pattern: Pattern, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Look for a better mask than ``mask``, and its weights.

    Minimises the output error subject to W = D, where D obeys the pattern:
    B = (G + ρI)⁻¹(G W₀ − V + ρD), D = P(B + V/ρ), V += ρ(B − D), with growing ρ; then conjugate gradient. What it
    ends with is kept only where it is better than the given mask's own best weights.

    Args:
        dense: ``(O, I)`` float32.
        mask: bool ``(O, I)``, where to start.
        gram: of the inputs.
        pattern: what the mask must obey.
        steps: each is two matrix products ``(O, I) @ (I, I)``.

    Returns:
        mask and weights, both ``(O, I)``.
    """
    values, vectors = gram.spectrum
    pull = (dense @ gram.matrix) / gram.unit
    split, dual, rho, moved = dense * gram.unit * mask, torch.zeros_like(dense), RHO, mask
    for _ in range(steps):
        solved = ((pull - dual + rho * split) @ vectors / (values + rho)) @ vectors.T
        aim = solved + dual / rho
        moved = select(aim.abs(), pattern)
        split = aim * moved
        dual += rho * (solved - split)
        rho *= GROWTH
    before, after = masked_cg(dense, mask, gram), masked_cg(dense, moved, gram, split / gram.unit)
    if output_error(after, dense, gram.matrix) < output_error(before, dense, gram.matrix):
        return moved, after
    return mask, before
