"""Where to compute, in which precision, and how much memory there is."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from secateur.errors import InputError, reason

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` … means here. Raises :class:`InputError` if there is none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=name).device  # only using a device shows that it is there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here ({reason(error)}); give auto, cpu or cuda") from None


def check_dtype(name: str) -> None:
    """Raise :class:`InputError` unless ``name`` is ``auto`` or one of :data:`DTYPES`."""
    if name not in ("auto", *DTYPES):
        raise InputError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")


def choose_dtype(name: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision to compute in: by name, or float32 on a CPU and the checkpoint's own on a GPU."""
    if name != "auto":
        return DTYPES[name]
    return torch.float32 if device.type == "cpu" else stored


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32 for a while, whatever the process allows: TF32, bfloat16, autocast.

    Those are settings for training; statistics and least squares would lose most of their digits to them, and nothing
    would say so.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    allowed = [backend.fp32_precision for backend in backends]
    try:
        name = torch.get_float32_matmul_precision()
    except RuntimeError:  # there is none for both when they were set apart
        name = None
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        if name is not None:
            torch.set_float32_matmul_precision(name)
        for backend, precision in zip(backends, allowed, strict=True):
            backend.fp32_precision = precision


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads for a while: sums that are parted otherwise round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on ``device`` now: of a CUDA device its own, else the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def return_freed_memory() -> None:
    """Give what this process has freed back to the system.

    glibc keeps freed activations in its heap, so fragmented that each block would need fresh memory: on
    SmolLM2 the process grew by 35 MB a block.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
