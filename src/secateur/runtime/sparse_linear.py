"""A linear whose weight stays packed in memory.

For a few tokens, as when text is generated, what counts is how many bytes of weights are read, and kernels multiply
with the packed weight as it is: native ones on a CPU, Triton's on a GPU. For many tokens the product itself counts: the
weight is expanded for the moment, and torch multiplies.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.checkpoint.sparse import LARGEST_GROUP, WORD, SparseWeight
from secateur.runtime.kernels import KERNELS
from secateur.runtime.tiles import Tiles, tile, untile

if TYPE_CHECKING:
    from secateur.runtime._native import Kernels

# For more tokens a dense product is faster (on a CPU: benchmarks/sparse_linear.py).
MOST_TOKENS = 16
# Rows that are expanded for it at a time: they stay in the cache, and little memory is needed.
TILE_ROWS = 512
# What values of so many bits are called.
VALUES = {16: "bfloat16", 8: "int8", 4: "int4"}
# Kernels load whole registers, and so look at what lies behind the last value.
_READ_PAST = 64


@cache
def has_triton() -> bool:
    """Whether packed weights can run on a GPU."""
    return find_spec("triton") is not None


def _in_tiles(device: torch.device) -> bool:
    """Whether weights are laid out in tiles there, for Triton's kernels."""
    return device.type == "cuda" and has_triton()


