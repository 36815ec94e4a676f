"""Sparse weights in safetensors files (``docs/format.md``): what a file declares, and its parts."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from torch import Tensor

from secateur.checkpoint.shards import FLOATS, reading
from secateur.checkpoint.sparse import BITS, WORD, SparseWeight
from secateur.errors import InputError, reason

VERSION = 1
KEY = "secateur"  # of the metadata of a safetensors file
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in BITS}


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a file says of one sparse weight; see :class:`~secateur.checkpoint.sparse.SparseWeight`."""

    shape: tuple[int, int]
    dtype: str
    group: int = 0


class _Header(msgspec.Struct, frozen=True):
    version: int
    weights: dict[str, Entry]


class _Version(msgspec.Struct, frozen=True):
    version: int


def declared(shard: Path) -> dict[str, Entry]:
    """The sparse weights that ``shard`` holds, by name.

    Raises:
        InputError: when the file is damaged, of another version, or lacks parts of what it declares.
    """
    with reading(shard) as file:
        text, present = (file.metadata() or {}).get(KEY), set(file.keys())
    if text is None:
        raise InputError(f"{shard} lies in a packed folder, but its metadata has no {KEY!r}")
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version != VERSION:
            raise InputError(f"{shard} is of version {version} of the sparse format; this Secateur reads {VERSION}")
        weights = msgspec.json.decode(text, type=_Header).weights
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{shard} is damaged: its metadata {KEY!r} cannot be read ({reason(error)})") from error
    for name, entry in weights.items():
        if absent := sorted(set(parts_of(name, entry)) - present):
            raise InputError(f"{shard} declares {name}, but lacks {', '.join(absent)}")
        if name in present or entry.dtype not in _DTYPES:
            what = "also holds it dense" if name in present else f"of the unknown type {entry.dtype!r}"
            raise InputError(f"{shard} declares {name}, but {what}")
    return weights


def parts_of(name: str, entry: Entry) -> list[str]:
    """The tensors that hold the sparse weight ``name``."""
    return [f"{name}.{part}" for part in ("mask", "values", *(("scales",) if entry.group else ()))]


def check_parts(shard: Path, name: str, entry: Entry, parts: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Compare what is declared of a sparse weight with types and shapes of its parts, as the header has them.

    What only the mask can tell, the number of values, is checked when it is read.

    Raises:
        InputError: when they do not agree.
    """
    (rows, columns), group = entry.shape, entry.group
    if rows < 1 or columns < 1 or group < 0 or group % WORD:
        raise InputError(f"{shard}: {name} cannot have the shape {rows} × {columns} and groups of {group}")
    number = parts[1][1][0] if len(parts[1][1]) == 1 else 0
    expected = [("U8", (rows, WORD // 8 * -(-columns // WORD))), ("I8" if group else FLOATS[entry.dtype], (number,))]
    expected += [("BF16", (rows, -(-columns // group)))] if group else []
    for part, found, wanted in zip(parts_of(name, entry), parts, expected, strict=True):
        if found != wanted:
            raise InputError(f"{shard}: {part} is {_words(*found)}, and its entry needs {_words(*wanted)}")
    if number > rows * columns:
        raise InputError(f"{shard}: {name} has {number} values, more than {rows} × {columns}")


def _words(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {' × '.join(map(str, shape))}"


def read_sparse(shard: Path, name: str, entry: Entry) -> SparseWeight:
    """One sparse weight of ``shard``.

    Raises:
        InputError: when the file is damaged, or the parts do not agree.
    """
    with reading(shard) as file:
        mask, values, *scales = (file.get_tensor(part) for part in parts_of(name, entry))
    dtype = _DTYPES[entry.dtype]
    weight = SparseWeight(entry.shape, dtype, mask, values, scales[0] if scales else None, entry.group)
    weight.check(f"{name} in {shard}")
    return weight


def as_tensors(weights: dict[str, SparseWeight]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Sparse weights as the tensors and the metadata of a file."""
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for name, weight in weights.items():
        entries[name] = Entry(weight.shape, str(weight.dtype).removeprefix("torch."), weight.group)
        parts = (weight.mask, weight.values, weight.scales)
        tensors |= {
            key: part for key, part in zip(parts_of(name, entries[name]), parts, strict=False) if part is not None
        }
    header = msgspec.json.encode(_Header(VERSION, entries)).decode()
    return tensors, {KEY: header}
