"""What all reconstructions need of a Gram matrix."""

from functools import cached_property

import torch
from torch import Tensor

# Added to the diagonal, as a share of its mean, as SparseGPT does: fewer tokens than channels leave G singular.
DAMPING = 0.01


class Gram:
    """The damped Gram matrix of a linear's inputs, and its factors, each computed once for all who ask.

    Attributes:
        matrix: G, positive definite, ``(I, I)`` float32: the sums with ``damping`` times their mean diagonal
            added to the diagonal. A channel that never had an input gets 1 where that mean is 0 as well.
    """

    def __init__(self, sums: Tensor, damping: float = DAMPING) -> None:
        """Damp ``sums``, Σ x xᵀ, ``(I, I)`` of any floating dtype."""
        self.matrix = sums.float().clone()
        diagonal = self.matrix.diagonal()
        diagonal += damping * diagonal.mean()
        diagonal[diagonal == 0] = 1

    @cached_property
    def inverse_factor(self) -> Tensor:
        """U, upper triangular, with UᵀU = G⁻¹: ``(I, I)`` float32."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.matrix))
        return torch.linalg.cholesky(inverse, upper=True)

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """[G⁻¹]_jj, ``(I,)`` float32."""
        return self.inverse_factor.square().sum(0)

    @cached_property
    def unit(self) -> Tensor:
        """The root of the diagonal of G, ``(I,)`` float32: what makes all channels alike when it is divided by."""
        return self.matrix.diagonal().sqrt()

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``(I,)``, rising, and eigenvectors ``(I, I)``, as columns, of G / unit / unitᵀ."""
        values, vectors = torch.linalg.eigh(self.matrix / self.unit[:, None] / self.unit)
        return values, vectors


def output_error(weight: Tensor, dense: Tensor, gram: Tensor) -> float:
    """‖X(dense − weight)ᵀ‖ / ‖X·denseᵀ‖ in the Frobenius norm; 0 where the dense output is all zero.

    ``gram`` is Σ x xᵀ as it is, without damping.
    """
    lost, whole = (((w @ gram) * w).sum(dtype=torch.float64).clamp_min(0) for w in (dense - weight, dense))
    return (lost / whole).sqrt().item() if whole > 0 else 0.0
