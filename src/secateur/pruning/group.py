"""Prune the linears that are judged together: masks first, then steps that the guard may take back."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from secateur.calibrate.guard import Trial
from secateur.memory import Kept
from secateur.models.spaces import Linear, reader_groups
from secateur.options import Step
from secateur.pruning.linear import LinearPruning
from secateur.pruning.prepare import Task
from secateur.pruning.result import LayerResult
from secateur.pruning.visit import Visit
from secateur.ranks import Ranks


def prune_groups(visit: Visit, groups: Sequence[Sequence[Linear]], task: Task, ranks: Ranks) -> None:
    """Prune linears in place, among the tensors of the visit and in the block's module.

    Each step is tried for all of a group together, and taken back where it raises the error of the block's output on
    held-out samples: with the groups before as they will be written, and those after still dense. Without a guard
    every step is taken.

    Masks, and the first step, need nothing but the statistics, so ranks work on different groups at the same time. What
    they come to is then judged group by group, by all ranks.

    Args:
        visit: gets the results. The statistics of the groups are taken out of it, so that their memory is free at the
            end.
        groups: linears that are judged together: a reader group, or all of a stack of experts.
        task: what each must become, and by which methods. Computed is on the device of the block's module.
        ranks: who prunes this block. All of them have the same weights and results at the end.
    """
    several = [reader_groups(group) for group in groups]
    owners = iter(ranks.deal([_cost(visit, readers) for group in several for readers in group]))
    begun = [[_Readers(visit, readers, task, ranks, next(owners)) for readers in group] for group in several]
    for group in begun:
        _judge(visit, group, task, ranks)


def _cost(visit: Visit, readers: Sequence[Linear]) -> float:
    """About how long a reader group takes, in some unit: a factor of its Gram matrix, and products with that."""
    rows, features = zip(*(visit.block.weight(linear).shape for linear in readers), strict=True)
    return float(features[0] ** 2 * (features[0] + sum(rows)))


def _judge(visit: Visit, group: Sequence["_Readers"], task: Task, ranks: Ranks) -> None:
    """Take those steps for a group that help."""
    guard = visit.guard

    def error() -> float:
        if guard is None:
            return 0.0
        for readers in group:
            for linear, weight in readers.weights():
                visit.block.weight(linear).copy_(weight)
        return guard.error()

    before = error()
    for step in task.recipe.steps:
        if not any(ranks.gather(any(readers.loses for readers in group))):
            break  # nothing to mend: whatever a step did here would be worse
        states = [readers.states for readers in group]
        for readers in group:
            readers.step(step)
        after = error()
        kept = after <= before
        if guard is not None:
            names = [visit.block.full_name(linear) for readers in group for linear in readers.linears]
            visit.results.trials.append(Trial(names, step, before, after, kept))
        if kept:
            before = after
        else:
            for readers, state in zip(group, states, strict=True):
                readers.states = state
    for readers in group:
        readers.finish()


class _Readers:
    """The linears that read at one place and share their statistics. One rank prunes them, and gives all the weights.

    Attributes:
        linears: the linears.
        states: mask and weights of each as they are now, to come back to; none in a rank that does not own them.
    """

    def __init__(self, visit: Visit, linears: Sequence[Linear], task: Task, ranks: Ranks, owner: int) -> None:
        """Choose the masks, and find out what the first step comes to, before anybody asks."""
        self.linears, self._visit, self._ranks, self._owner = linears, visit, ranks, owner
        block, room = visit.block, visit.guard.room if visit.guard else None
        stats = [visit.stats.pop(linear.name, None) for linear in linears]
        self._prunings: list[LinearPruning] = []
        if ranks.rank == owner:
            for linear, seen in zip(linears, stats, strict=True):
                name, weight = block.full_name(linear), _dense(visit, linear)
                pruning = LinearPruning(name, weight, task.patterns[name], seen, task.recipe, block.device, room)
                self._prunings.append(pruning)
        self._ahead: list[tuple[Tensor, Kept | None]] = []  # what the first step comes to
        if task.recipe.steps and self.loses:
            masks = self.states
            self.step(task.recipe.steps[0])
            self._ahead, self.states = self.states, masks
        self._forget()

    @property
    def loses(self) -> bool:
        """Whether a step might help, as far as this rank knows."""
        return bool(self._ahead) or any(pruning.loses for pruning in self._prunings)

    @property
    def states(self) -> list[tuple[Tensor, Kept | None]]:
        return [pruning.state for pruning in self._prunings]

    @states.setter
    def states(self, states: list[tuple[Tensor, Kept | None]]) -> None:
        for pruning, state in zip(self._prunings, states, strict=True):
            pruning.state = state

    def step(self, name: Step) -> None:
        """Take a step."""
        if self._ahead:
            self.states, self._ahead = self._ahead, []
            return
        for pruning in self._prunings:
            pruning.step(name)
        self._forget()

    def weights(self) -> Iterator[tuple[Linear, Tensor]]:
        """Each linear, and its weight as it is to be stored, on the device of the block's module."""
        for number, linear in enumerate(self.linears):
            if self._prunings:
                weight = self._prunings[number].weight
            else:
                stored = self._visit.block.stored(linear, self._visit.tensors)
                weight = torch.empty_like(stored, device=self._visit.block.device)
            self._ranks.give(weight, self._owner)
            yield linear, weight

    def finish(self) -> None:
        """What there is now is what is written."""
        visit = self._visit
        own = [(one.result(), None if one.order is None else one.order.tolist()) for one in self._prunings]
        for layer, order in self._ranks.tell(own, list[tuple[LayerResult, list[int] | None]], self._owner):
            visit.results.layers.append(layer)
            if order is not None:
                visit.results.orders[layer.name] = torch.tensor(order)
        for linear, weight in self.weights():
            visit.block.stored(linear, visit.tensors).copy_(weight)
            visit.block.weight(linear).copy_(weight)
        self._prunings.clear()

    def _forget(self) -> None:
        """Free the factors that these have shared, before others make theirs."""
        for pruning in self._prunings:
            pruning.forget()


def _dense(visit: Visit, linear: Linear) -> Tensor | Kept:
    """The weight as stored, which stays as it is while the guard has others in the module: if need be a copy."""
    weight, guard = visit.block.stored(linear, visit.tensors), visit.guard
    overwritten = weight.data_ptr() == visit.block.weight(linear).data_ptr()
    return guard.room.keep(weight.clone()) if guard and overwritten else weight
