"""What all reconstructions need of a Gram matrix."""

import torch
from torch import Tensor

# Added to the diagonal, as a share of its mean, as SparseGPT does: fewer tokens than channels leave G singular.
DAMPING = 0.01


def damped(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """``gram`` with ``damping`` times its mean diagonal added to its diagonal: float32 ``(I, I)``.

    A channel that never had an input gets 1 on its diagonal where that mean is 0 as well, so that the
    result is positive definite in any case.
    """
    gram = gram.float().clone()
    diagonal = gram.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1
    return gram


def output_error(weight: Tensor, dense: Tensor, gram: Tensor) -> float:
    """‖X(dense − weight)ᵀ‖ / ‖X·denseᵀ‖ in the Frobenius norm; 0 where the dense output is all zero."""
    lost, whole = (((w @ gram) * w).sum(dtype=torch.float64).clamp_min(0) for w in (dense - weight, dense))
    return (lost / whole).sqrt().item() if whole > 0 else 0.0
