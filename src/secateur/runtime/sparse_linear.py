"""A linear whose weight stays packed in memory.

For a few tokens, as when text is generated, what counts is how many bytes of weights are read, and the native
kernels multiply with the packed weight as it is. For many tokens the product itself counts: the weight is
expanded for the moment, and torch multiplies.
"""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.formats.sparse import WORD, SparseWeight
from secateur.runtime.kernels import KERNELS

# From more tokens on, expanding the weight and a dense product is faster (benchmarks/sparse_linear.py).
MOST_TOKENS = 16
# Integer sums of so many columns fit in 32 bits.
_LARGEST_GROUP = 4096
# Kernels load whole registers, and so look at what lies behind the last value.
_READ_PAST = 64


class SparseLinear(nn.Module):
    """``nn.Linear`` with a sparse weight of bfloat16 or int8 values.

    Its state dict is that of the ``nn.Linear`` it stands for, so that a model that holds it saves as a plain one.

    Args:
        weight: ``(O, I)``.
        bias: ``(O,)``, or None.
    """

    mask: Tensor
    values: Tensor
    starts: Tensor
    scales: Tensor | None

    def __init__(self, weight: SparseWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.group, self.bias = weight.dtype, weight.group, bias
        # As integers: casting a model to another precision must leave them as they are.
        bits = weight.values if weight.group else weight.values.view(torch.int16)
        kept = weight.kept().sum(1)
        buffers = {
            "mask": weight.mask,
            "values": nn.functional.pad(bits, (0, _READ_PAST)),
            "starts": nn.functional.pad(kept.cumsum(0), (1, 0)),
            "scales": None if weight.scales is None else weight.scales.view(torch.int16),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        self.kernels = KERNELS[0] if KERNELS and self.group <= _LARGEST_GROUP else None

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(O, I)``, made anew."""
        kept = self.values[:-_READ_PAST]
        return SparseWeight(
            shape=(self.out_features, self.in_features),
            dtype=self.dtype,
            mask=self.mask,
            values=kept if self.group else kept.view(torch.bfloat16),
            scales=None if self.scales is None else self.scales.view(torch.bfloat16),
            group=self.group,
        ).dense()

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., I)`` → ``(..., O)``, in the inputs' type."""
        native = self.kernels is not None and inputs.device.type == "cpu"
        native = native and inputs.dtype in (torch.bfloat16, torch.float32)
        if native and inputs.numel() <= MOST_TOKENS * self.in_features and not _needs_grad(inputs):
            out = self._multiply(inputs)
            return out if self.bias is None else out + self.bias
        dense = self._expand(inputs.dtype) if native else self.weight.to(inputs.dtype)
        return nn.functional.linear(inputs, dense, self.bias)

    def _multiply(self, inputs: Tensor) -> Tensor:
        rows = nn.functional.pad(inputs, (0, -self.in_features % WORD)) if self.in_features % WORD else inputs
        rows = rows.contiguous()
        out = inputs.new_empty(*inputs.shape[:-1], self.out_features)
        tokens = inputs.numel() // max(1, self.in_features)
        assert self.kernels is not None
        self.kernels.multiply(rows.data_ptr(), out.data_ptr(), inputs.dtype == torch.bfloat16, tokens, *self._matrix())
        return out

    def _expand(self, dtype: torch.dtype) -> Tensor:
        dense = torch.empty(self.out_features, self.in_features, dtype=dtype)
        assert self.kernels is not None
        self.kernels.expand(dense.data_ptr(), dtype == torch.bfloat16, 0, self.out_features, *self._matrix())
        return dense

    def _matrix(self) -> tuple[int, int, int, int, int, int, int, int]:
        """The packed weight as the native kernels take it, and the number of threads."""
        scales = 0 if self.scales is None else self.scales.data_ptr()
        return (
            self.out_features,
            self.in_features,
            self.mask.data_ptr(),
            self.values.data_ptr(),
            self.starts.data_ptr(),
            scales,
            self.group,
            torch.get_num_threads(),
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def extra_repr(self) -> str:
        """Like that of ``nn.Linear``."""
        values = "int8" if self.group else "bfloat16"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {values}"
        )


def _needs_grad(inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and inputs.requires_grad
