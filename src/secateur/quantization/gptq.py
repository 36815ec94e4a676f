"""GPTQ (Frantar et al., *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*).

Source: ICLR 2023, arXiv 2210.17323.

Round the columns one after the other, and let those that are not rounded yet make up for what the others have lost:
the sweep of SparseGPT (:mod:`secateur.reconstruct.columns`), in which a column becomes the nearest levels of its grid.
A weight that pruning has removed becomes zero again: what updates have made of it by then is an error like any other,
and goes to the columns to its right. So the mask is kept, and costs less than one that is put back when all is done.

The columns come by falling diagonal of the Gram matrix, so that loud channels are rounded while many others can still
make up for them ("act-order"). A group's grid is settled before the sweep, so groups stay what they are in the weight
("static groups").

Ours is how a grid is found: of some ranges the one that costs least, where a change d of column j costs d² / U_jj²,
what remains of its error when the columns after it have made up for it. docs/quantization.md has what each of these is
worth. And weights of channels that never had an input are rounded to the nearest level, where the authors' code removes
them.

Cost: O(I³) for the factor, which linears that share their inputs share, and O · I² for the sweep.
"""

import torch
from torch import Tensor

from secateur.quantization.grid import Grid, fit_clipped
from secateur.reconstruct.columns import sweep_columns
from secateur.stats.gram import Gram


def masked_gptq(
    weight: Tensor, mask: Tensor, gram: Gram, bits: int, group: int, symmetric: bool = False
) -> tuple[Grid, Tensor]:
    """A grid for the weight, and its codes: :func:`fitted`, then :func:`sweep`.

    Args:
        weight: ``(O, I)`` float32, zero outside the mask.
        mask: bool ``(O, I)``.
        gram: of the inputs.
        bits: of a code.
        group: columns that share a grid; divides I.
        symmetric: whether every zero-point is the middle code.
    """
    grid = fitted(weight, gram, bits, group, symmetric)
    return grid, sweep(weight, mask, gram, grid)


def fitted(weight: Tensor, gram: Gram, bits: int, group: int, symmetric: bool) -> Grid:
    """The grids on which rounding costs least once the columns that come later have made up for it."""
    order, ordered = gram.descending
    price = torch.empty_like(gram.matrix[0])
    price[order] = ordered.inverse_factor.diagonal() ** -2
    return fit_clipped(
        weight, bits, group, symmetric, lambda change: (change**2 * price).unflatten(1, (-1, group)).sum(-1)
    )


def sweep(weight: Tensor, mask: Tensor, gram: Gram, grid: Grid) -> Tensor:
    """Round column after column to ``grid``: codes, uint8 ``(O, I)``, which outside the mask are the zero-points."""
    order, ordered = gram.descending
    numbers = order.tolist()
    codes = torch.empty_like(mask, dtype=torch.uint8)

    def become(place: int, ahead: Tensor) -> Tensor:
        j = numbers[place]
        column = grid.column(j)
        code = torch.where(mask[:, j, None], column.codes(ahead[:, :1]), column.zeros)
        codes[:, j] = code[:, 0]
        return column.values(code)[:, 0]

    sweep_columns(weight[:, order], ordered.inverse_factor, become)
    return codes
