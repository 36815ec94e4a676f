"""2:4 without a GPU: torch's semi-structured tensors are the real ones, and only their kernels have stand-ins."""

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from secateur.masks import select
from secateur.patterns import NM

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TYPES = [torch.bfloat16, torch.float16]
TWO_OF_FOUR = NM(2, 4)


class AsGPU(str):
    """A device that models can be moved to, and that counts as a GPU."""

    type = "cuda"

    def __str__(self):
        return self.type


def pretend(dense, sparse):
    """A clock that shows, by the number of tokens, one time for dense products and another for sparse ones."""

    def milliseconds(products):
        rows, form, _ = products[0].args
        return (sparse if isinstance(form, SparseSemiStructuredTensor) else dense)(len(rows))

    return milliseconds


def pruned(rows, columns, dtype=torch.bfloat16, pattern=TWO_OF_FOUR, device="cpu", seed=0):
    """A random weight of that pattern, with some groups that keep fewer."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight = weight.where(select(weight.abs(), pattern), 0)
    weight[::3, :8] = 0
    weight[1::3, 4:6] = 0
    return weight.to(device, dtype)


@pytest.fixture
def kernels(monkeypatch):
    """Stand-ins on the CPU for what torch has on CUDA only; they demand what the real ones demand."""

    def demand_fit(cls, weight):
        constraints = cls._DTYPE_SHAPE_CONSTRAINTS[weight.dtype]
        if weight.shape[0] % constraints.sparse_min_rows or weight.shape[1] % constraints.sparse_min_cols:
            raise RuntimeError(f"{tuple(weight.shape)} is not supported")
        assert weight.is_contiguous()

    def mm(packed, meta, dense, *, out_dtype=None):
        assert dense.shape[0] == 2 * packed.shape[1] and dense.shape[1] % 8 == 0 and dense.shape[1] > 0
        assert 1 in dense.stride()
        return sparse_semi_structured_to_dense_cutlass(packed, meta) @ dense

    def addmm(bias, packed, meta, dense, *, alpha=1, beta=1, out_dtype=None):
        return mm(packed, meta, dense) + bias[:, None]

    def cslt_compress(weight):  # how cuSPARSELt lays it out nobody says, only in how much: 9/16
        groups = weight.view(-1, 4)
        places = (groups == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :2]
        low, high = (places[:, 0] | places[:, 1] << 2).view(-1, 2).unbind(1)
        return torch.cat([groups.gather(1, places).flatten(), (low | high << 4).to(torch.uint8).view(weight.dtype)])

    def cslt_mm(packed, dense, bias=None, alpha=None, out_dtype=None, transpose_result=False, alg_id=0, *rest):
        assert dense.shape[1] % 8 == 0 and dense.shape[1] > 0 and alg_id == 0
        size = packed.numel() * 16 // 9
        values, codes = packed[: size // 2].view(-1, 2), packed[size // 2 :].view(torch.uint8).long()
        codes = torch.stack([codes & 15, codes >> 4], 1).flatten()
        groups = packed.new_zeros(size // 4, 4).scatter_(1, torch.stack([codes & 3, codes >> 2], 1), values)
        product = groups.view(-1, dense.shape[0]) @ dense + (0 if bias is None else bias[:, None])
        return product.T.contiguous() if transpose_result else product

    monkeypatch.setattr("secateur.runtime.acceleration.free_memory", lambda linears: 1 << 40)
    monkeypatch.setattr(SparseSemiStructuredTensor, "_validate_device_dim_dtype_shape", classmethod(demand_fit))
    library = torch.library.Library("aten", "IMPL")
    for name, stand_in in (
        ("_sparse_semi_structured_mm", mm),
        ("_sparse_semi_structured_addmm", addmm),
        ("_cslt_compress", cslt_compress),
        ("_cslt_sparse_mm", cslt_mm),
    ):
        library.impl(name, stand_in, "CPU")
    yield
    library._destroy()
