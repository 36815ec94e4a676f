"""Stop work at any of its changes of the file system."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from secateur.checkpoint import durable, workspace
from secateur.errors import InputError

STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


class Died(BaseException):
    """The process is no more: from here on it changes nothing, whatever it has to clean up."""


def _interrupt() -> None:
    raise KeyboardInterrupt


def _fill_the_disk() -> None:
    raise OSError(28, "No space left on device")


WAYS: dict[str, Callable[[], None] | None] = {
    "killed": None,
    "interrupted": _interrupt,
    "full disk": _fill_the_disk,
}


@contextmanager
def stopping(step: int, way: str, exchanges: bool = True) -> Iterator[None]:
    """Stop what is done in this context just before its ``step``-th change of the file system, in one of WAYS.

    Args:
        exchanges: whether the system can exchange two folders in one step.
    """
    left = step

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            stop = WAYS[way]
            if stop is None and left < 0:
                raise Died
            if stop is not None and left == -1:
                stop()
            return change(*args, **kwargs)

        return changing

    exchange = counted(durable.exchange) if exchanges else lambda *_: False
    changes: dict[str, Any] = {name: counted(getattr(os, name)) for name in STEPS}
    with mock.patch.multiple(os, **changes), mock.patch.object(workspace, "exchange", exchange):
        yield


def stopped(work: Callable[[], object], step: int, way: str = "killed", exchanges: bool = True) -> bool:
    """Do ``work`` and stop it: whether it came so far, and minded."""
    try:
        with stopping(step, way, exchanges):
            work()
    except (Died, KeyboardInterrupt, OSError, InputError):
        return True
    return False
