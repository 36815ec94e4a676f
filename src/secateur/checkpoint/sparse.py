"""A packed weight: which entries it keeps, and their values, as ``docs/format.md`` describes it.

Nothing here knows of files. What counts as kept is decided by bits: a weight is left out when all of its
bits are zero, so packing floats loses nothing, neither the sign of a zero nor what a NaN carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.quantization.grid import Grid, QuantizedWeight, fit_nearest

# Rows of the mask are padded to whole words of so many columns.
WORD = 32
# Columns that share a scale, where integer values are made.
GROUP = 128
# The floats that weights may be stored in, and the integers that show their bits.
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
# Of integers: kernels sum the products of so many columns in 32 bits.
LARGEST_GROUP = 512
# The code of zero where there are no others: the middle of 4 bits.
MIDDLE = 8


@dataclass(frozen=True)
class SparseWeight:
    """The weight of a linear, ``(O, I)``.

    Attributes:
        shape: ``(O, I)``.
        dtype: the float type of the dense weight.
        mask: uint8 ``(O, 4⌈I/32⌉)``: bit j of byte b of a row is set where column 8b + j is kept; None where every
            weight is kept, which integer values may be.
        values: the kept weights, row after row, ``(K,)``; of ``dtype``, or int8. Or uint8 ``(⌈K/2⌉,)``: two codes of
            4 bits in a byte, the first in the lower half; I is even then if there is no mask.
        scales: for integer values, bfloat16 ``(O, ⌈I/group⌉)``: what the values of each group of columns are to be
            multiplied by.
        group: for integer values, the number of columns that share a scale, a multiple of 32; else 0.
        zeros: for codes, uint8 ``(O, ⌈I/group⌉)``: the codes of zero, which are subtracted first; None where all are 8.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    mask: Tensor | None
    values: Tensor
    scales: Tensor | None = None
    group: int = 0
    zeros: Tensor | None = None

    @property
    def width(self) -> int:
        """The bits of a value."""
        return 4 if self.values.dtype == torch.uint8 else 8 * self.values.itemsize

    @property
    def nbytes(self) -> int:
        """What it takes in a file."""
        return sum(part.nbytes for part in self.parts().values())

    def parts(self) -> dict[str, Tensor]:
        """The tensors it consists of, by name."""
        parts = {"mask": self.mask, "values": self.values, "scales": self.scales, "zeros": self.zeros}
        return {name: part for name, part in parts.items() if part is not None}

    def kept(self) -> Tensor:
        """Where weights are kept, bool ``(O, I)``."""
        if self.mask is None:
            return torch.ones(self.shape, dtype=torch.bool, device=self.values.device)
        return unpack_mask(self.mask)[:, : self.shape[1]]

    def unpacked(self) -> Tensor:
        """The values ``(K,)``, codes as int8, and where their last byte has room for one more that one too."""
        if self.width > 4:
            return self.values
        return torch.stack((self.values & 15, self.values >> 4), 1).flatten().view(torch.int8)

    def codes_of_zero(self) -> Tensor:
        """``zeros``, also where all are 8."""
        assert self.scales is not None
        return torch.full_like(self.scales, MIDDLE, dtype=torch.uint8) if self.zeros is None else self.zeros

    def bits(self) -> Tensor:
        """The weight ``(O, I)`` as integers: the bits of floats, or int8: what the scales are to be multiplied by."""
        kept, values = self.kept(), self.unpacked()
        if not self.group:
            values = values.view(BITS[self.dtype])
        dense = torch.zeros(self.shape, dtype=values.dtype, device=values.device).masked_scatter_(kept, values)
        if self.width == 4:
            dense -= _per_column(self.codes_of_zero().view(torch.int8), self.group, self.shape[1])
            dense.masked_fill_(~kept, 0)
        return dense

    def dense(self) -> Tensor:
        """The weight ``(O, I)`` in ``dtype``: integers × scales, which float32 holds exactly, rounded once."""
        if self.scales is None:
            return self.bits().view(self.dtype)
        return (self.bits() * _per_column(self.scales.float(), self.group, self.shape[1])).to(self.dtype)

    def to(self, dtype: torch.dtype) -> "SparseWeight":
        """The same in another type: float values are rounded; integers and their scales stay as they are."""
        return replace(self, dtype=dtype, values=self.values if self.group else self.values.to(dtype))

    def on(self, device: torch.device) -> "SparseWeight":
        """The same on ``device``."""
        moved: dict[str, Any] = {name: part.to(device) for name, part in self.parts().items()}
        return replace(self, **moved)

    def check(self, name: str) -> None:
        """Raise :class:`InputError` about ``name`` unless its parts agree with each other."""

        def demand(holds: bool, otherwise: str) -> None:
            if not holds:
                raise InputError(f"{name} is damaged: {otherwise}")

        rows, columns = self.shape
        demand(rows >= 0 and columns >= 0, f"it cannot have the shape {rows} × {columns}")
        number = rows * columns
        demand(self.mask is not None or self.group > 0, "it has neither a mask nor integer values")
        demand(self.mask is not None or self.width > 4 or columns % 2 == 0, "a row without a mask begins within a byte")
        if self.mask is not None:
            wide = (rows, mask_bytes(columns))
            demand(_is(self.mask, torch.uint8, wide), f"its mask is not uint8 of shape {wide}")
            bits = unpack_mask(self.mask)
            demand(not bits[:, columns:].any(), "its mask keeps columns beyond the last")
            number = int(bits.sum())
        stored = (self.values.dtype if self.values.dtype == torch.uint8 else torch.int8) if self.group else self.dtype
        demand(
            _is(self.values, stored, (-(-number // 2) if self.width == 4 else number,)),
            f"it keeps {number} weights, but its values are {tuple(self.values.shape)} of {self.values.dtype}",
        )
        if self.group:
            demand(self.group > 0 and self.group % WORD == 0, f"its group of {self.group} is not a multiple of {WORD}")
            wide = (rows, -(-columns // self.group))
            demand(
                self.scales is not None and _is(self.scales, torch.bfloat16, wide),
                f"its scales are not bfloat16 of shape {wide}",
            )
            demand(bool(self.scales is not None and self.scales.isfinite().all()), "a scale is not finite")
            if self.zeros is not None:
                demand(self.width == 4, "it has codes of zero, but no codes")
                demand(_is(self.zeros, torch.uint8, wide), f"its codes of zero are not uint8 of shape {wide}")
                demand(bool((self.zeros < 16).all()), "a code of zero has more than 4 bits")


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

    The scale of a group is its largest magnitude over 127, rounded up to bfloat16, so that nothing is clipped. What is
    zero is left out, unless the mask that says so took more bytes than the zeros.

    Raises:
        InputError: when the weight is not finite, or so near the end of its type that rounding would lead beyond.
    """
    _check_finite(weight, "int8")
    rows, columns = weight.shape
    wide = torch.nn.functional.pad(weight.float(), (0, -columns % group))
    largest = wide.reshape(rows, wide.shape[1] // group, group).abs().amax(-1) / 127
    scales = ((largest.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    steps = (weight.float() / _per_column(scales.float(), group, columns)).round()
    packed = _of_integers(steps.nan_to_num(0).to(torch.int8), weight != 0, scales, group, weight.dtype)
    return _check_range(packed, "int8")


def pack_int4(weight: Tensor, group: int = GROUP) -> SparseWeight:
    """``weight`` (O, I) rounded to 4 bits, by row and group of columns, onto the levels that fit it best.

    What is zero is left out, unless the mask that says so took more bytes.

    Raises:
        InputError: when the weight is not finite, or so near the end of its type that rounding would lead beyond.
    """
    _check_finite(weight, "int4")
    wide = torch.nn.functional.pad(weight.float(), (0, -weight.shape[1] % group))
    grid = fit_nearest(wide, 4, group)
    packed = _of_codes(grid, grid.codes(wide)[:, : weight.shape[1]], weight != 0, weight.dtype)
    return _check_range(packed, "int4")


def pack_quantized(weight: QuantizedWeight) -> SparseWeight | None:
    """A weight on a grid, without loss: codes of 4 bits as they are, others as int8.

    None where the format does not hold it: groups are no multiples of 32, values no int8, or scales no bfloat16.
    """
    group, grid = weight.grid.group, weight.grid
    if group > LARGEST_GROUP:  # as where a whole row is one
        group = next((size for size in range(LARGEST_GROUP, 0, -WORD) if group % size == 0), group)
        scales, zeros = (part.repeat_interleave(grid.group // group, 1) for part in (grid.scales, grid.zeros))
        grid = Grid(grid.bits, group, scales, zeros)
    if group % WORD or not torch.equal(grid.scales.bfloat16().float(), grid.scales):
        return None
    steps = weight.codes.to(torch.int16) - grid.per_column(grid.zeros)
    if grid.bits <= 4:
        return _of_codes(grid, weight.codes, steps != 0, weight.dtype)
    if steps.numel() and (steps.min() < -128 or steps.max() > 127):
        return None
    return _of_integers(steps.to(torch.int8), steps != 0, grid.scales.bfloat16(), group, weight.dtype)


def _of_codes(grid: Grid, codes: Tensor, kept: Tensor, dtype: torch.dtype) -> SparseWeight:
    """Codes of up to 4 bits, uint8 ``(O, I)``, of zero where not ``kept``; the last group may reach beyond I."""
    mask = pack_mask(kept)
    # Without a mask rows begin with a byte, as kernels want it.
    masked = mask.nbytes + int(kept.sum()) / 2 < kept.numel() / 2 or codes.shape[1] % 2 == 1
    return SparseWeight(
        shape=(codes.shape[0], codes.shape[1]),
        dtype=dtype,
        mask=mask if masked else None,
        values=pack_codes(codes[kept] if masked else codes.flatten()),
        scales=grid.scales.bfloat16(),
        group=grid.group,
        zeros=None if bool((grid.zeros == MIDDLE).all()) else grid.zeros,
    )


def _of_integers(integers: Tensor, kept: Tensor, scales: Tensor, group: int, dtype: torch.dtype) -> SparseWeight:
    """Values int8 ``(O, I)``, zero where they are not ``kept``."""
    mask = pack_mask(kept)
    masked = mask.nbytes + int(kept.sum()) < kept.numel()
    return SparseWeight(
        shape=(kept.shape[0], kept.shape[1]),
        dtype=dtype,
        mask=mask if masked else None,
        values=integers[kept] if masked else integers.flatten(),
        scales=scales,
        group=group,
    )


def _check_finite(weight: Tensor, kind: str) -> None:
    if not weight.isfinite().all():
        raise InputError(f"weights that are not finite cannot be rounded to {kind}")


def _check_range(packed: SparseWeight, kind: str) -> SparseWeight:
    if not packed.dense().isfinite().all():
        name, end = str(packed.dtype).removeprefix("torch."), torch.finfo(packed.dtype).max
        raise InputError(f"its largest weight cannot be rounded to {kind}: it is too near {end:.6g}, where {name} ends")
    return packed


def stack_rows(weights: Sequence[SparseWeight], name: str) -> SparseWeight:
    """Weights one above the other.

    Raises:
        InputError: about ``name``, unless columns and type are the same.
    """
    if len(weights) == 1:
        return weights[0]
    if len({(weight.shape[1], weight.dtype, weight.group, weight.width) for weight in weights}) > 1:
        raise InputError(f"{name} is damaged: its parts differ in columns, type or group")
    parts: dict[str, Any] = {"values": torch.cat([weight.unpacked()[: weight.kept().sum()] for weight in weights])}
    if weights[0].width == 4:
        parts["values"] = pack_codes(parts["values"])
    # Rounded each by itself, one may have left out zeros where another did not, or have codes of zero that are all 8.
    if any(weight.mask is not None for weight in weights):
        parts["mask"] = torch.cat([pack_mask(weight.kept()) for weight in weights])
    if any(weight.zeros is not None for weight in weights):
        parts["zeros"] = torch.cat([weight.codes_of_zero() for weight in weights])
    if weights[0].group:
        parts["scales"] = torch.cat([weight.scales for weight in weights if weight.scales is not None])
    return replace(weights[0], shape=(sum(weight.shape[0] for weight in weights), weights[0].shape[1]), **parts)


def packed_bytes(rows: int, columns: int, kept: int, bits: int, group: int = GROUP) -> int:
    """What packing makes of ``kept`` weights of a matrix, in bytes.

    Args:
        rows: O, of the weight as it is stored.
        columns: I.
        kept: how many weights are kept, wherever they lie: the mask takes one bit per weight in any pattern.
        bits: of a value: those of a float, or 8 or 4 for what :func:`pack_int8` and :func:`pack_int4` make.
        group: columns that share a scale, of 8 or 4 bits.
    """
    masked = rows * mask_bytes(columns) + -(-kept * bits // 8)
    if bits > 8:
        return masked
    whole = rows * columns * bits // 8 if bits == 8 or columns % 2 == 0 else masked
    each = torch.bfloat16.itemsize + (torch.uint8.itemsize if bits == 4 else 0)
    return min(masked, whole) + rows * -(-columns // group) * each


def _per_column(numbers: Tensor, group: int, columns: int) -> Tensor:
    """Numbers ``(O, groups)`` as ``(O, I)``."""
    return numbers.repeat_interleave(min(group, columns), 1)[:, :columns]  # a file may say any group


def pack_codes(codes: Tensor) -> Tensor:
    """Codes of 4 bits ``(K,)``, a byte each, as ``(⌈K/2⌉,)``, two in a byte."""
    first, second = torch.nn.functional.pad(codes.view(torch.uint8), (0, len(codes) % 2)).view(-1, 2).unbind(1)
    return first | second << 4


def mask_bytes(columns: int) -> int:
    """The bytes of a row of a mask: whole words."""
    return WORD // 8 * -(-columns // WORD)


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
