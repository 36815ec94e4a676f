"""Where to compute, in which precision, and how much memory there is."""

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from secateur.errors import InputError, reason

CGROUP = Path("/sys/fs/cgroup")
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


def choose_calibration_dtype(name: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The same for calibration samples on their way through a model, which bear rounding: bfloat16 where it is fast.

    What is published of a model is measured as :func:`choose_dtype` has it, whatever the processor.
    """
    fast = device.type == "cpu" and has_fast_bfloat16() and stored in (torch.bfloat16, torch.float32)
    return torch.bfloat16 if name == "auto" and fast else choose_dtype(name, stored, device)


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones: where it has AMX.

    There bfloat16 products take 0.26 to 0.37 of the time. With AVX-512's own instructions for bfloat16 the same
    processor took 0.96 to 1.7 times as long as for float32, with emulated ones 5 times.
    """
    return bool(torch.cpu._is_amx_tile_supported())


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
def bfloat16_products() -> Iterator[None]:
    """Multiply float32 matrices whose values are all of bfloat16 as such for a while, summing in float32.

    Nothing is lost: bfloat16, and TF32 on a GPU, hold the factors, and a product of two fits float32. On a CPU with
    AMX it takes 0.43 of the time.
    """
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    allowed = cuda.fp32_precision, cpu.fp32_precision
    cuda.fp32_precision = "tf32"
    if has_fast_bfloat16():  # elsewhere it is emulated
        cpu.fp32_precision = "bf16"
    try:
        yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision = allowed


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
    """Bytes that are free on ``device`` now: of a CUDA device its own, else the machine's, or the container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return max(0, int(min(psutil.virtual_memory().available, _free_in_group())))


def _free_in_group() -> float:
    """Bytes that the control group of this process may take yet (cgroup v2); infinite where nothing bounds it."""
    try:
        most, now = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return most - now + int(facts["inactive_file"])  # which counts, and gives way
    except (OSError, ValueError, KeyError):  # there is no such group, or its most is "max"
        return math.inf


def resident_memory() -> int:
    """Bytes of the machine's memory that this process has now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def return_freed_memory() -> None:
    """Give what this process has freed back to the system.

    glibc keeps freed activations in its heap, so fragmented that each block would need fresh memory: on
    SmolLM2 the process grew by 35 MB a block.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
