"""Statistics of what enters each block, and a guard of what leaves it, block after block."""

from collections.abc import Sequence

from torch import nn

from secateur.calibrate.calls import Batch
from secateur.calibrate.guard import Guard
from secateur.calibrate.stream import Rooms, Stream
from secateur.models.blocks import Block
from secateur.progress import Progress
from secateur.stats.inputs import InputStats

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
        progress: Progress | None = None,
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
            progress: is told of the tokens that a block has processed; of the block where there are no samples.
            rooms: where hidden states and Gram matrices wait; by default without bounds.
        """
        self._model, self._blocks, self._batches = model, blocks, batches
        self._held_out, self._gram, self._one_shot = held_out, gram, one_shot
        self._progress = progress or Progress()
        self._rooms = rooms
        self._stream: Stream | None = None
        self._guard: Guard | None = None

    def observe(self, index: int, finished: bool = False) -> tuple[dict[str, InputStats], Guard | None]:
        """Statistics by the names of the linears of block ``index``, still dense, and its guard.

        There are none of a block that is ``finished``: the samples only move on through it as they would have.
        """
        if not self._batches:
            return {}, None
        if self._stream is None:
            self._stream = Stream(
                self._model, self._blocks, self._batches, self._progress, held_out=self._held_out, rooms=self._rooms
            )
        if finished:
            if self._one_shot and not self._is_last(index):
                self._stream.advance(index)
            return {}, None
        self._guard = Guard(self._stream, index) if self._held_out else None
        stride = max(1, self._stream.tokens // ERROR_ROWS)
        return self._stream.observe(index, stride, self._one_shot and not self._is_last(index), self._gram), self._guard

    def advance(self, index: int) -> None:
        """Make what enters the next block, with block ``index`` as it is now."""
        if self._stream is None:
            self._progress.advance(1)
        elif not self._is_last(index):
            if not self._one_shot:
                self._stream.advance(index)
            elif self._guard is not None:  # all other samples moved on when the block was observed
                self._guard.advance()
        self._guard = None

    def _is_last(self, index: int) -> bool:
        return index + 1 == len(self._blocks)
