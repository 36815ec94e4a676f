"""Judge changes of a block on samples that no statistic has seen."""

from dataclasses import dataclass

import torch

from secateur.calibrate.stream import Stream
from secateur.memory import Room, Shelf


@dataclass(frozen=True)
class Trial:
    """One step on trial for the linears of a reader group, and the held-out block output error before and after.

    Attributes:
        linears: their full names.
        step: ``reconstruct`` or ``refine``.
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

    def __init__(self, stream: Stream, index: int) -> None:
        """Run block ``index``, still dense, on the held-out samples."""
        self._stream, self._index = stream, index
        self._batches = range(stream.held_out, len(stream.hidden))
        self._wanted = Shelf(stream.rooms.states)
        for batch in self._batches:
            self._wanted.append(stream.run(index, batch))

    @property
    def room(self) -> Room:
        """Where weights that are on trial may wait."""
        return self._stream.rooms.statistics

    def error(self) -> float:
        """The error of the block's output as it is now: ‖y − y₀‖ / ‖y₀‖ of each token, root mean square over tokens.

        Token by token, since the norm before the next block makes all tokens the same size: a few have
        hidden states a hundred times larger than the rest, and would be all that counts otherwise.
        """
        errors = []
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            now = self._stream.run(self._index, batch)
            error = (now - wanted).float().norm(dim=-1) / wanted.float().norm(dim=-1).clamp_min(1e-12)
            real = self._stream.real[batch]
            errors.append((error if real is None else error[real]).square().flatten())
        return torch.cat(errors).mean().sqrt().item()

    def advance(self) -> None:
        """Move the held-out samples on as the dense block did."""
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            self._stream.hidden[batch] = wanted
