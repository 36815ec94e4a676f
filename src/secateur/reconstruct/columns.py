"""The sweep over the columns of a weight that SparseGPT and GPTQ share.

Columns become, from left to right, something else than they were: zero where weights are removed, levels of a grid
where they are quantized. What column j loses by that, e, is made up for by the columns to its right, and by no others:
with U the upper Cholesky factor of G⁻¹ (UᵀU = G⁻¹) the best change of a row is

    w ← w − (e / U_jj) · U_j,j:          and the error rises by e² / U_jj²

Cost: O · I² for a weight ``(O, I)``, in panels, so that most of it is matrix products.
"""

from collections.abc import Callable

from torch import Tensor

PANEL = 128


def sweep_columns(weight: Tensor, factor: Tensor, become: Callable[[int, Tensor], Tensor], panel: int = PANEL) -> None:
    """Let every column become something else, each time making up for it with the columns to its right.

    Args:
        weight: ``(O, I)`` float32; changed in place, and spent afterwards.
        factor: U, ``(I, I)``.
        become: is given the number j of a column, and the columns from j to the end of its panel as they are by then,
            ``(O, 1 … panel)``; returns what column j becomes, ``(O,)``. Called once for each column, in order.
        panel: columns whose changes reach the rest of the matrix in one product.
    """
    for start in range(0, weight.shape[1], panel):
        stop = min(start + panel, weight.shape[1])
        columns, local = weight[:, start:stop], factor[start:stop, start:stop]
        errors = columns.new_empty(columns.shape)
        for j in range(stop - start):
            error = (columns[:, j] - become(start + j, columns[:, j:])) / local[j, j]
            columns[:, j:] -= error[:, None] * local[j, j:]
            errors[:, j] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
