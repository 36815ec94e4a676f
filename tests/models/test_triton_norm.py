"""The fused kernel, on a GPU or in Triton's interpreter."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

triton_norm = pytest.importorskip("secateur.models.triton_norm", reason="needs triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(32, torch.float32), (48, torch.float32), (576, torch.bfloat16), (64, torch.float16), (1500, torch.bfloat16)],
)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_the_kernel_is_the_norm_and_the_gather(width, dtype, index):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(width, eps=1e-5).to(DEVICE, dtype)
    norm.weight.data = torch.randn(width).to(DEVICE, dtype)
    hidden, order = torch.randn(2, 3, width).to(DEVICE, dtype), torch.randperm(width).to(DEVICE, index)
    expected = norm(hidden)[..., order]
    fused = triton_norm.rms_norm_gather(hidden, norm.weight, order, norm.variance_epsilon)
    assert fused.shape == expected.shape and fused.dtype == expected.dtype
    torch.testing.assert_close(fused, expected)


def test_a_weight_of_a_wider_type_widens_the_output():
    hidden, weight = torch.randn(2, 64).to(DEVICE, torch.bfloat16), torch.randn(64, device=DEVICE)
    order = torch.randperm(64, device=DEVICE)
    fused = triton_norm.rms_norm_gather(hidden, weight, order, 1e-5)
    wide = hidden.float()
    normed = (wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()).bfloat16()
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, (weight * normed)[:, order], rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs 9 GB of a GPU")
def test_rows_beyond_32_bits():
    hidden = torch.empty((1 << 31) // 4096 + 1, 4096, device="cuda", dtype=torch.bfloat16)
    hidden[-1] = torch.randn(4096)
    weight, order = torch.ones(4096, device="cuda").bfloat16(), torch.randperm(4096, device="cuda")
    last = triton_norm.rms_norm_gather(hidden[-1:], weight, order, 1e-5)
    assert torch.equal(triton_norm.rms_norm_gather(hidden, weight, order, 1e-5)[-1:], last)
