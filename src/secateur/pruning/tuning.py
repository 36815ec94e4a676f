"""Tune a pruned block: what is left of it learns to give what the dense block gives.

Masks, orders and reconstruction come before. All that is left learns at once: kept weights, biases, norms. Zeros have
no gradient, so they stay zero. Gradients stay inside the block: in memory are one block, its optimizer and one batch.
The idea is that of EBFT (Guo et al., arXiv 2402.12419).
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.calibrate.guard import Trial
from secateur.calibrate.lesson import Lesson
from secateur.masks import sparsity_of
from secateur.models.blocks import Block
from secateur.models.gather import stored_name
from secateur.pruning.prepare import Task
from secateur.pruning.visit import Visit
from secateur.recipe import Recipe

# Of all steps, those in which the rate grows to what it is to be, and falls to nothing after.
WARM_UP = 0.1
# What stands for an error that is infinite, or no number: JSON has neither.
LARGEST = 1e30


def tune(visit: Visit, task: Task) -> None:
    """Tune the block of a visit in place, among its tensors and in its module.

    After each epoch the guard compares the block, as it would be written, with what it is to give, and the best is what
    is taken: the block as it was, if none is better. Without a guard the last is. A block that loses nothing stays.

    Args:
        visit: has the pruned block, and a lesson. Gets the trial, and the names of the tensors that were tuned besides
            those that are pruned.
        task: how many epochs, how fast, and by which seed.
    """
    block, lesson, results = visit.block, visit.lesson, visit.results
    assert lesson is not None
    guard = lesson.guard
    before = best = guard.error() if guard else math.inf
    if not before:
        return
    learner = _Learner(visit)
    after, chosen = math.inf, None
    for epoch in _epochs(lesson, learner, task.recipe):
        values = learner.values
        learner.show(values)
        after = guard.error() if guard else 0.0 if epoch == task.recipe.epochs else math.inf
        after = after if after < LARGEST else LARGEST
        if after < best and all(bool(value.isfinite().all()) for value in values.values()):  # float16 ends at 65,504
            best, chosen = after, values
    learner.settle(chosen)
    if guard:
        names = [block.full_name(linear) for linear in block.linears]
        kept = chosen is not None
        results.trials.append(Trial(names, "tune", before, best if kept else after, kept))
    if chosen is None:
        return
    pruned = block.pruned
    results.tuned += [name for name in (block.prefix + each for each in chosen) if name not in pruned]
    linears = {block.full_name(linear): linear for linear in block.linears}
    for number, layer in enumerate(results.layers):  # a kept weight may have become zero
        stored = block.stored(linears[layer.name], visit.tensors)
        results.layers[number] = replace(layer, sparsity=sparsity_of(stored))


def _epochs(lesson: Lesson, learner: "_Learner", recipe: Recipe) -> Iterator[int]:
    """Take the steps of an epoch, one for each batch, and give its number, from 1 on."""
    batches = lesson.batches
    steps = recipe.epochs * batches
    optimizer = torch.optim.Adam([{"params": [x], "lr": recipe.learning_rate * _size(x)} for x in learner.masters])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    draw = random.Random(f"{recipe.seed} {lesson.index}")
    for epoch in range(1, recipe.epochs + 1):
        for batch in draw.sample(range(batches), batches):
            learner.follow(lesson.slope(batch, learner.parameters))
            optimizer.step()
            schedule.step()
            learner.load()
        yield epoch


def _size(master: Tensor) -> float:
    """The root mean square of what is not zero: Adam's steps know nothing of how large weights are."""
    values = master.detach()
    return math.sqrt(values.square().sum().item() / max(1, int(values.count_nonzero())))


def _share(step: int, steps: int) -> float:
    """Of the rate, at a step: it rises and falls in straight lines."""
    rise = max(1.0, WARM_UP * steps)
    return min((step + 1) / rise, (steps - step) / max(1.0, steps - rise))


class _Learner:
    """What of a block learns: its pruned weights but for their zeros, their biases, and norms.

    Attributes:
        parameters: those of the block's module, in its precision.
        masters: the same in float32, which steps add up in.
    """

    def __init__(self, visit: Visit) -> None:
        block = visit.block
        found = {stored_name(block.module, name): parameter for name, parameter in block.module.named_parameters()}
        kept = _kept(block)
        names = [name for name in found if name in kept or _is_beside(block, name)]
        self.parameters = [found[name] for name in names]
        self._stored = {name: visit.tensors[block.prefix + name] for name in names}
        self._first = {name: tensor.clone() for name, tensor in self._stored.items()}
        self._kept = [kept.get(name) for name in names]
        self.masters = [
            nn.Parameter(tensor.to(block.device, torch.float32, copy=True)) for tensor in self._stored.values()
        ]

    def follow(self, gradients: Sequence[Tensor]) -> None:
        """Let the masters have gradients: zeros have none."""
        for master, gradient, kept in zip(self.masters, gradients, self._kept, strict=True):
            master.grad = gradient.float() if kept is None else gradient.float() * kept

    def load(self) -> None:
        """Let the module compute with the masters."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.data.copy_(master.detach())

    def show(self, values: Mapping[str, Tensor]) -> None:
        """Let the module compute with these, by their names in the block."""
        for parameter, value in zip(self.parameters, values.values(), strict=True):
            parameter.data.copy_(value)

    @property
    def values(self) -> dict[str, Tensor]:
        """The masters as they would be written, by their names in the block."""
        masters = zip(self._stored.items(), self.masters, strict=True)
        return {name: master.detach().to(stored.dtype, copy=True) for (name, stored), master in masters}

    def settle(self, values: dict[str, Tensor] | None) -> None:
        """Let the visit and the module have these, or what they had at first."""
        values = values or self._first
        for name, value in values.items():
            self._stored[name].copy_(value)
        self.show(values)


def _kept(block: Block) -> dict[str, Tensor]:
    """Where the pruned tensors of a block have weights that may change: bool, by their names, shaped as they are."""
    kept: dict[str, Tensor] = {}
    for linear in block.linears:
        tensor = block.module.get_parameter(linear.tensor).data
        whole = kept.setdefault(linear.tensor, torch.zeros_like(tensor, dtype=torch.bool))
        linear.view(whole).copy_(linear.view(tensor) != 0)
    return kept


def _is_beside(block: Block, name: str) -> bool:
    """Whether a parameter is the bias of a pruned linear, or a norm's."""
    module = block.module.get_submodule(name.rpartition(".")[0])
    return name in {linear.bias for linear in block.linears} or "norm" in type(module).__name__.lower()
