"""The ways to reconstruct a pruned weight, by name.

Each is a function of the :class:`Pruned` weight; it returns mask and weights, both ``(O, I)``: bool, and float32 that
is exactly zero outside the mask. A new method is a function here and its entry in :data:`RECONSTRUCTIONS`: recipes, the
command line's help (the first sentence of its docstring) and the tests over all methods follow from that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.patterns import Pattern

if TYPE_CHECKING:  # the names in the table are wanted before torch is loaded
    from torch import Tensor

    from secateur.stats.inputs import InputStats


@dataclass(frozen=True)
class Pruned:
    """What a reconstruction starts from.

    Attributes:
        dense: W₀, ``(O, I)`` float32.
        mask: bool ``(O, I)``.
        weight: W so far, ``(O, I)`` float32, zero outside the mask.
        inputs: statistics of the linear's inputs, their Gram matrix included.
        pattern: what a mask must obey, if the method changes it.
    """

    dense: Tensor
    mask: Tensor
    weight: Tensor
    inputs: InputStats
    pattern: Pattern


Reconstruction = Callable[[Pruned], "tuple[Tensor, Tensor]"]


def sparsegpt(pruned: Pruned) -> tuple[Tensor, Tensor]:
    """SparseGPT's sweep over the columns (with the score sparsegpt it chooses the mask as it goes)."""
    from secateur.reconstruct.sparsegpt import sweep

    return pruned.mask, sweep(pruned.dense, pruned.inputs.damped, mask=pruned.mask)


def cg(pruned: Pruned) -> tuple[Tensor, Tensor]:
    """Conjugate gradient on the layer's exact objective, for the mask as it is."""
    from secateur.reconstruct.cg import masked_cg

    return pruned.mask, masked_cg(pruned.dense, pruned.mask, pruned.inputs.shrunk, pruned.weight)


def admm(pruned: Pruned) -> tuple[Tensor, Tensor]:
    """ADMM, which moves mask and weights together (ALPS), then conjugate gradient."""
    from secateur.reconstruct.admm import masked_admm

    return masked_admm(pruned.dense, pruned.mask, pruned.inputs.shrunk, pruned.pattern)


RECONSTRUCTIONS: dict[str, Reconstruction] = {
    "sparsegpt": sparsegpt,
    "cg": cg,
    "admm": admm,
}
