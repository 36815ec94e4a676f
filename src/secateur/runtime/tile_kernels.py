"""Products with packed weights on a GPU, for a few tokens, in Triton.

Idea. When text is generated a token at a time, a linear takes as long as its weight takes to be read. A weight that is
pruned by half and packed has 0.56 of the bytes (int8: 0.32), if only what it costs to unpack hides behind the reading.
Per weight that is kept there are a few instructions to spend.

Layout. That of :mod:`secateur.runtime.tiles`: a warp takes a word of 32 rows, a lane a row. All of a word's inputs are
in the registers of the warp, one in each lane.

Kernel. A program takes a tile of 32 rows, and its warps every S-th word each. A lane repeats: find the highest bit of
its mask, clear it, fetch the input of that column from another lane's register (a shuffle: no memory, no bank
conflicts), multiply with the next value, add in float32. The next word is being loaded meanwhile. With several tokens
two inputs of 16 bits share a register, and a shuffle. The warps' sums are added at the end, in an order that does not
vary, so that the same inputs give the same bits.

Cost. Per kept weight some six instructions and a shuffle, for each token a multiplication, for every second one
another shuffle. So a token or two take the time of the reading, and at eight the arithmetic has eaten the gain.

What was slower, on an H100: a lane for each column, with the population count for the place of its value; lanes that
walk through runs of equally many values across words, which needs no rest but reads mask and inputs from the cache;
rooms that vary by word or by window. A CUDA C++ kernel of the same idea is as fast.

Why not a library. cuSPARSELt wants 2:4, and multiplies in tensor cores, which gain nothing for one token; sparse
formats with an index for each value are no smaller than the dense weight at 50 %.
"""

# mypy: disable-error-code="assignment"
# Kernels let tuples grow, which mypy takes for other types.

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateur.runtime.tiles import Tiles

# Tokens of one program. More are taken by further programs, which read the weight again.
_MOST_TOKENS = 8
# Of the best launches that were measured on an H100 (132 multiprocessors, LLaMA-7B's shapes): where there are few tiles
# one program has to keep a multiprocessor busy. A warp takes a word, so there are as many words at a time as warps.
_FEW_TILES = 256
_WARPS, _MOST_WARPS = 16, 32


def multiply(tiles: Tiles, inputs: Tensor, bias: Tensor | None) -> Tensor:
    """``inputs`` times the weight, without expanding it.

    Args:
        tiles: of a weight ``(O, I)``.
        inputs: bfloat16 or float16 ``(T, I)``, contiguous, on the tiles' device.
        bias: ``(O,)`` of any float type, or None.

    Returns:
        ``(T, O)`` in the inputs' type; sums are in float32.
    """
    rows, columns = tiles.shape
    tokens = len(inputs)
    out = inputs.new_empty(tokens, rows)
    if out.numel() == 0:
        return out
    together = min(_MOST_TOKENS, triton.next_power_of_2(tokens))
    tile_count, words, each, _ = tiles.values.shape
    warps = _MOST_WARPS if tokens == 1 and tile_count <= _FEW_TILES else _WARPS
    with torch.cuda.device_of(inputs):  # Triton launches on the current device, not on the tensors'
        _multiply[(tile_count, triton.cdiv(tokens, together))](
            inputs,
            tiles.mask,
            tiles.values,
            tiles.scales.view(torch.bfloat16),
            tiles.rest,
            tiles.rest_lengths,
            tiles.rest_starts,
            inputs if bias is None else bias,
            out,
            rows,
            columns,
            words,
            tokens,
            SCALE_WORDS=scale_words(tiles),
            EACH=each,
            TOKENS=together,
            WARPS=warps,
            INT8=tiles.group > 0,
            REST=tiles.rest.numel() > 0,
            BIAS=bias is not None,
            PTX=speaks_ptx(inputs),
            num_warps=warps,
        )
    return out


