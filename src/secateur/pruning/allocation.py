"""How sparse each linear is to be, where as many weights go in all: as sparse as the model's predictions bear.

To remove a share of a linear's weights, by its score, changes its output at token t by D x_t, where x_t enters it and D
has the weights that go. To second order that moves the model's distributions of next tokens by

    KL(dense ‖ pruned) ≈ ½ Σ_t E[(g_t · D x_t)²]

with g_t the gradient, at the linear's output, of the loss on next tokens that are drawn from those distributions: their
Fisher information is the Hessian of the divergence (Martens, *New Insights and Perspectives on the Natural Gradient
Method*, JMLR 2020). Terms between different tokens and different linears are left out. So a forward and a backward pass
of the dense model over some tokens say of each linear what each share would cost beside the others.

Half the weights of a block are no small change, and what becomes of its error behind it is no square. So the costs of a
block are scaled to what is measured where it alone is pruned to the share that is asked for, all its linears together:
the pruned block's states pass all later blocks beside the dense ones, L²/2 passes of a block for L blocks.

Then the knapsack (:mod:`secateur.knapsack`) takes the weights that cost the least. Formats that store a mask take the
same for each kept weight wherever it lies: any mix of shares is as small as an even one.

A block is in memory at a time, twice: forwards, and backwards, when it is run again on what entered it. Its linears are
scored by what the same tokens put into them. What mends the weights later is not asked.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from secateur.calibrate.divergence import TOKENS, divergences
from secateur.calibrate.stream import PRODUCTS, Rooms, Stream
from secateur.checkpoint import Source, check_finite, resident
from secateur.devices import full_precision
from secateur.knapsack import LEVELS, Point, cheapest
from secateur.masks import select
from secateur.memory import Shelf
from secateur.models.blocks import Block
from secateur.models.spaces import Linear
from secateur.patterns import Pattern, Unstructured, count_kept
from secateur.progress import Progress
from secateur.pruning.linear import score_of
from secateur.pruning.prepare import Samples, Task
from secateur.scores import SCORES
from secateur.stats.inputs import InputStats

# The passes are over at least so many tokens, if there are as many; of those that enter a linear about so many tell
# what its shares cost.
PROBED, ROWS = 512, 512


def probe(samples: Samples) -> Tensor:
    """The tokens that tell: the first samples that statistics may see, int64 ``(B, L)``."""
    seen = torch.cat([*samples.batches[: len(samples.batches) - samples.held_out]])
    return seen[: -(-PROBED // seen.shape[1])]


def probed(task: Task, samples: Samples, index: int) -> int:
    """Tokens that block ``index`` is run on: dense, behind each block that was pruned, and for gradients.

    Where it has linears, also pruned, and twice to see what enters them.
    """
    before = sum(bool(block.linears) for block in task.blocks[:index])
    return probe(samples).numel() * (2 + before + (3 if task.blocks[index].linears else 0))


@full_precision()
def find_allocation(
    source: Source, model: PreTrainedModel, task: Task, samples: Samples, rooms: Rooms, progress: Progress
) -> dict[str, float]:
    """The share that each linear is to lose, by globs of full names, at as many kept weights as the task leaves.

    Experts of a stack, which see few of the tokens each, have one share together.

    Args:
        source: where blocks are read.
        model: with what lies outside its blocks in memory.
        task: all of its linears are to lose the same share.
        samples: of which the first are used.
        rooms: where hidden states wait.
        progress: is told of the tokens that a block has processed.
    """
    tokens, gram = probe(samples), SCORES[task.recipe.score].needs_gram
    entered, pruned = Shelf(rooms.states), Shelf(rooms.states)
    stream: Stream | None = None
    for index, block in enumerate(task.blocks):
        progress.at(f"allocation · {block.prefix[:-1]}")
        with _resident(source, block, tokens.device):
            stream = stream or Stream(model, task.blocks, [tokens], progress, rooms=rooms)
            entered.append(stream.hidden[0])
            for number, states in enumerate(pruned):
                pruned[number] = stream.run(index, 0, states)
            dense = stream.run(index, 0)
            if block.linears:
                for linear, score in _scores(block, stream.observe(index, gram=gram), task):
                    weight = block.weight(linear)  # which is read anew when it is needed again
                    weight.mul_(select(score, task.patterns[block.full_name(linear)]))
                pruned.append(stream.run(index, 0))
            stream.hidden[0] = dense
    assert stream is not None
    model.tie_weights()  # blocks need no head
    meant = [block.prefix for block in task.blocks if block.linears]
    moved = {prefix: _divergence(stream, states) for prefix, states in zip(meant, pruned, strict=True)}
    returned = _gradient_of_drawn(stream)
    found: dict[str, _Unit] = {}
    for index, block in reversed([*enumerate(task.blocks)]):
        progress.at(f"allocation · back to {block.prefix[:-1]}")
        stream.hidden[0] = entered[index]
        with _resident(source, block, tokens.device):
            stats = stream.observe(index, gram=gram) if block.linears else {}
            with _Watch(block) as watch:
                leaf = stream.hidden[0].detach().requires_grad_()
                (returned,) = torch.autograd.grad(stream.call(index, 0, leaf), leaf, returned)
            units: dict[str, _Unit] = {}
            for linear, score in _scores(block, stats, task):
                inputs, gradients = watch.seen(linear.name)
                unit = units.setdefault(_glob(block, linear), _Unit())
                unit.add(block.weight(linear).float(), score, inputs, gradients, task.patterns[block.full_name(linear)])
        whole = sum(unit.cost for unit in units.values())
        for unit in units.values():
            unit.scale = moved[block.prefix] / whole if whole else 1.0
        found |= units
    removed = cheapest({name: unit.curve for name, unit in found.items()}, sum(unit.asked for unit in found.values()))
    return {name: found[name].share(number) for name, number in reversed(removed.items())}


def _scores(block: Block, stats: Mapping[str, InputStats], task: Task) -> Iterator[tuple[Linear, Tensor]]:
    """The linears of a block, and what their weights score, ``(O, I)`` float32."""
    for linear in block.linears:
        name, weight = block.full_name(linear), block.weight(linear).float()
        yield linear, score_of(name, weight, stats[linear.name], task.recipe)


def _divergence(stream: Stream, states: Tensor) -> float:
    """KL in nats, the mean over tokens, of ``states`` that left the last block from the dense ones."""
    total = 0.0
    with torch.no_grad():
        for dense, pruned in stream.pieces(0, [stream.hidden[0], states], TOKENS):
            total += sum(kl.sum().item() for kl, _ in divergences(dense, pruned))
    return max(0.0, total) / states[..., 0].numel()


class _Unit:
    """A linear, or all experts of a stack, and what it costs to remove some of its weights.

    Attributes:
        asked: how many of them the task would remove.
        cost: of that.
        scale: what all costs are multiplied by.
    """

    def __init__(self) -> None:
        self.asked, self.cost, self.scale = 0, 0.0, 1.0
        self._size, self._numbers, self._costs = 0, [0] * len(LEVELS), [0.0] * len(LEVELS)

    def add(self, weight: Tensor, score: Tensor, inputs: Tensor, gradients: Tensor, asked: Pattern) -> None:
        """Count a linear in.

        Args:
            weight: float32 ``(O, I)``.
            score: of its weights.
            inputs: ``(T, I)``.
            gradients: of what they become, ``(T, O)``.
            asked: what the task would have of it.
        """
        assert isinstance(asked, Unstructured)

        def removing(pattern: Pattern) -> Point:
            change = inputs @ (weight * ~select(score, pattern)).T
            rows, columns = weight.shape
            number = rows * columns - count_kept(rows, columns, pattern)
            return number, (gradients * change).sum(1).square().sum().item()

        number, cost = removing(asked)
        self._size, self.asked, self.cost = self._size + weight.numel(), self.asked + number, self.cost + cost
        for place, level in enumerate(LEVELS):
            number, cost = removing(Unstructured(level, asked.scope))
            self._numbers[place] += number
            self._costs[place] += cost

    @property
    def curve(self) -> list[Point]:
        """How many weights may go, and what that costs."""
        points = {0: 0.0} | dict(zip(self._numbers, self._costs, strict=True))
        return [(number, self.scale * cost) for number, cost in sorted(points.items())]

    def share(self, number: int) -> float:
        """So many of its weights, as a share of all: one of the levels, if it comes to as many."""
        levels = dict(zip(self._numbers, LEVELS, strict=True))
        return levels.get(number, number / self._size)


def _glob(block: Block, linear: Linear) -> str:
    """What an allocation calls a linear: its full name; experts of a stack go by one name together."""
    name = block.full_name(linear)
    if not linear.stack:
        return name
    stack, _, last = name.rsplit(".", 2)
    return f"{stack}.*.{last}"


@contextmanager
def _resident(source: Source, block: Block, device: torch.device) -> Iterator[None]:
    """A block that is in memory for a while."""
    tensors = source.read(source.names(block.prefix))
    check_finite(tensors, source.folder)
    with resident(block.module, tensors, block.prefix, device):
        yield


def _gradient_of_drawn(stream: Stream) -> Tensor:
    """Of the loss on next tokens that the model draws itself, summed, by what left its last block: ``(B, L, H)``."""
    draw = torch.Generator().manual_seed(0)
    states = stream.hidden[0].detach().requires_grad_()
    gradient = torch.zeros_like(states)
    for (logits,) in stream.pieces(0, [states], TOKENS):
        drawn = torch.multinomial(logits.detach().float().softmax(-1).cpu(), 1, generator=draw)[:, 0]
        loss = cross_entropy(logits.float(), drawn.to(logits.device), reduction="sum")
        gradient += torch.autograd.grad(loss, states)[0]
    return gradient


class _Watch(TorchFunctionMode):
    """While open, notes what enters each product with a weight of a block, and the gradient of what leaves it."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self._names = {block.weight(linear).data_ptr(): linear.name for linear in block.linears}
        self._weights = {linear.name: block.weight(linear) for linear in block.linears}
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def seen(self, name: str) -> tuple[Tensor, Tensor]:
        """About ``ROWS`` of the inputs of a linear ``(T, I)`` and gradients ``(T, O)``, float32, for all of them."""
        if not self._seen[name]:  # an expert to which nothing is routed
            weight = self._weights[name].float()
            return weight[:0], weight.T[:0]
        inputs, gradients = (torch.cat(each) for each in zip(*self._seen.pop(name), strict=True))
        stride = max(1, len(inputs) // ROWS)
        return inputs[::stride].float(), gradients[::stride].float() * stride**0.5

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **kwargs or {})
        place = PRODUCTS.get(func)
        if place is not None and len(args) > max(place) and (name := self._names.get(args[place[1]].data_ptr())):
            inputs = args[place[0]].detach().flatten(0, -2)
            output.register_hook(lambda gradient: self._seen[name].append((inputs, gradient.flatten(0, -2))))
        return output
