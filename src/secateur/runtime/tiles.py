"""A packed weight laid out as a GPU reads it.

The file format (``docs/format.md``) puts the kept values of a row one after another, so that where a word's values
begin depends on all words before it, and a warp whose lanes take different rows would read 32 distant places. Here:

- 32 rows are a tile, and lie side by side: word w of all 32, then word w + 1. A warp takes a tile, a lane a row, and
  each of its loads is one piece of memory.
- Every word has room for the same number of values, n. So nothing has to be counted to find them, and lanes that take
  one value after another keep step.
- A word that keeps fewer than n values has bits set for some that it does not keep, and their values are 0.
- What a word keeps beyond n, from its low columns, lies in the *rest*: with its column, row beside row, as many
  entries for each row of a tile as the row has that needs most.

n is whatever takes the fewest bytes. N:M whose M divides 32 keeps the same number in every word: there is no rest, and
the bytes are those of the file. Unstructured weights at 50 % keep 16 ± 2.8 in a word: bfloat16 takes 0.65 of the dense
bytes where the file takes 0.56, int8 0.40 for 0.32.

Codes of 4 bits lie there as the int8 that they stand for, and a weight without a mask has a full one: the same
products, and the bytes of int8.

A lane takes the values of a word from the highest bit of the mask to the lowest, as the GPU has an instruction for, so
they lie in that order. Two bfloat16 or four int8 values share an int32; int8 ones lie there as value + 128.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from secateur.checkpoint.sparse import WORD, SparseWeight, pack_mask, unpack_mask

ROWS = 32
# An entry of the rest holds its column in 16 bits.
_MOST_COLUMNS = 1 << 16
_ENTRY_BYTES = 4
_INT8_ZERO = 128


@dataclass(frozen=True)
class Tiles:
    """The weight of a linear ``(O, I)``, in ``G = ⌈O/32⌉`` tiles of ``W = ⌈I/32⌉`` words.

    Attributes:
        mask: int32 ``(G, W, 32)``: bit j is set where the word has room for its column j.
        values: int32 ``(G, W, P, 32)``: P times two bfloat16 or four int8 values.
        scales: for int8 values, those of :class:`SparseWeight` as int16 bits ``(G, ⌈I/group⌉, 32)``; else empty.
        rest: int32, tile after tile, rows side by side: ``column << 16 | bits`` of the value; 0 where there is none.
        rest_lengths: int32 ``(G,)``: entries for each row of a tile.
        rest_starts: int64 ``(G,)``: where a tile's entries begin.
        shape, dtype, group: those of the :class:`SparseWeight`.
    """

    mask: Tensor
    values: Tensor
    scales: Tensor
    rest: Tensor
    rest_lengths: Tensor
    rest_starts: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype
    group: int


def tile(weight: SparseWeight) -> Tiles:
    """Lay out a weight of bfloat16 or integer values, where it lies; codes of 4 bits as int8."""
    each = 4 if weight.group else 2
    kept, bits = _by_words(weight.kept()), _by_words(weight.bits())  # (32G, W, 32)
    counts = kept.sum(-1)
    room = _room(counts, each, weight.shape[1])
    head = kept & (kept.cumsum(-1, dtype=torch.int8) <= room)
    free = ~kept
    filled = head | free & (free.cumsum(-1, dtype=torch.int8) <= (room - counts)[..., None])
    values = bits.where(head, 0)[filled].view(*counts.shape, room)
    rest, lengths, starts = _lay_rest(kept & ~head, bits)
    mask = pack_mask(filled.flip(-1).flatten(1)).view(torch.int32)
    scales = torch.empty(0, dtype=torch.int16, device=mask.device)
    if weight.scales is not None:
        scales = _side_by_side(pad(weight.scales.view(torch.int16), (0, 0, 0, len(mask) - weight.shape[0])))
    return Tiles(
        mask=_side_by_side(mask),
        values=_side_by_side(_in_int32(values, each)),
        scales=scales,
        rest=rest,
        rest_lengths=lengths,
        rest_starts=starts,
        shape=weight.shape,
        dtype=weight.dtype,
        group=weight.group,
    )


def untile(tiles: Tiles) -> SparseWeight:
    """The weight that was laid out, without values that are kept though their bits are all zero."""
    rows, columns = tiles.shape
    words = tiles.mask.shape[1]
    kept = unpack_mask(_row_by_row(tiles.mask).view(torch.uint8)).view(-1, words, WORD).flip(-1)
    values = _row_by_row(tiles.values).flatten(-2)
    if tiles.group:
        values = (values.view(torch.uint8).to(torch.int16) - _INT8_ZERO).to(torch.int8)
    else:
        values = values.view(torch.int16)
    by_words = torch.zeros(kept.shape, dtype=values.dtype, device=kept.device).masked_scatter_(kept, values)
    bits = by_words.flip(-1).flatten(1)
    row, column, value = _rest_entries(tiles)
    bits[row, column] = value.to(bits.dtype)
    bits = bits[:rows, :columns]
    kept = bits != 0
    scales = None
    if tiles.group:
        scales = _row_by_row(tiles.scales)[:rows].view(torch.bfloat16)
    floats = bits[kept] if tiles.group else bits[kept].view(tiles.dtype)
    return SparseWeight(tiles.shape, tiles.dtype, pack_mask(kept), floats, scales, tiles.group)


def _by_words(matrix: Tensor) -> Tensor:
    """``(O, I)`` → ``(32G, W, 32)``, padded; the columns of a word from the last to the first."""
    rows, columns = matrix.shape
    padded = pad(matrix, (0, -columns % WORD, 0, -rows % ROWS))
    return padded.view(padded.shape[0], padded.shape[1] // WORD, WORD).flip(-1)


def _side_by_side(rows: Tensor) -> Tensor:
    """``(32G, …)`` → ``(G, …, 32)``."""
    return rows.unflatten(0, (-1, ROWS)).movedim(1, -1).contiguous()


def _row_by_row(tiles: Tensor) -> Tensor:
    """``(G, …, 32)`` → ``(32G, …)``."""
    return tiles.movedim(-1, 1).flatten(0, 1).contiguous()


def _in_int32(values: Tensor, each: int) -> Tensor:
    """int16 or int8 ``(…, n)`` → int32 ``(…, n / each)``."""
    if values.dtype == torch.int8:
        values = (values.to(torch.int16) + _INT8_ZERO).to(torch.uint8)
    return values.view(torch.int32)


def _room(counts: Tensor, each: int, columns: int) -> int:
    """The number of values that every word has room for: a multiple of ``each``, of those the one of fewest bytes.

    Args:
        counts: what each word keeps, ``(32G, W)``.
        each: values that share an int32.
        columns: of the weight.
    """
    most = max(1, int(counts.max())) if counts.numel() else 1
    most += -most % each
    if columns > _MOST_COLUMNS:
        return most

    def nbytes(room: int) -> int:
        rest = (counts - room).clamp(min=0).sum(1).view(-1, ROWS).amax(1).sum()
        return counts.numel() * room * 4 // each + int(rest) * ROWS * _ENTRY_BYTES

    return min(range(each, most + 1, each), key=nbytes)


def _lay_rest(rest: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entries for ``bits`` ``(32G, W, 32)`` where ``rest`` is set, their number for each row, and where tiles begin."""
    counts = rest.flatten(1).sum(1)
    lengths = counts.view(-1, ROWS).amax(1)
    ends = lengths.cumsum(0) * ROWS
    starts = ends - lengths * ROWS
    row, word, place = rest.nonzero(as_tuple=True)
    number = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]  # of an entry in its row
    value = bits[row, word, place].long() & (0xFF if bits.dtype == torch.int8 else 0xFFFF)
    entries = torch.zeros(int(ends[-1]) if len(ends) else 0, dtype=torch.int64, device=row.device)
    entries[starts[row // ROWS] + number * ROWS + row % ROWS] = (word * WORD + WORD - 1 - place) << 16 | value
    signed = entries.where(entries < 1 << 31, entries - (1 << 32)).to(torch.int32)
    return signed, lengths.to(torch.int32), starts


def _rest_entries(tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and bits of all entries of the rest that hold a value."""
    entries = tiles.rest.long() & 0xFFFFFFFF
    place = torch.arange(len(entries), device=entries.device)
    tile_of = torch.searchsorted(tiles.rest_starts + tiles.rest_lengths * ROWS, place, right=True)
    row = tile_of * ROWS + place % ROWS
    value = entries & 0xFFFF
    sign = 1 << (7 if tiles.group else 15)
    used = value != 0
    return row[used], (entries >> 16)[used], ((value ^ sign) - sign)[used]
