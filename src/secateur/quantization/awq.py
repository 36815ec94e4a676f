"""AWQ (Lin et al., *AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration*).

Source: MLSys 2024, arXiv 2306.00978.

Two searches before the weights are rounded to the nearest level.

Scales: the columns of all linears that read at one place are multiplied by s, and what comes before them is divided
by it (:mod:`secateur.models.scale`), which changes nothing until the weights are rounded: then those of channels with
large inputs are rounded relatively finer. s = a^r, where a is the size of each channel's inputs, normalised so that the
largest times the smallest is 1; r is the one of 0, 1/20 … 19/20 that changes the outputs of these linears least.

Ranges: each group of a row has its own, cut to as little as half, by what the group adds to its linear's output.

Weights that are zero stay zero in both.

What differs from the authors' code. a is the root of the mean square, which the statistics have, where theirs is the
mean magnitude. s is rounded to a power of two, so that no product or quotient by it is rounded: the scaled model
computes the same bits. Outputs are those of the linears for all calibration inputs, by their Gram matrix, where theirs
are those of the module (such as the whole attention) for a sample. And the ranges of queries and keys are searched as
well. docs/quantization.md has what these are worth.

Cost: for each linear 20 products ``(O, I) @ (I, I)``, and for the ranges 11 products ``(O, group) @ (group, group)`` of
each group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.quantization.grid import Grid, fit, fit_clipped

STEPS = 20
# Channels whose inputs are smaller than this share of the largest are scaled as if they had it.
SMALLEST = 1e-4


def find_scales(
    weights: Sequence[Tensor], gram: Tensor, sizes: Tensor, bits: int, group: int, symmetric: bool = False
) -> Tensor:
    """What to multiply the columns of all ``weights`` by, ``(I,)`` float32: powers of two.

    Args:
        weights: of the linears that read at one place, float32 ``(O, I)`` each.
        gram: Σ x xᵀ of their inputs, ``(I, I)``.
        sizes: a, ``(I,)``.
        bits: of a code.
        group: columns that share a grid; divides I.
        symmetric: whether every zero-point is the middle code.
    """
    candidates = [_power_of_two(sizes, step / STEPS) for step in range(STEPS)]

    def cost(scales: Tensor) -> float:
        lost = 0.0
        for weight in weights:
            grid = fit(weight * scales, bits, group, symmetric)
            change = grid.values(grid.codes(weight * scales)) / scales - weight
            lost += ((change @ gram) * change).sum(dtype=torch.float64).item()
        return lost

    return min(candidates, key=cost)


def _power_of_two(sizes: Tensor, ratio: float) -> Tensor:
    """sizes^ratio, normalised and rounded."""
    sizes = sizes.clamp(min=SMALLEST * sizes.max()) if sizes.any() else torch.ones_like(sizes)
    logarithms = ratio * sizes.log2()
    return (logarithms - (logarithms.max() + logarithms.min()) / 2).round().exp2()


def fit_to_outputs(weight: Tensor, gram: Tensor, bits: int, group: int, symmetric: bool = False) -> Grid:
    """The grids on which rounding changes least what each group adds to the output.

    Args:
        weight: float32 ``(O, I)``.
        gram: Σ x xᵀ of its inputs, ``(I, I)``.
        bits: of a code.
        group: columns that share a grid; divides I.
        symmetric: whether every zero-point is the middle code.
    """
    blocks = gram.unflatten(0, (-1, group)).unflatten(2, (-1, group)).diagonal(dim1=0, dim2=2)  # (group, group, G)

    def cost(change: Tensor) -> Tensor:
        parts = change.unflatten(1, (-1, group)).transpose(0, 1)  # (G, O, group)
        return ((parts @ blocks.movedim(2, 0)) * parts).sum(-1).T

    return fit_clipped(weight, bits, group, symmetric, cost)
