"""Times of dense and sparse weights, taken in turn, and their ratio."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Phase = Literal["decode", "prefill"]

OVERALL, END_TO_END = "overall", "end to end"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least two values."""
        return cls(*(float(f"{value:.5g}") for value in statistics.quantiles(values, n=4, method="inclusive")))


@dataclass(frozen=True)
class Workload:
    """What is run.

    Attributes:
        phase: ``prefill`` of whole sequences, or ``decode``: one token more of each.
        batch: sequences at a time.
        length: tokens of each sequence that are processed, or at decode that have been; None where that does not
            matter.
    """

    phase: Phase
    batch: int
    length: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens that one pass processes."""
        return self.batch * self.length if self.phase == "prefill" and self.length else self.batch

    @property
    def size(self) -> str:
        """Batch, or batch × length."""
        return f"batch {self.batch}" if self.length is None else f"{self.batch} × {self.length}"

    def __str__(self) -> str:
        return f"{self.phase}, {self.size}"


@dataclass(frozen=True)
class Measurement:
    """One pass of dense weights against one of the same weights in their sparse form.

    Attributes:
        part: the role of the linears that ran, in all blocks; ``overall`` for all; or ``end to end`` for the model.
        workload: on what.
        dense: seconds of a pass with dense weights.
        sparse: seconds of a pass with sparse ones.
        speedup: dense over sparse within a round.
    """

    part: str
    workload: Workload
    dense: Spread
    sparse: Spread
    speedup: Spread

    @property
    def is_slower(self) -> bool:
        """Whether sparse weights took longer, in most rounds."""
        return self.speedup.median < 1


# Runs some work, and gives the seconds that it took.
Stopwatch = Callable[[Callable[[], object]], float]


def stopwatch(device: torch.device) -> Stopwatch:
    """A watch for work on ``device``, launching included; a GPU begins idle, and must have finished at the end."""

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def seconds(work: Callable[[], object]) -> float:
        settle()
        began = time.perf_counter()
        work()
        settle()
        return time.perf_counter() - began

    return seconds


# Seconds of a pass, round by round: dense and sparse.
Rounds = Sequence[tuple[float, float]]


def measurement(part: str, workload: Workload, rounds: Rounds) -> Measurement:
    """From the times of at least two ``rounds``."""
    dense, sparse = zip(*rounds, strict=True)
    ratios = [a / b for a, b in rounds]
    return Measurement(part, workload, Spread.of(dense), Spread.of(sparse), Spread.of(ratios))


def with_overall(workload: Workload, roles: Mapping[str, Rounds]) -> list[Measurement]:
    """A measurement of each role, and that of all: round by round the sum over roles."""
    sums = [tuple(map(sum, zip(*parts, strict=True))) for parts in zip(*roles.values(), strict=True)]
    total: Rounds = [(dense, sparse) for dense, sparse in sums]
    return [measurement(part, workload, rounds) for part, rounds in {**roles, OVERALL: total}.items()]
