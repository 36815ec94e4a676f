"""The processes that prune one model together, as ``torchrun`` starts them.

Each is a *rank*, and there is one of every number from 0. All walk over the same blocks in step, with the same weights
in memory; what they part is the work on them: samples, searches, steps of reader groups. So there is little to say to
each other: sums, and what one has found. :class:`Ranks` is that, for a process that is alone; :class:`Processes` says
it by torch.distributed, gloo between CPUs and NCCL between GPUs. Plain data travels as JSON: nothing is pickled.

What ends one rank ends all. A rank that fails leaves a word in the store that torchrun keeps, and its connections
break; whoever waits for it, or next would, finds that out at once. The first rank then says what has happened, for all.
"""

import itertools
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from secateur.errors import InputError, Notice, RankError, reason

T = TypeVar("T")

# How long ranks wait for one that works, or whose connections do not break as it is lost, as when its machine is.
PATIENCE = timedelta(hours=1)
# Seconds in which a rank whose connections broke has to give a sign of life. torchrun kills after thirty.
FAREWELL = 10.0
# What a process exits with that leaves it to another to say why.
SILENT = 2

_runs = itertools.count()


class Ranks:
    """All of the processes, from the point of view of one. Here it is alone, so that there is nobody to wait for.

    Attributes:
        rank: its number.
        size: how many there are.
        beside: how many of them are on this machine.
    """

    rank, size, beside = 0, 1, 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks to people."""
        return self.rank == 0

    def own(self, device: str) -> str:
        """Which device this rank computes on where all compute on ``device``: each has a GPU to itself."""
        return device

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This rank's part of some things that all have: contiguous, and after those of the ranks before."""
        begin, end = (-(-rank * len(things) // self.size) for rank in (self.rank, self.rank + 1))
        return things[begin:end]

    def deal(self, costs: Sequence[float]) -> list[int]:
        """Which rank is to do each of some things that take so long, all ranks about as long as each other."""
        loads, owners = [0.0] * self.size, [0] * len(costs)
        for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
            owners[number] = loads.index(min(loads))
            loads[owners[number]] += costs[number]
        return owners

    # ---------------------------------------------------------------- what all do together, in the same sequence

    def sum(self, tensor: Tensor) -> None:
        """Add to ``tensor`` those of the other ranks, in place: the same bits for all. Shapes and types are alike."""

    def gather(self, number: int) -> list[int]:
        """The ``number`` that each rank has."""
        return [number]

    def give(self, tensor: Tensor, owner: int) -> None:
        """Let all have, in place, the bits of what the ``owner`` has. Shapes and types are alike."""

    def tell(self, data: T | None, kind: type[T], owner: int = 0) -> T:
        """What the ``owner`` has as ``data`` of a ``kind`` that JSON holds; what others give is not looked at."""
        assert data is not None
        return data

    def each(self, jobs: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """What every job comes to, each on the device of the rank. The ranks take turns at them: each is done once."""
        return [job() for job in jobs]


class Processes(Ranks):
    """Several processes; see :func:`joined`."""

    def __init__(self) -> None:
        """Connect with the others, which do the same: the environment says where they are found.

        Raises:
            InputError: when that fails.
        """
        if dist.is_initialized():
            raise InputError("torch.distributed is in use in this process: prune before it is, or in one process")
        number, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
        if not (number.isdecimal() and size.isdecimal() and int(number) < int(size)):
            raise InputError(
                f"rank {number!r} of {size!r} processes makes no sense: RANK and WORLD_SIZE are torchrun's"
            )
        both = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            with _mortal():
                store, self.rank, self.size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
                self.beside = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
                self._store = PrefixStore(f"secateur/{next(_runs)}", store)
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if both else "gloo",
                    store=PrefixStore("group", self._store),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=PATIENCE,
                )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the processes that torchrun started cannot be connected ({reason(error)}): RANK, WORLD_SIZE, "
                "MASTER_ADDR and MASTER_PORT say how"
            ) from error

    def own(self, device: str) -> str:
        """See :meth:`Ranks.own`.

        Raises:
            InputError: where ``device`` is one GPU, which all would have to share.
        """
        kind, _, number = device.partition(":")
        if kind != "cuda":
            return device
        if number not in ("", "0"):
            raise InputError(f"device {device!r} is one GPU, and every process has its own: give cuda (--device)")
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        if local < torch.cuda.device_count():
            torch.cuda.set_device(local)
        return f"cuda:{local}"

    def sum(self, tensor: Tensor) -> None:
        """See :meth:`Ranks.sum`."""
        with self._together(tensor):
            dist.all_reduce(tensor)

    def gather(self, number: int) -> list[int]:
        """See :meth:`Ranks.gather`."""
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = number
        self.sum(numbers)
        return numbers.tolist()

    def give(self, tensor: Tensor, owner: int) -> None:
        """See :meth:`Ranks.give`."""
        whole = tensor.contiguous()
        with self._together(whole):
            dist.broadcast(whole.reshape(-1).view(torch.uint8), owner)
        if whole is not tensor:
            tensor.copy_(whole)

    def tell(self, data: T | None, kind: type[T], owner: int = 0) -> T:
        """See :meth:`Ranks.tell`."""
        text = msgspec.json.encode(data) if self.rank == owner else b""
        length = torch.tensor(len(text))
        self.give(length, owner)
        letters = torch.frombuffer(bytearray(text or int(length)), dtype=torch.uint8)
        self.give(letters, owner)
        return msgspec.json.decode(letters.numpy().tobytes(), type=kind)

    def each(self, jobs: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """See :meth:`Ranks.each`."""
        done = {number: job() for number, job in enumerate(jobs) if number % self.size == self.rank}
        found: list[Tensor] = []
        for number in range(len(jobs)):
            owner, mine = number % self.size, done.get(number)
            about = (
                None if mine is None else (tuple(mine.shape), str(mine.dtype).removeprefix("torch."), mine.device.type)
            )
            shape, dtype, device = self.tell(about, tuple[tuple[int, ...], str, str], owner)
            found.append(torch.empty(shape, dtype=getattr(torch, dtype), device=device) if mine is None else mine)
            self.give(found[-1], owner)
        return found

    @contextmanager
    def _together(self, tensor: Tensor) -> Iterator[None]:
        """Turn what torch raises when another rank is gone into :class:`_Lost`.

        NCCL would wait for it in vain. So before a GPU's tensor goes that way, gloo finds out that all have come.
        """
        try:
            if tensor.is_cuda:
                dist.all_reduce(torch.zeros(1))
            yield
        except RuntimeError as error:
            _ignore_signals()
            traceback.clear_frames(error.__traceback__)  # they hold the group, and so the connections, open
            raise _Lost(reason(error)) from error

    # ---------------------------------------------------------------- the end

    def close(self) -> None:
        """Take leave of the others after all have done the same work well."""
        dist.destroy_process_group()

    def verdict(self, error: BaseException) -> BaseException:
        """What this rank is to raise in place of the ``error`` that ended it, when the others know of it as well."""
        _ignore_signals()
        own = _described(error)
        with suppress(RuntimeError):  # the store may be gone with whoever kept it
            self._store.set(f"end/{self.rank}", own)
        dist.destroy_process_group()  # whoever waits for this rank stops waiting
        if self.first:
            return error if own else self._explained(error)
        if own or self._ends([0]) or not self._speaks():
            return SystemExit(SILENT)
        return RankError(self._silence([0]))

    def _explained(self, error: BaseException) -> BaseException:
        """What the first rank says of an end that came from elsewhere."""
        others = range(1, self.size)
        ends = self._ends(others)
        if said := [f"{self._named([rank])}: {text}" for rank, text in ends.items() if text]:
            found = RankError(said[0])
        elif missing := [rank for rank in others if rank not in ends]:
            text = self._silence(missing)
            if isinstance(error, KeyboardInterrupt):  # torchrun stops all when one has died
                error.add_note(text)
                return error
            found = RankError(text)
        elif isinstance(error, KeyboardInterrupt):
            return error
        else:
            found = RankError(f"the connection between the processes broke: {error}")
        for note in getattr(error, "__notes__", ()):
            found.add_note(note)
        return found

    def _ends(self, ranks: Sequence[int]) -> dict[int, str]:
        """The last words of those ``ranks`` that have an end to report, when all have, or have had the time."""
        found: dict[int, str] = {}
        until = time.monotonic() + FAREWELL
        with suppress(RuntimeError):
            while len(found) < len(ranks) and not any(found.values()) and time.monotonic() < until:
                for rank in ranks:
                    if rank not in found and self._store.check([f"end/{rank}"]):
                        found[rank] = self._store.get(f"end/{rank}").decode()
                time.sleep(0.02)
        return found

    def _speaks(self) -> bool:
        """Whether nobody else has said yet that the first rank is gone."""
        with suppress(RuntimeError):
            return self._store.add("said", 1) == 1
        return True

    def _silence(self, ranks: Sequence[int]) -> str:
        return f"{self._named(ranks)} does not answer any more: it was killed, or its machine or the network fails"

    def _named(self, ranks: Sequence[int]) -> str:
        return f"rank {', '.join(map(str, ranks))} of {self.size}"


class _Lost(Exception):
    """Another rank did not take part in what all do together."""


def _described(error: BaseException) -> str:
    """What others should know of an error of this rank's own; empty for what has come from elsewhere."""
    if isinstance(error, _Lost | KeyboardInterrupt):
        return ""
    if isinstance(error, InputError | OSError | MemoryError):
        return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(error))


def _ignore_signals() -> None:
    """Let no signal interrupt what is left to be said: torchrun sends SIGTERM to all ranks when one has ended."""
    with suppress(ValueError):  # signals come to the main thread alone
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _mortal() -> Iterator[None]:
    """Let signals end the process at once for a while, in which nothing is begun and no Python runs to mind them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def joined() -> Iterator[Ranks]:
    """All processes that torchrun started with this one, connected; or this one alone.

    What ends one rank in this context ends all. Signals that ask an ended rank to end are ignored from then on.

    Raises:
        InputError: when they cannot be connected.
        RankError: on the first rank, when another one failed or is gone; on another one, when the first is gone.
        SystemExit: on all others.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield Ranks()
        return
    ranks = Processes()
    with warnings.catch_warnings():
        if not ranks.first:
            warnings.simplefilter("ignore", Notice)
        try:
            yield ranks
        except BaseException as error:
            verdict = ranks.verdict(error)
            if verdict is error:
                raise
            raise verdict from error
        ranks.close()
