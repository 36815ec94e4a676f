"""The ways to bring a weight onto grids of few levels, by name.

Each is a function of the :class:`Unquantized` weight, and keeps what pruning has removed: where the mask is false the
code is the zero-point, which decodes to exactly 0. A new method is a function here and its entry in
:data:`QUANTIZATIONS`: the command line's choices and help and the tests over all methods follow from that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names in the table are wanted before torch is loaded
    import torch
    from torch import Tensor

    from secateur.quantization.grid import QuantizedWeight
    from secateur.stats.inputs import InputStats


@dataclass(frozen=True)
class Unquantized:
    """What a quantization starts from.

    Attributes:
        weight: W, ``(O, I)`` float32, zero outside the mask.
        mask: bool ``(O, I)``: what pruning has kept.
        inputs: statistics of the linear's inputs, with their Gram matrix if the method asks for it; None if it asks
            for none.
        bits: of a code.
        group: columns that share a grid; divides I.
        symmetric: whether every zero-point is the middle code.
        dtype: of the dense weight as it is stored.
    """

    weight: Tensor
    mask: Tensor
    inputs: InputStats | None
    bits: int
    group: int
    symmetric: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Quantization:
    """A method.

    Attributes:
        about: what it does, for the command line's help.
        needs_inputs: whether it takes statistics of the inputs, so calibration.
        needs_gram: whether their Gram matrix is among these.
        scales: whether the input channels of linears that read at one place are scaled first.
        quantize: the weight on its grid.
    """

    about: str
    needs_inputs: bool
    needs_gram: bool
    scales: bool
    quantize: Callable[[Unquantized], QuantizedWeight]


def rtn(given: Unquantized) -> QuantizedWeight:
    """The nearest level of each weight, on grids that reach to the largest."""
    from secateur.quantization.grid import QuantizedWeight, fit

    grid = fit(given.weight, given.bits, given.group, given.symmetric)
    return QuantizedWeight(grid, grid.codes(given.weight), given.dtype)


def gptq(given: Unquantized) -> QuantizedWeight:
    """GPTQ's sweep over the columns."""
    from secateur.quantization.gptq import masked_gptq
    from secateur.quantization.grid import QuantizedWeight

    assert given.inputs is not None
    grid, codes = masked_gptq(given.weight, given.mask, given.inputs.damped, given.bits, given.group, given.symmetric)
    return QuantizedWeight(grid, codes, given.dtype)


def awq(given: Unquantized) -> QuantizedWeight:
    """The nearest level of each weight, on grids whose ranges are AWQ's. Channels have been scaled before."""
    from secateur.quantization.awq import fit_to_outputs
    from secateur.quantization.grid import QuantizedWeight

    assert given.inputs is not None
    gram = given.inputs.gram
    assert gram is not None
    grid = fit_to_outputs(given.weight, gram, given.bits, given.group, given.symmetric)
    return QuantizedWeight(grid, grid.codes(given.weight), given.dtype)


QUANTIZATIONS: dict[str, Quantization] = {
    "rtn": Quantization(
        "round each weight to the nearest level, without samples",
        needs_inputs=False,
        needs_gram=False,
        scales=False,
        quantize=rtn,
    ),
    "gptq": Quantization(
        "round column after column, the later ones making up for the earlier",
        needs_inputs=True,
        needs_gram=True,
        scales=False,
        quantize=gptq,
    ),
    "awq": Quantization(
        "scale channels and cut ranges so that rounding changes outputs least, then round to the nearest level",
        needs_inputs=True,
        needs_gram=True,
        scales=True,
        quantize=awq,
    ),
}
