"""How far long work is, and how long its parts took."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType


def speaks() -> bool:
    """Whether this process is the one that tells people anything: alone, or the first that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


class Progress:
    """Is told how far long work is. This one shows nothing; the command line's draws bars."""

    def start(self, what: str, total: int, unit: str = "tokens") -> None:
        """Work on ``what`` begins; it will take ``total`` tokens, or whatever ``unit`` says."""

    def at(self, where: str) -> None:
        """The work has come to ``where``, such as ``"block 3/30 · mlp.down_proj"``."""

    def advance(self, amount: int) -> None:
        """So many more units are done."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The work is over."""


class Clock:
    """Seconds that were spent, by stage of the work."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count what is done in this context as ``stage``."""
        began = time.perf_counter()
        yield
        self._spent[stage] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, to the millisecond."""
        return {stage: round(spent, 3) for stage, spent in self._spent.items()}

    def set(self, seconds: Mapping[str, float]) -> None:
        """Go on from what an earlier run spent, by stage."""
        self._spent.update(seconds)
