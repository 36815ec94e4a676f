"""A pruned weight as a mask and its kept values, as ``docs/format.md`` describes it.

Nothing here knows of files. What counts as kept is decided by bits: a weight is left out when all of its
bits are zero, so packing floats loses nothing, neither the sign of a zero nor what a NaN carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.errors import InputError

# Rows of the mask are padded to whole words of so many columns.
WORD = 32
# Columns that share a scale, where int8 values are made.
GROUP = 128
# The floats that weights may be stored in, and the integers that show their bits.
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True)
class SparseWeight:
    """The weight of a linear, ``(O, I)``.

    Attributes:
        shape: ``(O, I)``.
        dtype: the float type of the dense weight.
        mask: uint8 ``(O, 4⌈I/32⌉)``: bit j of byte b of a row is set where column 8b + j is kept.
        values: the kept weights, row after row, ``(K,)``; of ``dtype``, or int8.
        scales: for int8 values, bfloat16 ``(O, ⌈I/group⌉)``: what the values of each group of columns are to be
            multiplied by.
        group: for int8 values, the number of columns that share a scale, a multiple of 32; else 0.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    mask: Tensor
    values: Tensor
    scales: Tensor | None = None
    group: int = 0

    @property
    def nbytes(self) -> int:
        """What it takes in a file."""
        return self.mask.nbytes + self.values.nbytes + (self.scales.nbytes if self.scales is not None else 0)

    def kept(self) -> Tensor:
        """Where weights are kept, bool ``(O, I)``."""
        return unpack_mask(self.mask)[:, : self.shape[1]]

    def bits(self) -> Tensor:
        """The weight ``(O, I)`` as integers: the bits of floats, or int8 values without their scales."""
        values = self.values if self.group else self.values.view(BITS[self.dtype])
        zeros = torch.zeros(self.shape, dtype=values.dtype, device=values.device)
        return zeros.masked_scatter_(self.kept(), values)

    def dense(self) -> Tensor:
        """The weight ``(O, I)`` in ``dtype``: values × scales, which float32 holds exactly, rounded once."""
        if self.scales is None:
            return self.bits().view(self.dtype)
        return (self.bits() * _per_column(self.scales, self.group, self.shape[1])).to(self.dtype)

    def to(self, dtype: torch.dtype) -> "SparseWeight":
        """The same in another type: float values are rounded; int8 values and their scales stay as they are."""
        return replace(self, dtype=dtype, values=self.values if self.group else self.values.to(dtype))

    def on(self, device: torch.device) -> "SparseWeight":
        """The same on ``device``."""
        scales = None if self.scales is None else self.scales.to(device)
        return replace(self, mask=self.mask.to(device), values=self.values.to(device), scales=scales)

    def check(self, name: str) -> None:
        """Raise :class:`InputError` about ``name`` unless its parts agree with each other."""

        def demand(holds: bool, otherwise: str) -> None:
            if not holds:
                raise InputError(f"{name} is damaged: {otherwise}")

        rows, columns = self.shape
        demand(rows >= 0 and columns >= 0, f"it cannot have the shape {rows} × {columns}")
        wide = (rows, WORD // 8 * -(-columns // WORD))
        demand(_is(self.mask, torch.uint8, wide), f"its mask is not uint8 of shape {wide}")
        bits = unpack_mask(self.mask)
        demand(not bits[:, columns:].any(), "its mask keeps columns beyond the last")
        number = int(bits.sum())
        stored = torch.int8 if self.group else self.dtype
        demand(
            _is(self.values, stored, (number,)),
            f"its mask keeps {number} weights, but its values are {tuple(self.values.shape)} of {self.values.dtype}",
        )
        if self.group:
            demand(self.group > 0 and self.group % WORD == 0, f"its group of {self.group} is not a multiple of {WORD}")
            wide = (rows, -(-columns // self.group))
            demand(
                self.scales is not None and _is(self.scales, torch.bfloat16, wide),
                f"its scales are not bfloat16 of shape {wide}",
            )
            demand(bool(self.scales is not None and self.scales.isfinite().all()), "a scale is not finite")


def pack(weight: Tensor) -> SparseWeight:
    """``weight`` (O, I), in one of the types of :data:`BITS`, without the entries whose bits are all zero."""
    bits = weight.contiguous().view(BITS[weight.dtype])
    kept = bits != 0
    return SparseWeight(
        shape=(weight.shape[0], weight.shape[1]),
        dtype=weight.dtype,
        mask=pack_mask(kept),
        values=bits[kept].view(weight.dtype),
    )


def pack_int8(weight: Tensor, group: int = GROUP) -> SparseWeight:
    """``weight`` (O, I) with its non-zeros rounded to int8, symmetrically, by row and group of columns.

    The scale of a group is its largest magnitude over 127, rounded up to bfloat16, so that nothing is clipped.

    Raises:
        InputError: when the weight is not finite, or so near the end of its type that rounding would lead beyond.
    """
    if not weight.isfinite().all():
        raise InputError("weights that are not finite cannot be rounded to int8")
    rows, columns = weight.shape
    kept, wide = weight != 0, torch.nn.functional.pad(weight.float(), (0, -columns % group))
    largest = wide.reshape(rows, wide.shape[1] // group, group).abs().amax(-1) / 127
    scales = ((largest.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    steps = weight.float() / _per_column(scales, group, columns)
    packed = SparseWeight(
        shape=(rows, columns),
        dtype=weight.dtype,
        mask=pack_mask(kept),
        values=steps[kept].round().to(torch.int8),
        scales=scales,
        group=group,
    )
    if not packed.dense().isfinite().all():
        name, end = str(weight.dtype).removeprefix("torch."), torch.finfo(weight.dtype).max
        raise InputError(f"its largest weight cannot be rounded to int8: it is too near {end:.6g}, where {name} ends")
    return packed


def stack_rows(weights: Sequence[SparseWeight], name: str) -> SparseWeight:
    """Weights one above the other.

    Raises:
        InputError: about ``name``, unless columns, type and group are the same.
    """
    first, scales = weights[0], [weight.scales for weight in weights if weight.scales is not None]
    if len({(weight.shape[1], weight.dtype, weight.group) for weight in weights}) > 1:
        raise InputError(f"{name} is damaged: its parts differ in columns, type or group")
    return replace(
        first,
        shape=(sum(weight.shape[0] for weight in weights), first.shape[1]),
        mask=torch.cat([weight.mask for weight in weights]),
        values=torch.cat([weight.values for weight in weights]),
        scales=torch.cat(scales) if scales else None,
    )


def packed_bytes(rows: int, columns: int, kept: int, dtype: torch.dtype) -> int:
    """What :func:`pack`, or :func:`pack_int8` for int8, makes of ``kept`` weights of a matrix, in bytes.

    Args:
        rows: O, of the weight as it is stored.
        columns: I.
        kept: how many weights are kept, wherever they lie: the mask takes one bit per weight in any pattern.
        dtype: the type of the values.
    """
    scales = rows * -(-columns // GROUP) * torch.bfloat16.itemsize if dtype == torch.int8 else 0
    return rows * WORD // 8 * -(-columns // WORD) + kept * dtype.itemsize + scales


def _per_column(scales: Tensor, group: int, columns: int) -> Tensor:
    """Scales ``(O, groups)`` as float32 ``(O, I)``."""
    return scales.float().repeat_interleave(group, 1)[:, :columns]


def pack_mask(kept: Tensor) -> Tensor:
    """A bool mask ``(O, I)`` as the bytes that :class:`SparseWeight` holds."""
    padded = torch.nn.functional.pad(kept, (0, -kept.shape[1] % WORD))
    bits = padded.unflatten(1, (padded.shape[1] // 8, 8)).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def unpack_mask(mask: Tensor) -> Tensor:
    """The bytes ``(O, B)`` as bool ``(O, 8B)``."""
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (mask[..., None] >> places).bitwise_and_(1).flatten(1).to(torch.bool)


def _is(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return tensor.dtype == dtype and tuple(tensor.shape) == shape
