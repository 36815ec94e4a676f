"""Judge changes of a block on samples that no statistic has seen."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.calibrate.stream import Stream
from secateur.memory import Room, Shelf
from secateur.ranks import Ranks


def squared_error(output: Tensor, wanted: Tensor) -> Tensor:
    """Of each token, ‖y − y₀‖² / ‖y₀‖²: ``(..., H)`` twice → ``(...)`` float32.

    Token by token, since the norm before the next block makes all tokens the same size: a few have
    hidden states a hundred times larger than the rest, and would be all that counts otherwise.
    """
    lost, size = (states.float().square().sum(dim=-1) for states in (output - wanted, wanted))
    return lost / size.clamp_min(1e-24)


@dataclass(frozen=True)
class Trial:
    """One step on trial for the linears of a reader group, and the held-out block output error before and after.

    Attributes:
        linears: their full names.
        step: ``reconstruct``, ``refine`` or ``tune``.
        before: the error without it; see :meth:`Guard.error`.
        after: the error with it.
        kept: whether it was kept.
    """

    linears: list[str]
    step: str
    before: float
    after: float
    kept: bool


class Guard:
    """Compares what a block makes of the held-out samples with what it made of them before it was pruned.

    Fewer calibration tokens than a layer has freedom can be fitted in ways that help nowhere else: a lower
    error on them may go with a higher one here.
    """

    def __init__(self, stream: Stream, index: int, ranks: Ranks | None = None) -> None:
        """Run block ``index``, still dense, on the held-out samples, of which each of the ``ranks`` has a share."""
        self._stream, self._index, self._ranks = stream, index, ranks or Ranks()
        self._batches = range(stream.held_out, len(stream.hidden))
        self._wanted = Shelf(stream.rooms.states)
        for batch in self._batches:
            self._wanted.append(stream.run(index, batch))

    def aiming(self, aim: Callable[[Tensor, int], Tensor]) -> "Guard":
        """The same with another aim, made of what the dense block gave ``(B, L, H)`` and the number of the batch."""
        other = copy.copy(self)
        other._wanted = Shelf(self._stream.rooms.states)
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            other._wanted.append(aim(wanted, batch))
        return other

    @property
    def room(self) -> Room:
        """Where weights that are on trial may wait."""
        return self._stream.rooms.statistics

    def error(self) -> float:
        """The error of the block's output as it is now: ‖y − y₀‖ / ‖y₀‖ of each token, root mean square over tokens.

        All ranks ask for it at once, and have the same answer.
        """
        squares, tokens = [], 0
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            now = self._stream.run(self._index, batch)
            error = squared_error(now, wanted)
            real = self._stream.real[batch]
            error = error if real is None else error[real]
            squares.append(error.sum(dtype=torch.float64))
            tokens += error.numel()
        sums = torch.tensor([float(sum(squares)), tokens], dtype=torch.float64)
        self._ranks.sum(sums)
        return math.sqrt(sums[0] / sums[1])

    def advance(self) -> None:
        """Move the held-out samples on as the dense block did."""
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            self._stream.hidden[batch] = wanted
