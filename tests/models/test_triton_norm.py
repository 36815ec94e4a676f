"""The fused kernel, under Triton's interpreter in a process of its own: it must be chosen before the import."""

import importlib.util
import os
import subprocess
import sys

import pytest

CODE = """
import torch
from secateur.models.triton_norm import rms_norm_gather
from transformers.models.llama.modeling_llama import LlamaRMSNorm
torch.manual_seed(0)
for width, dtype in ((32, torch.float32), (48, torch.float32), (576, torch.bfloat16), (64, torch.float16)):
    norm = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    norm.weight.data = torch.randn(width).to(dtype)
    hidden, order = torch.randn(2, 3, width).to(dtype), torch.randperm(width)
    expected = norm(hidden)[..., order]
    fused = rms_norm_gather(hidden, norm.weight, order, norm.variance_epsilon)
    assert fused.shape == expected.shape and fused.dtype == expected.dtype
    torch.testing.assert_close(fused, expected)
print("fine")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernel_is_the_norm_and_the_gather():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.strip() == "fine", result.stderr