def scale_words(tiles: Tiles) -> int:
    """Words that share a scale."""
    return max(1, tiles.group // 32)


def speaks_ptx(tensor: Tensor) -> bool:
    """Whether kernels on this tensor run on NVIDIA's GPUs, and not in Triton's interpreter or on others'."""
    return tensor.is_cuda and torch.version.hip is None


@triton.jit(do_not_specialize=["words", "tokens"])  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x_ptr,
    mask_ptr,
    values_ptr,
    scales_ptr,
    rest_ptr,
    rest_lengths_ptr,
    rest_starts_ptr,
    bias_ptr,
    out_ptr,
    rows,
    columns,
    words,
    tokens,
    SCALE_WORDS: tl.constexpr,
    EACH: tl.constexpr,
    TOKENS: tl.constexpr,
    WARPS: tl.constexpr,
    INT8: tl.constexpr,
    REST: tl.constexpr,
    BIAS: tl.constexpr,
    PTX: tl.constexpr,
):
    tile = tl.program_id(0)
    first_token = tl.program_id(1) * TOKENS
    warp = tl.arange(0, WARPS)[:, None]
    lane = tl.arange(0, 32)[None, :]
    mask_at = mask_ptr + tile.to(tl.int64) * words * 32 + lane
    values_at = values_ptr + tile.to(tl.int64) * words * (EACH * 32) + lane
    scales_at = scales_ptr + tile * tl.cdiv(words, SCALE_WORDS) * 32 + lane
    x_at = x_ptr + first_token * columns
    tokens -= first_token
    sums = ()
    for _ in tl.static_range(TOKENS):
        sums = sums + (tl.zeros([WARPS, 32], tl.float32),)  # noqa: RUF005 (Triton knows no starred tuples)
    mask, values, inputs, scale = _load_word(
        mask_at, values_at, scales_at, x_at, warp, lane, columns, words, tokens, SCALE_WORDS, EACH, TOKENS, INT8
    )
    if REST:
        sums = _multiply_rest(
            rest_ptr, rest_lengths_ptr, rest_starts_ptr, scales_at, x_at, sums, tile, warp, lane, columns, tokens,
            SCALE_WORDS, TOKENS, WARPS, INT8,
        )  # fmt: skip
    for word in range(0, words, WARPS):
        # While this word is at work, the next one is on its way.
        mask2, values2, inputs2, scale2 = _load_word(
            mask_at, values_at, scales_at, x_at, word + WARPS + warp, lane, columns, words, tokens, SCALE_WORDS,
            EACH, TOKENS, INT8,
        )  # fmt: skip
        for i in tl.static_range(EACH):
            for j in tl.static_range(4 if INT8 else 2):
                column = _highest_bit(mask, PTX)
                mask = mask ^ (tl.full(mask.shape, 1, tl.uint32) << column)
                value = _unpack_value(values[i], j, scale, INT8)
                sums = _add_products(sums, value, inputs, column.to(tl.int32), TOKENS, x_ptr.dtype.element_ty)
        mask, values, inputs, scale = mask2, values2, inputs2, scale2
    row = tile * 32 + tl.arange(0, 32)
    for t in tl.static_range(TOKENS):
        total = tl.sum(sums[t], 0)
        if BIAS:
            total += tl.load(bias_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
        tl.store(out_ptr + (first_token + t) * rows + row, total, mask=row < tl.where(tokens > t, rows, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _load_word(  # type: ignore[no-untyped-def]
    mask_at,
    values_at,
    scales_at,
    x_at,
    word,
    lane,
    columns,
    words,
    tokens,
    SCALE_WORDS: tl.constexpr,
    EACH: tl.constexpr,
    TOKENS: tl.constexpr,
    INT8: tl.constexpr,
):
    """Mask, values, inputs (one of each token, or a pair of tokens' in 32 bits) and scale of each lane; 0 beyond."""
    inside = word < words
    # The weight is read once: it must not push the inputs out of the cache.
    mask = tl.load(mask_at + word * 32, mask=inside, other=-1, eviction_policy="evict_first")
    values = ()
    for i in tl.static_range(EACH):
        at = values_at + (word * EACH + i) * 32
        value = tl.load(at, mask=inside, other=0, eviction_policy="evict_first").to(tl.uint32, bitcast=True)
        values = values + (value,)  # noqa: RUF005
    column = word * 32 + lane
    inputs = ()
    if TOKENS == 1:
        inputs = inputs + (tl.load(x_at + column, mask=column < columns, other=0.0).to(tl.float32),)  # noqa: RUF005
    else:
        for t in tl.static_range(0, TOKENS, 2):
            at = x_at + t * columns + column
            low = tl.load(at, mask=column < tl.where(tokens > t, columns, 0), other=0.0)
            high = tl.load(at + columns, mask=column < tl.where(tokens > t + 1, columns, 0), other=0.0)
            low, high = low.to(tl.uint16, bitcast=True).to(tl.uint32), high.to(tl.uint16, bitcast=True).to(tl.uint32)
            inputs = inputs + (low | high << 16,)  # noqa: RUF005
    scale = 1.0
    if INT8:
        scale = tl.load(scales_at + word // SCALE_WORDS * 32, mask=inside, other=0.0).to(tl.float32)
    return mask.to(tl.uint32, bitcast=True), values, inputs, scale


@triton.jit  # type: ignore[untyped-decorator]
def _add_products(sums, value, inputs, column, TOKENS: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each token's sum and ``value`` times its input in ``column`` of the word."""
    out = ()
    if TOKENS == 1:
        out = out + (sums[0] + value * tl.gather(inputs[0], column, 1),)  # noqa: RUF005
    else:
        for t in tl.static_range(0, TOKENS, 2):
            pair = tl.gather(inputs[t // 2], column, 1)
            if dtype == tl.bfloat16:
                low, high = (pair << 16).to(tl.float32, bitcast=True), (pair & 0xFFFF0000).to(tl.float32, bitcast=True)
            else:
                low = pair.to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
                high = (pair >> 16).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
            out = out + (sums[t] + value * low, sums[t + 1] + value * high)  # noqa: RUF005
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _multiply_rest(  # type: ignore[no-untyped-def]
    rest_ptr,
    rest_lengths_ptr,
    rest_starts_ptr,
    scales_at,
    x_at,
    sums,
    tile,
    warp,
    lane,
    columns,
    tokens,
    SCALE_WORDS: tl.constexpr,
    TOKENS: tl.constexpr,
    WARPS: tl.constexpr,
    INT8: tl.constexpr,
):
    """``sums`` and the products of what a tile keeps beyond the room of its words."""
    length = tl.load(rest_lengths_ptr + tile)
    at = rest_ptr + tl.load(rest_starts_ptr + tile) + lane
    for first in range(0, length, 4 * WARPS):
        entries = ()
        for u in tl.static_range(4):
            number = first + u * WARPS + warp
            entry = tl.load(at + number * 32, mask=number < length, other=0, eviction_policy="evict_first")
            entries = entries + (entry.to(tl.uint32, bitcast=True),)  # noqa: RUF005
        tl.debug_barrier()  # or the compiler would wait for each load before it starts the next
        for u in tl.static_range(4):
            column, value = rest_values(entries[u], scales_at, SCALE_WORDS, INT8)
            out = ()
            for t in tl.static_range(TOKENS):
                there = column < tl.where(tokens > t, columns, 0)
                x = tl.load(x_at + t * columns + column, mask=there, other=0.0)
                out = out + (sums[t] + value * x.to(tl.float32),)  # noqa: RUF005
            sums = out
    return sums


@triton.jit  # type: ignore[untyped-decorator]
def _unpack_value(values, j: tl.constexpr, scale, INT8: tl.constexpr):  # type: ignore[no-untyped-def]
    """Value j of the two or four in a uint32, as float32."""
    if INT8:
        # The byte b = value + 128 in the fraction of a float of exponent 15: 32768 + b. All of this is exact.
        byte = values << 8 if j == 0 else values >> (8 * (j - 1))
        number = ((byte & 0xFF00) | 0x47000000).to(tl.float32, bitcast=True)
        value = number * scale - (32768 + 128) * scale
    else:
        value = (values << 16 if j == 0 else values & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value


@triton.jit  # type: ignore[untyped-decorator]
def _highest_bit(mask, PTX: tl.constexpr):  # type: ignore[no-untyped-def]
    """The place of the highest bit that is set in a uint32, which is not 0."""
    if PTX:
        place = tl.inline_asm_elementwise("bfind.u32 $0, $1;", "=r,r", [mask], dtype=tl.uint32, is_pure=True, pack=1)
    else:
        place = tl.zeros_like(mask)
        for i in tl.static_range(5):
            higher = (mask >> (16 >> i)) != 0
            place = tl.where(higher, place + (16 >> i), place)
            mask = tl.where(higher, mask >> (16 >> i), mask)
    return place


@triton.jit  # type: ignore[untyped-decorator]
def rest_values(entries, scales_at, SCALE_WORDS: tl.constexpr, INT8: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns of entries of the rest, and their values in float32."""
    column = (entries >> 16).to(tl.int32)
    if INT8:
        scale = tl.load(scales_at + column // (32 * SCALE_WORDS) * 32).to(tl.float32)
        value = ((entries << 24).to(tl.int32, bitcast=True) >> 24).to(tl.float32) * scale
    else:
        value = (entries << 16).to(tl.float32, bitcast=True)
    return column, value
