"""How fast a machine does each kind of work that pruning is made of: measured here, or given as data."""

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import lap
import numpy as np
import psutil
import torch
from torch import nn

from secateur.devices import free_memory, full_precision
from secateur.masks import select
from secateur.patterns import Unstructured
from secateur.permute.assign import l1_distances
from secateur.pruning.linear import LinearPruning
from secateur.recipe import Recipe
from secateur.stats.gram import Gram
from secateur.stats.inputs import InputStats

# Work is repeated until so many seconds are spent on each kind, and the median of its times counts.
SECONDS = 0.2
# A pass over so many bytes says how fast any number is read; more would only take longer.
MOST_BYTES = 1 << 30
_PASSES = 15
# Tokens of text per second, of a fast tokenizer on one core. Not measured: where there is only a config there is none.
TOKENIZED = 400_000


@dataclass(frozen=True)
class Rates:
    """So much is done per second.

    Attributes:
        device: what computes, ``cpu`` or ``cuda``.
        dtype: of forward passes.
        products: FLOPs of products of matrices in that dtype.
        products32: the same in float32.
        grams: the same of Gram matrices, from inputs in that dtype.
        moved: bytes that elementwise operations on the device read and write.
        calls: small operations, each a call from Python.
        pruned: weights that are scored, masked and digested.
        selected: weights of which an unstructured mask is selected.
        distances: differences summed to L1 distances, K² R for K groups and R rows.
        assigned: K³ of assignments of K channels to as many groups, with all their values.
        listed: values of assignments that choose among a few channels for each group.
        factored: I³ of factors of the inverse of a Gram matrix.
        diagonalized: I³ of its eigendecomposition.
        hashed: bytes whose SHA-256 is taken.
        tokenized: tokens of text.
        disk_read: bytes.
        disk_write: bytes, until they are durable.
        files: small files, until they are durable.
        free: bytes of the host's memory that are free.
        device_free: bytes of the device's memory that are free; on a CPU the same.
        process: bytes of the host's memory that Python, torch and transformers take by themselves.
    """

    device: str
    dtype: str
    products: float
    products32: float
    grams: float
    moved: float
    calls: float
    pruned: float
    selected: float
    distances: float
    assigned: float
    listed: float
    factored: float
    diagonalized: float
    hashed: float
    tokenized: float
    disk_read: float
    disk_write: float
    files: float
    free: int
    device_free: int
    process: int


@full_precision()
@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS) -> Rates:
    """Measure this machine, as torch is set now, in some seconds and about a gigabyte of memory.

    Args:
        device: which computes.
        dtype: of forward passes.
        seconds: the time to spend on each kind of work.
    """
    process = psutil.Process().memory_info().rss

    def rate(amount: float, work: Callable[[], object]) -> float:
        """The amount over the median of its times, the first one excepted."""
        work()
        times: list[float] = []
        ends = time.perf_counter() + seconds
        while not times or time.perf_counter() < ends:
            _wait(device)
            began = time.perf_counter()
            work()
            _wait(device)
            times.append(time.perf_counter() - began)
        return amount / statistics.median(times)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    wide = 4 if device.type == "cuda" else 1  # a GPU needs more to be busy
    n = 1024 * wide
    inputs, weight = random(n, n), random(n, n)
    narrow = inputs.to(dtype), weight.to(dtype)
    weights, small, scores = torch.randn(n, n), random(16, 16), random(n, n).abs()
    distances, few = -l1_distances(scores[:512], scores[512:1024]).double().cpu().numpy(), 16
    draw = np.random.default_rng(0)
    near = np.sort((np.arange(1024)[:, None] + np.r_[0, 1 + draw.choice(1022, few - 1, replace=False)]) % 1024, 1)
    sparse = (
        draw.integers(0, 4096, 1024 * few).astype(float),
        np.arange(0, 1024 * few + 1, few, dtype=np.int32),
        near.ravel().astype(np.int32),
    )
    recipe = Recipe(samples=1)
    stats = InputStats(n, device=device)
    stats.update(inputs)
    stats.rows.clear()  # the products of output errors count by themselves
    gram = (inputs.T @ inputs).diagonal_scatter(torch.full((n,), 2.0 * n, device=device))
    block, out = random(16 << 20), torch.empty(16 << 20, device=device)
    data = os.urandom(16 << 20)
    disk_write, disk_read, files = _disk(seconds)
    return Rates(
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        products=rate(2 * n**3, lambda: nn.functional.linear(*narrow)),
        products32=rate(2 * n**3, lambda: inputs @ weight),
        grams=rate(2 * n**3, lambda: InputStats(n, device=device, gram=True).update(narrow[0])),
        moved=rate(2 * block.nbytes, lambda: torch.add(block, 1, out=out)),
        calls=rate(100, lambda: [small + 1 for _ in range(100)]),
        pruned=rate(n * n, lambda: LinearPruning("", weights, Unstructured(0.5), stats, recipe, device).result()),
        selected=rate(n * n, lambda: select(scores, Unstructured(0.5))),
        distances=rate(512 * 512 * n, lambda: l1_distances(scores[:512], scores[512:1024])),
        assigned=rate(512**3, lambda: lap.lapjvs(distances, return_cost=False)),
        listed=rate(1024 * few, lambda: lap.lapmod(1024, *sparse, return_cost=False)),
        factored=rate(n**3, lambda: Gram(gram).inverse_factor),
        diagonalized=rate((n // 2) ** 3, lambda: Gram(gram[: n // 2, : n // 2]).spectrum),
        hashed=rate(len(data), lambda: hashlib.sha256(data).digest()),
        tokenized=TOKENIZED,
        disk_read=disk_read,
        disk_write=disk_write,
        files=files,
        free=int(psutil.virtual_memory().available),
        device_free=free_memory(device),
        process=process,
    )


def _disk(seconds: float) -> tuple[float, float, float]:
    """Bytes per second read and written, and small files per second, in the current folder if it can be written."""
    data, ends = os.urandom(16 << 20), time.perf_counter() + seconds
    folder = "." if os.access(".", os.W_OK) else None
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        while True:
            file.write(data)
            if time.perf_counter() > ends:
                break
        _flush(file)
        size, written = file.tell(), time.perf_counter() - began
        if hasattr(os, "posix_fadvise"):  # else it is read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(len(data)):
            pass
        read = time.perf_counter() - began
    began, files = time.perf_counter(), 0
    while files == 0 or time.perf_counter() < began + seconds:
        with tempfile.NamedTemporaryFile(dir=folder) as small:
            small.write(b"small")
            _flush(small)
        files += 1
    return size / written, size / read, files / (time.perf_counter() - began)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_rate(number: int) -> float:
    """Bytes per second at which a set of ``number`` bytes is read again and again: the fastest of a few passes.

    A set that fits in the cache is read from there, as the weights of a model of that size are. Of a larger one than
    1 GiB, or an eighth of the memory that is free, only so much is read.
    """
    number = max(1 << 12, min(number, MOST_BYTES, psutil.virtual_memory().available // 8))
    numbers = torch.ones(number // 4)  # float32
    times = []
    for _ in range(_PASSES):
        began = time.perf_counter()
        numbers.dot(numbers)  # both operands are the same memory, which is read once
        times.append(time.perf_counter() - began)
    return numbers.nbytes / min(times)
