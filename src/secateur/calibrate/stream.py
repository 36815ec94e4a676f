"""Calibration samples on their way through a model, a block at a time.

The model's own forward pass is run once per batch with its blocks stubbed out, to record the arguments
that it passes to each block. From then on each block is called by itself, with the recorded arguments,
on hidden states that are kept here: no signature of any transformers version is assumed.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.calibrate.calls import UNPADDED, Batch, StopForward, finish, real_tokens, record
from secateur.devices import return_freed_memory
from secateur.errors import InputError
from secateur.memory import Room, Shelf
from secateur.models.blocks import Block
from secateur.models.spaces import Linear, reader_groups
from secateur.progress import Progress
from secateur.stats.inputs import InputStats, gram_bytes

# Between the activations of one batch and the next lie rows that are kept, so that glibc finds no place for them again:
# without this, a process grew by 25 MB a batch at a width of 1,024.
RUNS_PER_TRIM = 4


@dataclass(frozen=True)
class Rooms:
    """Where what a walk keeps may wait; see :class:`~secateur.memory.Room`.

    Attributes:
        states: for hidden states.
        statistics: for Gram matrices, and for weights between two steps.
    """

    states: Room = field(default_factory=Room)
    statistics: Room = field(default_factory=Room)


class Stream:
    """Hidden states of all calibration batches, now before block 0 and moved on block by block.

    Attributes:
        hidden: per batch, what enters the next block: ``(B, L, H)``. It lies where there is room.
        real: per batch, where it has a token and no padding, bool ``(B, L)``; None where there is no padding. What
            is padding moves along, and counts in no statistic.
        tokens: the number of tokens that statistics are gathered on.
        held_out: the number of the first batch that no statistic sees.
        first: the number of tokens before these, which other ranks have.
        rooms: where hidden states wait, and Gram matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        batches: Sequence[Batch],
        progress: Progress | None = None,
        *,
        held_out: int = 0,
        rooms: Rooms | None = None,
    ) -> None:
        """Embed the batches and record how the model calls its blocks.

        Args:
            model: with everything but its blocks, and with its first block, in memory.
            batches: token ids, ``(B, L)`` int64 each; or what else the model is called with, by name. An
                ``attention_mask`` ``(B, L)`` among that says what is padding.
            held_out: so many of the last batches move along but count in no statistic.
            rooms: by default without bounds.

        Raises:
            InputError: when the model does not run its blocks as a stream needs it, or it is not known where a batch
                is padded.
        """
        self.blocks = blocks
        self.progress = progress or Progress()
        self.held_out = len(batches) - held_out
        self.first = 0
        self._model, self._batches = model, batches
        self._besides: tuple[Any, ...] | None = None  # what a block gives besides hidden states, if it gives a tuple
        self.rooms = rooms or Rooms()
        self._runs = 0
        self.hidden = Shelf(self.rooms.states)
        self._calls = record(model, blocks, batches, self.hidden)
        self.real = real_tokens(model, blocks, batches, self.hidden)
        counted = zip(islice(self.hidden, self.held_out), self.real, strict=False)
        self.tokens = sum(int(real.sum()) if real is not None else x[..., 0].numel() for x, real in counted)

    def observe(
        self,
        index: int,
        stride: int = 1,
        keep_output: bool = False,
        gram: bool = False,
        outputs: Shelf | None = None,
    ) -> dict[str, InputStats]:
        """Statistics of what enters the linears of block ``index``, by their names in the block.

        Linears that read at the same place share one :class:`InputStats`, gathered once.

        Args:
            stride: keep every ``stride``-th input row as a sample.
            keep_output: move the hidden states of what is not held out on through the block in the same pass. Without,
                a pass ends as soon as every linear has seen its input: nobody reads the last one's output. The first
                goes to its end all the same, and so do all in a block that uses a linear twice.
            gram: gather Gram matrices as well. Where there is no room for all of them at once there are more passes,
                each for some of the places, whose matrices are put aside after it.
            outputs: gets what the block makes of the batches that are not held out, whose passes then go to the end.
        """
        parts = in_parts(self.blocks[index], self.rooms.statistics.left if gram else math.inf)
        if keep_output and not parts:  # nothing of this block is pruned, and the samples have to pass it all the same
            parts = [[]]
        stats: dict[str, InputStats] = {}
        for part in parts:
            last = part is parts[-1]
            seen = self._observe(index, part, stride, keep_output and last, gram, outputs if last else None)
            for group in part:
                seen[group[0].name].put_away(self.rooms.statistics, aside=not last)
            stats |= seen
        return stats

    def _observe(
        self,
        index: int,
        groups: Sequence[Sequence[Linear]],
        stride: int,
        keep_output: bool,
        gram: bool,
        outputs: Shelf | None,
    ) -> dict[str, InputStats]:
        """Statistics of what enters some of the linears, in one pass."""
        block = self.blocks[index]
        stats = _empty_stats(block, groups, stride, gram, self.first)
        with _Watch(block, groups, stats, stop_early=not keep_output and outputs is None) as watch:
            for i in range(self.held_out):
                states = self.hidden[i]
                watch.begin(len(states), self.real[i])
                try:
                    output = self.run(index, i, states)
                except StopForward:
                    continue
                if outputs is not None:
                    outputs.append(output)
                if keep_output:
                    self.hidden[i] = output
        return stats

    def advance(self, index: int, first: int = 0) -> None:
        """Move the hidden states, from those of the batch ``first`` on, through block ``index`` as it is now."""
        for i in range(first, len(self.hidden)):
            self.hidden[i] = self.run(index, i)

    @torch.no_grad()
    def run(self, index: int, batch: int, states: Tensor | None = None) -> Tensor:
        """What block ``index`` as it is now makes of a batch, ``(B, L, H)``: of ``states``, or its hidden states."""
        return self.call(index, batch, self.hidden[batch] if states is None else states)

    def call(self, index: int, batch: int, states: Tensor) -> Tensor:
        """The same of ``states``, through which gradients may go back."""
        call = self._calls[index][batch]
        self._runs += 1
        if self._runs % RUNS_PER_TRIM == 0 and states.device.type == "cpu":
            return_freed_memory()
        try:
            # A copy of one batch: a block may work in place.
            output = self.blocks[index].module(states.clone(), *call.args, **call.kwargs)
        finally:
            self.progress.advance(states.shape[0] * states.shape[1])
        self._besides = output[1:] if isinstance(output, tuple) else None
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def output(self, batch: int) -> Any:
        """What the model makes of a batch whose hidden states have left the last block: logits, mostly."""
        return self.answer(batch, self.hidden[batch])

    def answer(self, batch: int, states: Tensor) -> Any:
        """The same of ``states`` that left it, through which gradients may go back."""
        return finish(self._model, self.blocks, self._batches[batch], self._answered(states))

    def pieces(self, batch: int, several: Sequence[Tensor], length: int) -> Iterator[list[Tensor]]:
        """The logits ``(length, V)`` of as many tokens of a batch of token ids at a time, of each of ``several`` states
        ``(B, L, H)`` that left the last block.

        What comes after the blocks knows nothing of other tokens.
        """
        for row, tokens in enumerate(self._batches[batch]):
            for piece in (slice(at, at + length) for at in range(0, len(tokens), length)):
                answers = (self._answered(states[row : row + 1, piece]) for states in several)
                yield [finish(self._model, self.blocks, tokens[None, piece], one).logits[0] for one in answers]

    def left(self, batch: int) -> Any:
        """What the last block has answered to a batch that has left it, as the model takes it."""
        return self._answered(self.hidden[batch])

    def _answered(self, states: Tensor) -> Any:
        return states if self._besides is None else (states, *self._besides)


