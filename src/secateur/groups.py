"""Prune the linears that share their inputs: masks first, then steps that the guard may take back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.layers import LayerResult, Pruning
from secateur.models.blocks import Block
from secateur.models.guard import Guard, Trial
from secateur.models.spaces import Linear
from secateur.models.stream import Stream
from secateur.recipe import Recipe
from secateur.stats import InputStats

# Output errors are measured on about this many input rows of each linear, spread over all samples.
ERROR_ROWS = 256


def calibrate(stream: Stream, index: int, recipe: Recipe) -> tuple[dict[str, InputStats], Guard | None]:
    """The statistics of block ``index``, still dense, and its guard if samples are held out.

    One-shot, the samples move on through the block in the same pass.
    """
    guard = Guard(stream, index) if stream.held_out < len(stream.hidden) else None
    last = index + 1 == len(stream.blocks)
    stride = max(1, stream.tokens // ERROR_ROWS)
    return stream.observe(index, stride, recipe.one_shot and not last, recipe.needs_gram), guard


def prune_group(
    block: Block,
    group: Sequence[Linear],
    tensors: dict[str, Tensor],
    stats: dict[str, InputStats],
    recipe: Recipe,
    orders: dict[str, Tensor],
    guard: Guard | None,
    device: torch.device,
) -> tuple[list[LayerResult], list[Trial]]:
    """Prune the linears of a reader group, in place among ``tensors``, and give them to the block's module.

    Args:
        block: which they belong to; its other linears are as they are to be while steps are judged.
        group: linears that read at the same place.
        tensors: the block's, by full name, as stored.
        stats: by the linears' names; those of the group are taken out, so that their memory is free at the end.
        recipe: what to do.
        orders: gets the orders that linears choose for themselves.
        guard: judges the recipe's steps; without, all are taken.
        device: where to compute.
    """
    names = [block.full_name(linear) for linear in group]
    weights = [block.stored(linear, tensors) for linear in group]
    inputs = [stats.pop(linear.name, None) for linear in group]
    prunings = [
        Pruning(name, weight, seen, recipe, device, orders)
        for name, weight, seen in zip(names, weights, inputs, strict=True)
    ]

    def error() -> float:
        if guard is None:
            return 0.0
        for linear, pruning in zip(group, prunings, strict=True):
            block.weight(linear).copy_(pruning.weight)
        return guard.error()

    trials = []
    before = error()
    for step in recipe.steps:
        states = [pruning.state for pruning in prunings]
        for pruning in prunings:
            pruning.step(step)
        after = error()
        kept = after <= before
        trials.append(Trial(names, step, before, after, kept))
        if kept:
            before = after
        else:
            for pruning, state in zip(prunings, states, strict=True):
                pruning.accept(*state)
    results = [pruning.result() for pruning in prunings]
    for linear, pruning, weight in zip(group, prunings, weights, strict=True):
        weight.copy_(pruning.weight)
        block.weight(linear).copy_(pruning.weight)
    return results, trials if guard else []
