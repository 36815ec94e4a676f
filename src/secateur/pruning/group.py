"""Prune the linears that are judged together: masks first, then steps that the guard may take back."""

from collections.abc import Sequence

from torch import Tensor

from secateur.calibrate.guard import Trial
from secateur.memory import Kept
from secateur.models.spaces import Linear, reader_groups
from secateur.pruning.linear import LinearPruning
from secateur.pruning.prepare import Task
from secateur.pruning.visit import Visit


def prune_group(visit: Visit, group: Sequence[Linear], task: Task) -> None:
    """Prune linears in place, among the tensors of the visit and in the block's module.

    Each step is tried for all of them together, and taken back where it raises the error of the block's output on
    held-out samples: with the groups before as they will be written, and those after still dense. Without a guard
    every step is taken.

    Args:
        visit: gets the results. The statistics of the group are taken out of it, so that their memory is free at the
            end.
        group: linears that are judged together: a reader group, or all of a stack of experts.
        task: what each must become, and by which methods. Computed is on the device of the block's module.
    """
    block, guard = visit.block, visit.guard
    room = guard.room if guard else None
    readers: list[list[LinearPruning]] = []  # that share their statistics
    for linears in reader_groups(group):
        readers.append([])
        for linear in linears:
            name, weight = block.full_name(linear), _dense(visit, linear)
            stats = visit.stats.pop(linear.name, None)
            pruning = LinearPruning(name, weight, task.patterns[name], stats, task.recipe, block.device, room)
            readers[-1].append(pruning)
        _forget(readers[-1])
    prunings = [pruning for several in readers for pruning in several]

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
        for several in readers:
            for pruning in several:
                pruning.step(step)
            _forget(several)
        after = error()
        kept = after <= before
        if guard is not None:
            names = [pruning.name for pruning in prunings]
            visit.results.trials.append(Trial(names, step, before, after, kept))
        if kept:
            before = after
        else:
            for pruning, state in zip(prunings, states, strict=True):
                pruning.state = state
    for linear, pruning in zip(group, prunings, strict=True):
        visit.results.layers.append(pruning.result())
        if pruning.order is not None:
            visit.results.orders[pruning.name] = pruning.order.cpu()
        pruned = pruning.weight
        block.stored(linear, visit.tensors).copy_(pruned)
        block.weight(linear).copy_(pruned)


def _forget(readers: Sequence[LinearPruning]) -> None:
    """Free the factors that these have shared, before others make theirs."""
    for pruning in readers:
        pruning.forget()


def _dense(visit: Visit, linear: Linear) -> Tensor | Kept:
    """The weight as stored, which stays as it is while the guard has others in the module: if need be a copy."""
    weight, guard = visit.block.stored(linear, visit.tensors), visit.guard
    overwritten = weight.data_ptr() == visit.block.weight(linear).data_ptr()
    return guard.room.keep(weight.clone()) if guard and overwritten else weight
