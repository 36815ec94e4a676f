"""Several processes as torchrun starts them, without the seconds in which each imports torch anew."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "secateur.pruning.folder", "tests.pico"])


def start(size: int, work: Callable[..., object], *arguments: Any) -> Sequence[BaseProcess]:
    """Let ``size`` processes do ``work``, a function of a module, each with its rank and the ``arguments``.

    The store in which they find each other is kept by this process, as by torchrun, and outlives them.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    processes = [
        _context.Process(target=_begin, args=(rank, size, store.port, work, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
        process.store = store  # type: ignore[attr-defined]
    return processes


def ended(processes: Sequence[BaseProcess], seconds: float = 60) -> list[int | None]:
    """The exit codes of processes, none of which may take longer than that to end."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _begin(rank: int, size: int, port: int, work: Callable[..., object], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    work(rank, *arguments)
