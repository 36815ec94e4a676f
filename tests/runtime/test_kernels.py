"""The native kernels on whatever hypothesis thinks of, in memory that ends where the weight does."""

import ctypes
import mmap
import os
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.checkpoint.sparse import WORD, pack, pack_int4, pack_int8
from secateur.runtime.kernels import KERNELS
from secateur.runtime.sparse_linear import SparseLinear


@st.composite
def packed_weights(draw):
    """Of any shape, group and density, and of every kind."""
    pack_integers = draw(st.sampled_from([None, pack_int8, pack_int4]))
    shape = draw(st.integers(1, 9)), 1 + draw(st.integers(0, 2**31)) % 600
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(shape, generator=generator)
    weight[torch.rand(shape, generator=generator) < draw(st.sampled_from([0.5, 0.97, 0, 0.1]))] = 0
    weight *= torch.logspace(-2, 2, shape[0])[:, None]
    group = WORD * draw(st.sampled_from([1, 3, 4, 2, 16]))
    return pack_integers(weight.bfloat16(), group) if pack_integers else pack(weight.bfloat16())


@given(packed_weights(), st.integers(1, 16), st.integers(0, 2**31))
def test_products_are_those_of_the_decoded_weight(weight, tokens, seed):
    """Beside float64; and rows that are expanded are the very bits."""
    inputs = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    exact = weight.to(torch.float32).dense()
    scale = inputs.double().norm(dim=1, keepdim=True) * exact.double().norm(dim=1)
    for kernels in KERNELS:
        linear = SparseLinear(weight)
        linear.kernels = kernels
        error = (linear(inputs).double() - inputs.double() @ exact.double().T).abs()
        assert (error <= (1e-4 if weight.group else 2e-6) * scale + 1e-12).all(), kernels.name
        for dtype in (torch.float32, torch.bfloat16):
            out = torch.full(weight.shape, torch.nan, dtype=dtype)
            kernels.expand(out.data_ptr(), dtype == torch.bfloat16, 0, weight.shape[0], *linear._matrix())
            assert torch.equal(out, weight.to(dtype).dense()), kernels.name


def fenced(tensor):
    """A copy of ``tensor`` that ends where a page begins that nobody may touch."""
    size = tensor.numel() * tensor.itemsize
    pages = -(-size // mmap.PAGESIZE) + 1
    area = mmap.mmap(-1, pages * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    fence = ctypes.c_void_p(start + (pages - 1) * mmap.PAGESIZE)
    assert ctypes.CDLL(None, use_errno=True).mprotect(fence, mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(area, dtype=tensor.dtype, count=tensor.numel(), offset=(pages - 1) * mmap.PAGESIZE - size)
    return copy.view(tensor.shape).copy_(tensor)


def touch_all(kernels):
    """Multiply with and expand weights of every kind, all of whose parts, inputs and outputs are fenced."""
    torch.manual_seed(0)
    for columns in (1, 31, 32, 34, 64, 95, 96, 130, 576):
        dense = torch.randn(5, columns).bfloat16()
        for weight in (dense, dense.where(torch.rand(dense.shape) < 0.5, 0), torch.zeros_like(dense)):
            for packed in (
                pack(weight),
                *(f(weight, group) for f in (pack_int8, pack_int4) for group in (32, 96, 512)),
            ):
                linear = SparseLinear(packed)
                for name, part in linear.named_buffers():
                    if part.numel():
                        setattr(linear, name, fenced(part))
                wide = -(-columns // WORD) * WORD
                for tokens in (1, 3, 9):
                    for dtype in (torch.bfloat16, torch.float32):
                        inputs = fenced(torch.zeros(tokens, wide, dtype=dtype))
                        out = fenced(torch.zeros(tokens, 5, dtype=dtype))
                        is_bfloat16 = dtype == torch.bfloat16
                        kernels.multiply(inputs.data_ptr(), out.data_ptr(), is_bfloat16, tokens, *linear._matrix())
                        rows = fenced(torch.zeros(5, columns, dtype=dtype))
                        kernels.expand(rows.data_ptr(), is_bfloat16, 0, 5, *linear._matrix())


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect and fork")
@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
def test_nothing_beyond_the_weight_is_touched(kernels):
    """But 64 bytes after the values, which the linear has there. In a process that would die of it."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            touch_all(kernels)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
