"""A linear whose weight stays packed in memory.

For a few tokens, as when text is generated, what counts is how many bytes of weights are read, and the native
kernels multiply with the packed weight as it is. For many tokens the product itself counts: the weight is
expanded for the moment, and torch multiplies.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.checkpoint.sparse import WORD, SparseWeight
from secateur.runtime.kernels import KERNELS

if TYPE_CHECKING:
    from secateur.runtime._native import Kernels

# For more tokens a dense product is faster (benchmarks/sparse_linear.py).
MOST_TOKENS = 16
# Rows that are expanded for it at a time: they stay in the cache, and little memory is needed.
TILE_ROWS = 512
# Integer sums of so many columns fit in 32 bits.
_LARGEST_GROUP = 512
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
    kernels: "Kernels | None" = KERNELS[0] if KERNELS else None  # of the class, since they cannot be copied

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
        if self.group > _LARGEST_GROUP:
            self.kernels = None

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(O, I)``, made anew."""
        return self.packed().dense()

    def packed(self) -> SparseWeight:
        """The weight as it was given."""
        kept = self.values[:-_READ_PAST]
        return SparseWeight(
            shape=(self.out_features, self.in_features),
            dtype=self.dtype,
            mask=self.mask,
            values=kept if self.group else kept.view(torch.bfloat16),
            scales=None if self.scales is None else self.scales.view(torch.bfloat16),
            group=self.group,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., I)`` → ``(..., O)``, in the inputs' type."""
        here = inputs.device.type == self.mask.device.type == "cpu"  # kernels take addresses
        native = here and inputs.dtype in (torch.bfloat16, torch.float32)
        if self.kernels is None or not native or (torch.is_grad_enabled() and inputs.requires_grad):
            return nn.functional.linear(inputs, self.packed().to(inputs.dtype).dense(), self.bias)
        rows = inputs.reshape(-1, self.in_features).contiguous()
        out = self._multiply(rows) if len(rows) <= MOST_TOKENS else self._by_tiles(rows)
        if self.bias is not None:
            out += self.bias
        return out.view(*inputs.shape[:-1], self.out_features)

    @torch.no_grad()
    def _multiply(self, rows: Tensor) -> Tensor:
        """``(T, I)`` → ``(T, O)`` with the weight as it is."""
        assert self.kernels is not None
        if self.in_features % WORD:
            rows = nn.functional.pad(rows, (0, -self.in_features % WORD))
        out = rows.new_empty(len(rows), self.out_features)
        is_bfloat16 = rows.dtype == torch.bfloat16
        self.kernels.multiply(rows.data_ptr(), out.data_ptr(), is_bfloat16, len(rows), *self._matrix())
        return out

    @torch.no_grad()
    def _by_tiles(self, rows: Tensor) -> Tensor:
        """The same by dense products."""
        assert self.kernels is not None
        out = rows.new_empty(len(rows), self.out_features)
        tile = rows.new_empty(min(TILE_ROWS, self.out_features), self.in_features)
        for first in range(0, self.out_features, TILE_ROWS):
            last = min(first + TILE_ROWS, self.out_features)
            self.kernels.expand(tile.data_ptr(), rows.dtype == torch.bfloat16, first, last, *self._matrix())
            torch.mm(rows, tile[: last - first].T, out=out[:, first:last])
        return out

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