class _Watch(TorchFunctionMode):
    """While open, sees every product of inputs with a weight that is watched, wherever in a module it is done.

    It knows a weight by where it lies in memory: so a linear may be a module, or one layer of a stack of
    experts that some module multiplies with by itself.
    """

    def __init__(
        self, block: Block, groups: Sequence[Sequence[Linear]], stats: dict[str, InputStats], stop_early: bool
    ) -> None:
        super().__init__()
        self._stats, self._stop_early, self._ends = stats, stop_early, False
        self._linears = {block.weight(linear).data_ptr(): linear.name for group in groups for linear in group}
        self._stacks = {
            block.module.get_parameter(x.stack).data_ptr() for group in groups for x in group if x.stack is not None
        }
        self._gathers = {group[0].name for group in groups}
        self._uses: Counter[str] = Counter()  # in this pass
        self.begin(1, None)

    def begin(self, sequences: int, real: Tensor | None) -> None:
        """A new pass begins, of so many sequences, padded where ``real`` is not.

        It may end early if the one before has shown that no linear is used twice. An expert that that one did not run
        must not end this one.
        """
        self._ends = self._stop_early and set(self._uses.values()) == {1}
        self._uses.clear()
        self._sequences, self._real = sequences, real

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        place = PRODUCTS.get(func)
        if place is not None and len(args) > max(place):
            if name := self._linears.get(args[place[1]].data_ptr()):
                self._saw(name, args[place[0]])
            elif func in _MATMULS and (name := self._linears.get(args[0].data_ptr())):  # Mamba's: weight @ inputs
                self._saw(name, args[1].mT)
        elif func in (torch.bmm, Tensor.bmm) and len(args) == 2 and args[1].data_ptr() in self._stacks:
            for inputs, weight in zip(*args, strict=True):
                if name := self._linears.get(weight.data_ptr()):
                    self._saw(name, inputs, zeros=True)
        return func(*args, **kwargs or {})

    def _saw(self, name: str, inputs: Tensor, zeros: bool = False) -> None:
        """``zeros``: every token comes to every expert, as zeros to those that it is not routed to."""
        if name in self._gathers:
            seen = self._without_padding(name, inputs)
            self._stats[name].update(seen[seen.any(-1)] if zeros else seen, self._sequences)
        self._uses[name] += 1
        if self._ends and len(self._uses) == len(self._linears):
            raise StopForward

    def _without_padding(self, name: str, inputs: Tensor) -> Tensor:
        """The rows of tokens: ``(T, I)``; or all of ``inputs`` ``(..., I)`` if nothing is padded."""
        if self._real is None:
            return inputs
        if inputs.shape[:-1] == self._real.shape:
            return inputs[self._real]
        if len(inputs) == self._real.numel() and inputs.ndim == 2:
            return inputs[self._real.flatten()]
        raise InputError(
            f"{name} reads {tuple(inputs.shape[:-1])} vectors of a padded batch {tuple(self._real.shape)}, so it "
            f"cannot be told which are padding: {UNPADDED}"
        )


