"""SparseGPT (Frantar & Alistarh, *Massive Language Models Can Be Accurately Pruned in One-Shot*, ICML 2023)."""

import torch
from torch import Tensor

from secateur.reconstruct.gram import Gram
from secateur.sparsity import NM, Pattern, Unstructured, select

BLOCK = 128


def sparsegpt(dense: Tensor, gram: Gram, *, mask: Tensor | None = None, pattern: Pattern | None = None) -> Tensor:
    """Remove weights column after column, each time making up for it with the columns to the right.

    With U the upper Cholesky factor of G⁻¹, removing w_j changes the row by −(w_j / U_jj) · U_j,j: (Algorithm 1).
    Its own mask is chosen as it goes: unstructured, in each block of columns among all rows; N:M, in each
    group; by w² / U_jj², with the weights as they have become by then.

    Args:
        dense: ``(O, I)`` float32.
        gram: of the inputs.
        mask: the given mask, bool ``(O, I)``; or else
        pattern: what its own mask must obey.

    Returns:
        ``(O, I)`` float32, exactly zero outside the mask.
    """
    weight = dense.clone()
    factor = gram.inverse_factor
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    width = weight.shape[1]
    group = pattern.group if isinstance(pattern, NM) else 1
    block = max(group, BLOCK - BLOCK % group)  # a group must not reach over the edge of a block
    for start in range(0, width, block):
        stop = min(start + block, width)
        columns = weight[:, start:stop]
        errors = torch.zeros_like(columns)
        local = factor[start:stop, start:stop]
        if mask is None and isinstance(pattern, Unstructured):
            kept[:, start:stop] = _select_in_block(columns**2 / local.diagonal() ** 2, pattern, start, stop)
        for j in range(stop - start):
            if mask is None and isinstance(pattern, NM) and j % pattern.group == 0:
                ahead = slice(j, j + pattern.group)
                importance = columns[:, ahead] ** 2 / local.diagonal()[ahead] ** 2
                kept[:, start + j : start + j + pattern.group] = select(importance, pattern)
            removed = torch.where(kept[:, start + j], 0, columns[:, j]) / local[j, j]
            columns[:, j:] -= removed[:, None] * local[j, j:]
            errors[:, j] = removed
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight * kept


def _select_in_block(score: Tensor, pattern: Unstructured, start: int, stop: int) -> Tensor:
    """The mask of columns ``start`` to ``stop``; over all blocks exactly the asked number of weights goes."""
    competitors = len(score) if pattern.scope == "matrix" else 1
    removed = [round(pattern.sparsity * competitors * edge) for edge in (start, stop)]
    here = competitors * (stop - start)
    if removed[1] - removed[0] == here:
        return torch.zeros_like(score, dtype=torch.bool)
    return select(score, Unstructured((removed[1] - removed[0]) / here, pattern.scope))


def importance(dense: Tensor, gram: Gram) -> Tensor:
    """w² / [G⁻¹]_jj: how much the error rises when this weight goes and the others make up for it, ``(O, I)``.

    It is what the sweep compares, before any weight is removed: there U_jj² is [G⁻¹]_jj of the columns from j on.
    """
    return dense**2 / gram.inverse_diagonal
