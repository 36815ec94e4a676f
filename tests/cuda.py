"""A GPU's products without a GPU: the package's own code runs, and cuSPARSELt and the clock have stand-ins."""

import contextlib

import pytest
import torch

from secateur.masks import select
from secateur.patterns import NM
from secateur.runtime import cusparselt, semi_structured
from secateur.runtime.algorithms import Algorithms
from secateur.runtime.semi_structured import SemiStructuredLinear
from secateur.runtime.sparse_linear import SparseLinear
from tests.cusparselt import StandIn

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TYPES = [torch.bfloat16, torch.float16]
TWO_OF_FOUR = NM(2, 4)


class AsGPU(str):
    """A device that models can be moved to, and that counts as a GPU."""

    type = "cuda"

    def __str__(self):
        return self.type


def pretend(dense, sparse, packed=None):
    """A clock that shows, by the number of tokens, one time for dense products, one for 2:4 and one for packed ones."""

    def one(products):
        form, (rows,) = products[0].func, products[0].args
        if isinstance(form, SparseLinear):
            return (packed or dense)(len(rows)) * (1 if packed else 2)
        return (sparse if isinstance(form, SemiStructuredLinear) else dense)(len(rows))

    return lambda groups: [one(products) for products in groups]


def pruned(rows, columns, dtype=torch.bfloat16, pattern=TWO_OF_FOUR, device="cpu", seed=0):
    """A random weight of that pattern, with some groups that keep fewer."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight = weight.where(select(weight.abs(), pattern), 0)
    weight[::3, :8] = 0
    weight[1::3, 4:6] = 0
    return weight.to(device, dtype)


@pytest.fixture
def cusparselt_stand_in(monkeypatch, tmp_path):
    """The stand-in for the C library, on the CPU's memory; found algorithms are kept in a folder of the test."""
    functions = StandIn()
    library = cusparselt.Library(functions)
    monkeypatch.setattr(cusparselt, "library", lambda: library)
    monkeypatch.setattr(cusparselt, "_current_stream", lambda device: 0)
    monkeypatch.setattr(cusparselt, "_current_device", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Stand-in {device.type}")
    monkeypatch.setattr("secateur.runtime.acceleration.free_memory", lambda device: 1 << 40)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    semi_structured.plan_for.cache_clear()
    yield functions
    semi_structured.plan_for.cache_clear()


def algorithms(folder):
    """Algorithms in a file of the test."""
    return Algorithms(torch.device("cpu"), folder / "algorithms.json")