# Where the functions that modules multiply with take their inputs and their weight.
_MATMULS: dict[Any, tuple[int, int]] = dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), (0, 1))
PRODUCTS: dict[Any, tuple[int, int]] = {nn.functional.linear: (0, 1), torch.addmm: (1, 2), **_MATMULS}


def in_parts(block: Block, room: float) -> list[list[list[Linear]]]:
    """The reader groups of a block, in as few parts as there must be for the Gram matrices of one to fit in ``room``.

    A part is at least one group, even where it has more than ``room`` bytes.
    """
    parts: list[list[list[Linear]]] = []
    left = 0.0
    for group in reader_groups(block.linears):
        size = gram_bytes(block.shape(group[0])[1])
        if not parts or size > left:
            parts.append([])
            left = room
        parts[-1].append(group)
        left -= size
    return parts


def _empty_stats(
    block: Block, groups: Sequence[Sequence[Linear]], stride: int, gram: bool, first: int
) -> dict[str, InputStats]:
    """By the names of the linears of ``block``, statistics to fill: one object for each place where they read."""
    stats: dict[str, InputStats] = {}
    for group in groups:
        weight = block.weight(group[0])
        shared = InputStats(weight.shape[1], stride, weight.device, gram, first)
        stats |= dict.fromkeys((linear.name for linear in group), shared)
    return stats
