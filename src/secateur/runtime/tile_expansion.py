"""Packed weights on a GPU made dense, for products with many tokens, in Triton.

A program takes some words of a tile. Since every word has room for the same number of values, the place of one follows
from the bits above its own in the mask: their number. What lies in the rest is put there afterwards. Expanding takes
about as long as three products of one token (``docs/speed.md``), which many tokens pay back.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateur.runtime.tile_kernels import rest_values, scale_words, speaks_ptx
from secateur.runtime.tiles import Tiles

# Of a program; the best of what was measured on an H100.
_WORDS, _WARPS = 4, 4


def expand(tiles: Tiles, dtype: torch.dtype) -> Tensor:
    """The dense weight ``(O, I)`` in a float type, as :meth:`SparseWeight.dense` gives it."""
    rows, columns = tiles.shape
    out = torch.empty(rows, columns, dtype=dtype, device=tiles.mask.device)
    if out.numel() == 0:
        return out
    tile_count, words, each, _ = tiles.values.shape
    stored, scales = torch.uint8 if tiles.group else torch.bfloat16, tiles.scales.view(torch.bfloat16)
    with torch.cuda.device_of(out):
        _expand[(tile_count, triton.cdiv(words, _WORDS))](
            tiles.mask,
            tiles.values.view(stored),
            scales,
            out,
            rows,
            columns,
            words,
            SCALE_WORDS=scale_words(tiles),
            EACH=each,
            WORDS=_WORDS,
            INT8=tiles.group > 0,
            PTX=speaks_ptx(out),
            num_warps=_WARPS,
        )
        if tiles.rest.numel():
            _expand_rest[(tile_count,)](
                tiles.rest, tiles.rest_lengths, tiles.rest_starts, scales, out, columns, words,
                SCALE_WORDS=scale_words(tiles), INT8=tiles.group > 0,
            )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]
    mask_ptr,
    values_ptr,
    scales_ptr,
    out_ptr,
    rows,
    columns,
    words,
    SCALE_WORDS: tl.constexpr,
    EACH: tl.constexpr,
    WORDS: tl.constexpr,
    INT8: tl.constexpr,
    PTX: tl.constexpr,
):
    """Some words of a tile, without their rest; the number of bits above its own is a value's place in its word."""
    tile = tl.program_id(0)
    row = tl.arange(0, 32)[:, None]
    place = tl.arange(0, 32)[None, :]
    each: tl.constexpr = 4 if INT8 else 2  # values that share an int32
    above = tl.full([1, 32], 0xFFFFFFFE, tl.uint32) << place.to(tl.uint32)
    mask_at = mask_ptr + tile.to(tl.int64) * words * 32 + row
    values_at = values_ptr + tile.to(tl.int64) * words * (EACH * each * 32) + row * each
    scales_at = scales_ptr + tile * tl.cdiv(words, SCALE_WORDS) * 32 + row
    row += tile * 32
    out_at = out_ptr + row.to(tl.int64) * columns + place
    first = tl.program_id(1) * WORDS
    for word in range(first, tl.minimum(first + WORDS, words)):
        mask = tl.load(mask_at + word * 32).to(tl.uint32, bitcast=True)
        number = _bits_set(mask & above, PTX)
        kept = ((mask >> place.to(tl.uint32)) & 1) != 0
        at = values_at + word * (EACH * each * 32) + number // each * (each * 32) + number % each
        if INT8:
            scale = tl.load(scales_at + word // SCALE_WORDS * 32).to(tl.float32)
            value = (tl.load(at, mask=kept, other=128).to(tl.int32) - 128).to(tl.float32) * scale
        else:
            value = tl.load(at, mask=kept, other=0.0)
            if out_ptr.dtype.element_ty != tl.bfloat16:
                value = value.to(tl.float32)
        tl.store(out_at + word * 32, value, mask=(row < rows) & (word * 32 + place < columns))


@triton.jit  # type: ignore[untyped-decorator]
def _expand_rest(  # type: ignore[no-untyped-def]
    rest_ptr,
    lengths_ptr,
    starts_ptr,
    scales_ptr,
    out_ptr,
    columns,
    words,
    SCALE_WORDS: tl.constexpr,
    INT8: tl.constexpr,
):
    """Put the rest of a tile into the weight that :func:`_expand` has made."""
    tile = tl.program_id(0)
    length = tl.load(lengths_ptr + tile)
    number = tl.arange(0, 32)[:, None]
    row = tl.arange(0, 32)[None, :]
    at = rest_ptr + tl.load(starts_ptr + tile) + row
    scales_at = scales_ptr + tile * tl.cdiv(words, SCALE_WORDS) * 32 + row
    out_at = out_ptr + (tile.to(tl.int64) * 32 + row) * columns
    for first in range(0, length, 32):
        there = first + number < length
        entries = tl.load(at + (first + number) * 32, mask=there, other=0).to(tl.uint32, bitcast=True)
        column, value = rest_values(entries, scales_at, SCALE_WORDS, INT8)
        tl.store(out_at + column, value, mask=(entries & 0xFFFF) != 0)


@triton.jit  # type: ignore[untyped-decorator]
def _bits_set(mask, PTX: tl.constexpr):  # type: ignore[no-untyped-def]
    """The number of bits that are set in a uint32."""
    if PTX:
        number = tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [mask], dtype=tl.int32, is_pure=True, pack=1)
    else:
        mask = mask - ((mask >> 1) & 0x55555555)
        mask = (mask & 0x33333333) + ((mask >> 2) & 0x33333333)
        mask = (mask + (mask >> 4)) & 0x0F0F0F0F
        mask = mask + (mask >> 8)
        number = ((mask + (mask >> 16)) & 0x3F).to(tl.int32)
    return number
