"""The best weights for a given mask, by preconditioned conjugate gradient on the layer's exact objective.

Each row w of the weight is a least-squares problem of its own over the entries that its mask keeps: minimise
(w₀ − w) G (w₀ − w)ᵀ. Solving them exactly would take one factor of a different submatrix of G for every row; conjugate
gradient needs only products with G, and those of all rows are one product of matrices. It is the usual method (Hestenes
& Stiefel, *Methods of Conjugate Gradients for Solving Linear Systems*, 1952), restricted to the mask by masking every
residual, with step lengths for each row, preconditioned by the diagonal of G. ALPS ends with the same.

Cost: one product ``(O, I) @ (I, I)`` a step. About ten steps reach what counts, and they are warm-started where weights
are there already.
"""

import torch
from torch import Tensor

from secateur.stats.gram import Gram


def masked_cg(dense: Tensor, mask: Tensor, gram: Gram, start: Tensor | None = None, steps: int = 10) -> Tensor:
    """Minimise tr((dense − W) G (dense − W)ᵀ) over the W that are zero outside ``mask``.

    The rows of W are independent least-squares problems with one G: each has step lengths of its own, and
    one step of all of them is one matrix product. Preconditioned by the diagonal of G. The error never
    rises from one step to the next.

    Args:
        dense: ``(O, I)`` float32.
        mask: bool ``(O, I)``.
        gram: of the inputs.
        start: where to begin, ``(O, I)``; the masked dense weight by default.
        steps: each is one matrix product ``(O, I) @ (I, I)``; as many as I reach the optimum exactly.

    Returns:
        ``(O, I)`` float32, exactly zero outside the mask.
    """
    weight = (dense if start is None else start) * mask
    scale = gram.matrix.diagonal().reciprocal()
    residual = ((dense - weight) @ gram.matrix) * mask
    direction = preconditioned = residual * scale
    size = (residual * preconditioned).sum(1, keepdim=True)
    for _ in range(steps):
        image = (direction @ gram.matrix) * mask
        curvature = (direction * image).sum(1, keepdim=True)
        step = torch.where(curvature > 0, size / curvature, 0)  # rows that have arrived stay
        weight = weight + step * direction
        residual = residual - step * image
        preconditioned = residual * scale
        before, size = size, (residual * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + torch.where(before > 0, size / before, 0) * direction
    return weight
