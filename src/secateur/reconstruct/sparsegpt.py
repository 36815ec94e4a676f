"""SparseGPT (Frantar & Alistarh, *Massive Language Models Can Be Accurately Pruned in One-Shot*, ICML 2023).

Go through the columns from left to right. Each weight w_j that goes is made up for by the columns to its right, and
the error rises by w_j² / U_jj² (Algorithm 1; :mod:`secateur.reconstruct.columns` is the sweep).

Its own mask is chosen on the way by that rise, with the weights as they have become by then: unstructured, in each
block of 128 columns among all rows; N:M, in each group. A given mask (the "+ reconstruction" rows of the RIA paper's
Table 8) runs the same sweep and chooses nothing.

Weights of channels that never had an input cost nothing: they go first, all of them, whatever the mask says.

As published but for three things. G = Σ x xᵀ where the authors' code scales it by 2 over the number of sequences, which
changes nothing, since what is added to its diagonal follows the scale. Exactly the asked number of weights goes, over
all blocks together. And of equal rises the first stays.

Cost: O(I³) for the factor, which linears that share their inputs share, and O · I² for the sweep.
"""

import torch
from torch import Tensor

from secateur.masks import select
from secateur.patterns import NM, Pattern, Unstructured
from secateur.reconstruct.columns import PANEL, sweep_columns
from secateur.stats.gram import Gram


def sweep(dense: Tensor, gram: Gram, *, mask: Tensor | None = None, pattern: Pattern | None = None) -> Tensor:
    """Remove weights column after column, each time making up for it with the columns to the right.

    Args:
        dense: ``(O, I)`` float32.
        gram: of the inputs.
        mask: the given mask, bool ``(O, I)``; or else
        pattern: what its own mask must obey.

    Returns:
        ``(O, I)`` float32, exactly zero outside the mask and in dead channels.
    """
    weight = dense.masked_fill(gram.dead, 0)
    factor = gram.inverse_factor
    pivots = factor.diagonal()
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    group = pattern.group if isinstance(pattern, NM) else 1
    panel = max(group, PANEL - PANEL % group)  # a group must not reach over the edge of a panel

    def become(j: int, ahead: Tensor) -> Tensor:
        if mask is None:
            if isinstance(pattern, Unstructured) and j % panel == 0:
                here = slice(j, j + panel)
                kept[:, here] = _select_in_block(ahead**2 / pivots[here] ** 2, pattern, j, j + ahead.shape[1])
            elif isinstance(pattern, NM) and j % group == 0:
                here = slice(j, j + group)
                kept[:, here] = select(ahead[:, :group] ** 2 / pivots[here] ** 2, pattern)
        return torch.where(kept[:, j], ahead[:, 0], 0)

    sweep_columns(weight, factor, become, panel)
    return weight * kept


def _select_in_block(score: Tensor, pattern: Unstructured, start: int, stop: int) -> Tensor:
    """The mask of columns ``start`` to ``stop``; over all blocks exactly the asked number of weights goes."""
    competitors = len(score) if pattern.scope == "matrix" else 1
    removed = [round(pattern.sparsity * competitors * edge) for edge in (start, stop)]
    here = competitors * (stop - start)
    if removed[1] - removed[0] == here:
        return torch.zeros_like(score, dtype=torch.bool)
    return select(score, Unstructured((removed[1] - removed[0]) / here, pattern.scope))
