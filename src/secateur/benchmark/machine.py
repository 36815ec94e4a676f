"""What of this machine a time depends on."""

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Machine:
    """Where something was measured.

    Attributes:
        gpu: what it calls itself, or None where the processor computed.
        processor: what it calls itself.
        threads: how many of its threads torch and the kernels use (``OMP_NUM_THREADS``).
        torch: the version of torch.
    """

    gpu: str | None
    processor: str
    threads: int
    torch: str

    def __str__(self) -> str:
        where = f"{self.gpu} with {self.processor}" if self.gpu else self.processor
        return f"{where}, {self.threads} thread{'' if self.threads == 1 else 's'}, torch {self.torch}"


def this_machine(device: torch.device = CPU) -> Machine:
    """The machine that this runs on, as torch is set now, for what runs on ``device``."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Machine(gpu, _processor(), torch.get_num_threads(), str(torch.__version__))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