class SparseLinear(nn.Module):
    """``nn.Linear`` with a packed weight of bfloat16, int8 or 4-bit values.

    Its state dict is that of the ``nn.Linear`` it stands for, so that a model that holds it saves as a plain one. Moved
    between a CPU and a GPU, its weight is laid out as the kernels there read it.

    Args:
        weight: ``(O, I)``.
        bias: ``(O,)``, or None.

    Attributes:
        mask, values, scales: the weight, laid out as on a CPU (with ``starts`` and ``zeros``) or in tiles (with the
            ``rest``).
    """

    mask: Tensor | None
    values: Tensor
    scales: Tensor | None
    zeros: Tensor | None
    starts: Tensor
    rest: Tensor
    rest_lengths: Tensor
    rest_starts: Tensor
    kernels: "Kernels | None" = KERNELS[0] if KERNELS else None  # of the class, since they cannot be copied

    def __init__(self, weight: SparseWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.group, self.bits, self.bias = weight.dtype, weight.group, weight.width, bias
        if self.group > LARGEST_GROUP:
            self.kernels = None
        self._hold(weight)

    def _hold(self, weight: SparseWeight) -> None:
        """Lay ``weight`` out as the kernels of its device read it."""
        for name in list(self._buffers):
            delattr(self, name)
        self.tiled = _in_tiles(weight.values.device)
        if self.tiled:
            tiles = tile(weight)
            self.bits = 8 if weight.group else 16  # which is what tiles hold
            names = ("mask", "values", "scales", "rest", "rest_lengths", "rest_starts")
            buffers = {name: getattr(tiles, name) for name in names}
        else:
            # As integers: casting a model to another precision must leave them as they are.
            bits = weight.values if weight.group else weight.values.view(torch.int16)
            buffers = {
                "mask": weight.mask,
                "values": nn.functional.pad(bits, (0, _READ_PAST)),
                "starts": nn.functional.pad(weight.kept().sum(1).cumsum(0), (1, 0)),
                "scales": None if weight.scales is None else weight.scales.view(torch.int16),
                "zeros": weight.zeros,
            }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLinear":
        device = fn(torch.empty(0, dtype=torch.uint8, device=self.values.device)).device
        if self.tiled != _in_tiles(device) and device.type != "meta":
            self._hold(self.packed().on(device))
        return super()._apply(fn, recurse)

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(O, I)``, made anew."""
        return self._expand(self.dtype)

    @property
    def nbytes(self) -> int:
        """What the weight takes in memory; on a CPU without 8 bytes a row that say where it begins."""
        return sum(buffer.nbytes for buffer in self.buffers()) if self.tiled else self.packed().nbytes

    def packed(self) -> SparseWeight:
        """The weight that was given; from a GPU without values that are kept and zero, and with int8 for codes."""
        if self.tiled:
            return untile(self._tiles())
        kept = self.values[:-_READ_PAST]
        return SparseWeight(
            shape=(self.out_features, self.in_features),
            dtype=self.dtype,
            mask=self.mask,
            values=kept if self.group else kept.view(torch.bfloat16),
            scales=None if self.scales is None else self.scales.view(torch.bfloat16),
            group=self.group,
            zeros=self.zeros,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., I)`` → ``(..., O)``, in the inputs' type.

        Raises:
            RuntimeError: when the inputs are on another device than the weight.
        """
        if inputs.device != self.values.device:
            raise RuntimeError(f"inputs on {inputs.device}, but the weight is on {self.values.device}")
        rows = inputs.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and inputs.requires_grad:
            return nn.functional.linear(inputs, self._expand(inputs.dtype), self.bias)
        if self.tiled:
            few = len(rows) <= MOST_TOKENS and inputs.dtype in (torch.bfloat16, torch.float16)
            return self._multiply_tiles(rows, inputs) if few else self._multiply_dense(inputs)
        if self.kernels is None or inputs.device.type != "cpu" or inputs.dtype not in (torch.bfloat16, torch.float32):
            return self._multiply_dense(inputs)
        rows = rows.contiguous()
        out = self._multiply(rows) if len(rows) <= MOST_TOKENS else self._by_tiles(rows)
        if self.bias is not None:
            out += self.bias
        return out.view(*inputs.shape[:-1], self.out_features)

    def _multiply_dense(self, inputs: Tensor) -> Tensor:
        """With a dense weight that is there for the moment: the next linear's lies in the same memory."""
        return nn.functional.linear(inputs, self._expand(inputs.dtype), self.bias)

    @torch.no_grad()
    def _expand(self, dtype: torch.dtype) -> Tensor:
        """The dense weight ``(O, I)`` in a type that may be another than its own."""
        if not self.tiled:
            return self.packed().to(dtype).dense()
        from secateur.runtime.tile_expansion import expand

        return expand(self._tiles(), dtype)

    @torch.no_grad()
    def _multiply_tiles(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """On a GPU, ``(T, I)`` → ``inputs``' shape with O for I."""
        from secateur.runtime.tile_kernels import multiply

        out = multiply(self._tiles(), rows.contiguous(), self.bias)
        return out.view(*inputs.shape[:-1], self.out_features)

    def _tiles(self) -> Tiles:
        assert self.mask is not None and self.scales is not None
        return Tiles(
            mask=self.mask,
            values=self.values,
            scales=self.scales,
            rest=self.rest,
            rest_lengths=self.rest_lengths,
            rest_starts=self.rest_starts,
            shape=(self.out_features, self.in_features),
            dtype=self.dtype,
            group=self.group,
        )

    @torch.no_grad()
    def _multiply(self, rows: Tensor) -> Tensor:
        """On a CPU, ``(T, I)`` → ``(T, O)`` with the weight as it is."""
        assert self.kernels is not None
        if self.in_features % WORD:
            rows = nn.functional.pad(rows, (0, -self.in_features % WORD))
        out = rows.new_empty(len(rows), self.out_features)
        is_bfloat16 = rows.dtype == torch.bfloat16
        self.kernels.multiply(rows.data_ptr(), out.data_ptr(), is_bfloat16, len(rows), *self._matrix())
        return out

    @torch.no_grad()
    def _by_tiles(self, rows: Tensor) -> Tensor:
        """The same by dense products, of some rows at a time."""
        assert self.kernels is not None
        out = rows.new_empty(len(rows), self.out_features)
        dense = rows.new_empty(min(TILE_ROWS, self.out_features), self.in_features)
        for first in range(0, self.out_features, TILE_ROWS):
            last = min(first + TILE_ROWS, self.out_features)
            self.kernels.expand(dense.data_ptr(), rows.dtype == torch.bfloat16, first, last, *self._matrix())
            torch.mm(rows, dense[: last - first].T, out=out[:, first:last])
        return out

    def _matrix(self) -> tuple[int, ...]:
        """The packed weight as the native kernels take it, and the number of threads."""
        mask, scales, zeros = (0 if part is None else part.data_ptr() for part in (self.mask, self.scales, self.zeros))
        places = (mask, self.values.data_ptr(), self.starts.data_ptr(), self.bits, scales, zeros)
        return (self.out_features, self.in_features, *places, self.group, torch.get_num_threads())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def extra_repr(self) -> str:
        """Like that of ``nn.Linear``."""
        values = VALUES[self.bits]
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {values}"
        )
