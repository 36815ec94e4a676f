"""Move mask and weights together, by ADMM (ALPS; Meng et al., *ALPS: Improved Optimization for Highly Sparse
One-Shot Pruning for Large Language Models*, NeurIPS 2024, arXiv 2406.07831)."""

import torch
from torch import Tensor

from secateur.reconstruct.cg import masked_cg
from secateur.reconstruct.gram import Gram, output_error
from secateur.sparsity import Pattern, select


def admm(dense: Tensor, mask: Tensor, gram: Gram, pattern: Pattern, steps: int = 60) -> tuple[Tensor, Tensor]:
    """Look for a better mask than ``mask``, and its weights.

    Minimises the output error subject to W = D, where D obeys the pattern:
    B = (G + ρI)⁻¹(G W₀ − V + ρD), D = P(B + V/ρ), V += ρ(B − D), with ρ growing while the mask still moves.
    What it ends with is kept only where it is better than the given mask's own best weights.

    Args:
        dense: ``(O, I)`` float32.
        mask: bool ``(O, I)``, where to start.
        gram: of the inputs.
        pattern: what the mask must obey.
        steps: at most.

    Returns:
        mask and weights, both ``(O, I)``.
    """
    # In units in which every channel has the same input, so that magnitudes can be compared.
    values, vectors = gram.spectrum
    target = dense * gram.unit
    split, dual = target * mask, torch.zeros_like(dense)
    current, rho = mask, 0.1
    pull = (dense @ gram.matrix) / gram.unit
    for step in range(steps):
        solved = ((pull - dual + rho * split) @ vectors / (values + rho)) @ vectors.T
        moved = solved + dual / rho
        now = select(moved.abs(), pattern)
        split = moved * now
        dual += rho * (solved - split)
        if step % 3 == 2:  # ρ grows faster the more the mask still moves, as in ALPS' schedule
            changed = (now != current).float().mean().item()
            current = now
            if changed == 0:
                break
            rho *= 1.3 if changed > 0.01 else 1.1
    before, after = masked_cg(dense, mask, gram), masked_cg(dense, current, gram, split / gram.unit)
    if output_error(after, dense, gram.matrix) < output_error(before, dense, gram.matrix):
        return current, after
    return mask, before
