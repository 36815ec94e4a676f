"""The Gram matrix of a linear's inputs, and what methods need of it.

G = Σ x xᵀ over the calibration tokens says all that a linear's output error depends on: for a change D of the
weight, ‖X Dᵀ‖² = tr(D G Dᵀ). With fewer tokens than channels it is singular, and with few it is noisy, so methods
take it with something added to its diagonal: SparseGPT a share of the mean diagonal, as published
(:func:`damped`); ours a share of each channel's own (:func:`shrunk`), which held-out text preferred
(docs/reconstruction.md).

Cost: a factor is O(I³), once for all linears that share their inputs; the matrix itself takes 4 I² bytes.
"""

from functools import cached_property

import torch
from torch import Tensor

# Added to the diagonal, as a share of its mean: SparseGPT's.
DAMPING = 0.01
# Added to the diagonal, as a share of itself: measured (docs/reconstruction.md).
SHRINKAGE = 0.2


class Gram:
    """The Gram matrix of a linear's inputs, and its factors, each computed once for all who ask.

    Attributes:
        matrix: G, positive definite, ``(I, I)`` float32.
        dead: which channels never had an input, bool ``(I,)``; by default none.
    """

    def __init__(self, matrix: Tensor, dead: Tensor | None = None) -> None:
        self.matrix = matrix
        self.dead = torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device) if dead is None else dead

    @cached_property
    def inverse_factor(self) -> Tensor:
        """U, upper triangular, with UᵀU = G⁻¹: ``(I, I)`` float32."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.matrix))
        return torch.linalg.cholesky(inverse, upper=True)

    @cached_property
    def descending(self) -> tuple[Tensor, "Gram"]:
        """The channels by falling diagonal, int64 ``(I,)``, and G with its channels in that order."""
        order = self.matrix.diagonal().argsort(descending=True, stable=True)
        return order, Gram(self.matrix[order][:, order], self.dead[order])

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


def damped(sums: Tensor, sequences: int = 1) -> Gram:
    """Σ x xᵀ, ``(I, I)``, as SparseGPT takes it: with a share of its mean diagonal added to the diagonal.

    Fewer tokens than channels leave the sums singular. The authors' H is 2 / ``sequences`` times these sums, and what
    they do before the damping depends on that scale: a dead channel's diagonal becomes 1, here half the sequences.
    """
    gram = _with_dead(sums, max(1, sequences) / 2)
    diagonal = gram.matrix.diagonal()
    diagonal += DAMPING * diagonal.mean()
    return gram


def shrunk(sums: Tensor) -> Gram:
    """Σ x xᵀ, ``(I, I)``, with every channel's own diagonal raised by the same share.

    Correlations between channels count for less by 1 / (1 + :data:`SHRINKAGE`), as is usual for covariances
    estimated from few samples; the weights are drawn towards the dense ones, by as much in loud channels as
    in quiet ones.
    """
    gram = _with_dead(sums, 1)
    diagonal = gram.matrix.diagonal()
    diagonal += SHRINKAGE * sums.diagonal()
    return gram


def _with_dead(sums: Tensor, alone: float) -> Gram:
    """A copy of the sums with ``alone`` on the diagonal of the channels that never had an input."""
    matrix = sums.float().clone()
    diagonal = matrix.diagonal()
    dead = diagonal == 0
    diagonal[dead] = alone
    return Gram(matrix, dead)


def output_error(weight: Tensor, dense: Tensor, gram: Tensor) -> float:
    """‖X(dense − weight)ᵀ‖ / ‖X·denseᵀ‖ in the Frobenius norm; 0 where the dense output is all zero.

    ``gram`` is Σ x xᵀ as it is, without damping.
    """
    lost, whole = (((w @ gram) * w).sum(dtype=torch.float64).clamp_min(0) for w in (dense - weight, dense))
    return (lost / whole).sqrt().item() if whole > 0 else 0.0
