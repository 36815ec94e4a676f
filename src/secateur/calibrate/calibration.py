"""Statistics of what enters each block, and a guard of what leaves it, block after block."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.calibrate.calls import Batch
from secateur.calibrate.divergence import TOKENS, HeldOut, divergences
from secateur.calibrate.guard import Guard
from secateur.calibrate.lesson import Lesson
from secateur.calibrate.stream import Rooms, Stream
from secateur.memory import Shelf
from secateur.models.blocks import Block
from secateur.models.spaces import reader_groups
from secateur.progress import Progress
from secateur.ranks import Ranks
from secateur.stats.inputs import InputStats, add_up


@dataclass(frozen=True)
class Observation:
    """What is known of a block that is still dense.

    Attributes:
        stats: of what enters its linears, by their names in the block.
        guard: judges its output on held-out samples, if there are any.
        lesson: what it is to learn, if anything.
    """

    stats: dict[str, InputStats] = field(default_factory=dict)
    guard: Guard | None = None
    lesson: Lesson | None = None


# Output errors are measured on about this many input rows of each linear, spread over all samples.
ERROR_ROWS = 256


class Calibration:
    """The samples of one walk over the blocks of a model.

    The samples are embedded when the first block is observed, which must be in memory by then.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        batches: Sequence[Batch],
        *,
        held_out: int = 0,
        gram: bool = False,
        one_shot: bool = False,
        corrects: float | None = None,
        compares: bool = False,
        progress: Progress | None = None,
        ranks: Ranks | None = None,
        rooms: Rooms | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            model: see :class:`~secateur.calibrate.stream.Stream`.
            blocks: all of its blocks, in order.
            batches: the samples; without any there are no statistics, and no guard.
            held_out: so many of the last batches count in no statistic, and are what the guard judges by.
            gram: gather Gram matrices as well.
            one_shot: take all statistics from the model as it is now: samples move on through each block in the pass
                that observes it.
            corrects: let blocks learn, and make up for this share of what the blocks before have done; not in one shot.
            compares: let the samples that are held out pass the dense blocks and the pruned ones, for
                :meth:`compare`. They are token ids then.
            progress: is told of the tokens that a block has processed; of the block where there are no samples.
            ranks: those that have the same samples each take a share of them. Statistics and guard are of all, and
                alike in every rank.
            rooms: where hidden states and Gram matrices wait; by default without bounds.
        """
        self._ranks = ranks or Ranks()
        first = len(batches) - held_out
        seen, judged = self._ranks.share(batches[:first]), self._ranks.share(batches[first:])
        self._samples, self._guards = bool(batches), held_out > 0  # a share may be empty
        self._model, self._blocks, self._batches, self._held_out = model, blocks, (*seen, *judged), len(judged)
        self._gram, self._one_shot, self._corrects = gram, one_shot, corrects
        self._compares = compares and self._guards
        self._progress = progress or Progress()
        self._rooms = rooms
        self._stream: Stream | None = None
        self._guard: Guard | None = None

    def observe(self, index: int, finished: bool = False) -> Observation:
        """Look at block ``index``, still dense.

        Nothing is seen of a block that is ``finished``: the samples only move on through it as they would have.
        """
        if not self._samples:
            return Observation()
        if self._stream is None:
            self._stream = Stream(
                self._model, self._blocks, self._batches, self._progress, held_out=self._held_out, rooms=self._rooms
            )
            tokens = self._ranks.gather(self._stream.tokens)
            self._tokens, self._stream.first = sum(tokens), sum(tokens[: self._ranks.rank])
            self._beside = Shelf(self._stream.rooms.states)
            for batch in self._both:
                self._beside.append(self._stream.hidden[batch])
        if not self._one_shot:
            self._move_beside(index)
        if finished:
            if self._one_shot:
                self._move(index)
            return Observation()
        self._guard = Guard(self._stream, index, self._ranks) if self._guards else None
        stride, keeps = max(1, self._tokens // ERROR_ROWS), self._one_shot and not self._is_last(index)
        learns = self._corrects is not None and bool(self._blocks[index].linears)
        outputs = Shelf(self._stream.rooms.states) if learns else None
        stats = self._stream.observe(index, stride, keeps, self._gram, outputs)
        add_up([stats[group[0].name] for group in reader_groups(self._blocks[index].linears)], self._ranks)
        return Observation(stats, self._guard, None if outputs is None else self._lesson(index, outputs))

    def advance(self, index: int) -> None:
        """Make what enters the next block, with block ``index`` as it is now."""
        if self._stream is None:
            self._progress.advance(1)
        elif not self._one_shot:
            self._move(index)
        else:
            if self._guard is not None:  # all other samples moved on when the block was observed
                self._guard.advance()
            self._move_beside(index)
        self._guard = None

    def _lesson(self, index: int, outputs: Shelf) -> Lesson:
        """What block ``index`` is to learn, by what it gave while it was dense."""
        assert self._stream is not None
        guard = self._guard
        if self._corrects:
            for batch, output in enumerate(outputs):
                outputs[batch] = self._corrected(output, batch)
            if guard is not None:
                guard = guard.aiming(self._corrected)
        return Lesson(self._stream, index, outputs, self._ranks, guard)

    def _corrected(self, output: Tensor, batch: int) -> Tensor:
        """What the dense block makes of a batch, moved towards what the dense model has there."""
        return output.lerp(self._beside[batch - self._both.start], self._corrects or 0.0)

    @torch.no_grad()
    def compare(self) -> HeldOut | None:
        """The model as its blocks were left, against the dense one, after the last block; None without a guard.

        All ranks ask for it at once, and have the same answer.
        """
        if not self._compares or self._stream is None:
            return None
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in range(self._stream.held_out, len(self._stream.hidden)):
            states = [self._beside[batch - self._both.start], self._stream.hidden[batch]]
            if self._one_shot:
                states.reverse()
            for dense, pruned in self._stream.pieces(batch, states, TOKENS):
                for kl, same in divergences(dense, pruned):
                    sums += torch.tensor([kl.double().sum(), same.sum(), len(kl)], dtype=torch.float64)
        self._ranks.sum(sums)
        kl, same, tokens = sums.tolist()
        return HeldOut(kl / tokens, same / tokens, int(tokens))

    @property
    def _both(self) -> range:
        """The batches whose hidden states wait twice: as the dense blocks made them, and as the pruned ones did.

        One of both is the stream's, by which the next block is calibrated; the other moves beside it.
        """
        assert self._stream is not None
        batches = len(self._stream.hidden)
        if self._corrects:
            return range(batches)
        return range(self._stream.held_out if self._compares else batches, batches)

    def _move_beside(self, index: int) -> None:
        """Move what is beside the stream on through block ``index``, dense or pruned, as it is now."""
        assert self._stream is not None
        for number, batch in enumerate(self._both):
            self._beside[number] = self._stream.run(index, batch, self._beside[number])

    def _move(self, index: int) -> None:
        """Move the stream on; through the last block only what is compared behind it."""
        assert self._stream is not None
        if not self._is_last(index):
            self._stream.advance(index)
        elif self._compares:
            self._stream.advance(index, self._stream.held_out)

    def _is_last(self, index: int) -> bool:
        return index + 1 == len(self._blocks)
