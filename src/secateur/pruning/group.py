"""Prune the linears that share their inputs: masks first, then steps that the guard may take back."""

from collections.abc import Sequence

from secateur.calibrate.guard import Trial
from secateur.models.spaces import Linear
from secateur.pruning.linear import LinearPruning
from secateur.pruning.prepare import Task
from secateur.pruning.visit import Visit


def prune_group(visit: Visit, group: Sequence[Linear], task: Task) -> None:
    """Prune the linears of a reader group in place, among the tensors of the visit and in the block's module.

    Each step is tried for all of them together, and taken back where it raises the error of the block's output on
    held-out samples: with the groups before as they will be written, and those after still dense. Without a guard
    every step is taken.

    Args:
        visit: gets the results. The statistics of the group are taken out of it, so that their memory is free at the
            end.
        group: linears that read at the same place.
        task: what each must become, and by which methods. Computed is on the device of the block's module.
    """
    block, guard = visit.block, visit.guard
    names = [block.full_name(linear) for linear in group]
    weights = [block.stored(linear, visit.tensors) for linear in group]
    prunings = [
        LinearPruning(name, weight, task.patterns[name], visit.stats.pop(linear.name, None), task.recipe, block.device)
        for name, weight, linear in zip(names, weights, group, strict=True)
    ]

    def error() -> float:
        if guard is None:
            return 0.0
        for linear, pruning in zip(group, prunings, strict=True):
            block.weight(linear).copy_(pruning.weight)
        return guard.error()

    before = error()
    for step in task.recipe.steps:
        if not any(pruning.loses for pruning in prunings):
            break  # nothing to mend: whatever a step did here would be worse
        states = [pruning.state for pruning in prunings]
        for pruning in prunings:
            pruning.step(step)
        after = error()
        kept = after <= before
        if guard is not None:
            visit.results.trials.append(Trial(names, step, before, after, kept))
        if kept:
            before = after
        else:
            for pruning, state in zip(prunings, states, strict=True):
                pruning.accept(*state)
    for linear, pruning, weight in zip(group, prunings, weights, strict=True):
        visit.results.layers.append(pruning.result())
        if pruning.order is not None:
            visit.results.orders[pruning.name] = pruning.order.cpu()
        weight.copy_(pruning.weight)
        block.weight(linear).copy_(pruning.weight)
