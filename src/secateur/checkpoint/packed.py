"""Packed weights in safetensors files (``docs/format.md``): what a file declares, and its parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from torch import Tensor

from secateur.checkpoint.shards import FLOATS, reading
from secateur.checkpoint.sparse import BITS, WORD, SparseWeight, mask_bytes
from secateur.errors import InputError, reason

VERSION = 1
KEY = "secateur"  # of the metadata of a safetensors file
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in BITS}


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a file says of one packed weight; see :class:`~secateur.checkpoint.sparse.SparseWeight`.

    Attributes:
        bits: of a value where ``group`` says that they are integers: 8 or 4.
        zeros: whether codes of 4 bits have codes of zero of their own.
        masked: whether there is a mask.
        layers: of a stack, how many matrices of one size lie one above the other in what is packed.
    """

    shape: tuple[int, int]
    dtype: str
    group: int = 0
    bits: int = 8
    zeros: bool = False
    masked: bool = True
    layers: int = 0

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the dense weight, which is that of a stack where there are layers."""
        rows, columns = self.shape
        return (self.layers, rows // self.layers, columns) if self.layers else self.shape


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
    """The tensors that hold the packed weight ``name``."""
    there = {"mask": entry.masked, "values": True, "scales": entry.group != 0, "zeros": entry.zeros}
    return [f"{name}.{part}" for part, is_there in there.items() if is_there]


def check_parts(shard: Path, name: str, entry: Entry, parts: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Compare what is declared of a packed weight with types and shapes of its parts, as the header has them.

    What only the mask can tell, the number of values, is checked when it is read.

    Raises:
        InputError: when they do not agree.
    """
    (rows, columns), group = entry.shape, entry.group
    if entry.layers and (entry.layers < 0 or rows % entry.layers):
        raise InputError(f"{shard}: {name} cannot be {entry.layers} layers of {rows} rows in all")
    if rows < 1 or columns < 1 or group < 0 or group % WORD:
        raise InputError(f"{shard}: {name} cannot have the shape {rows} × {columns} and groups of {group}")
    plain = (entry.bits, entry.zeros, entry.masked) == (8, False, True)
    if not plain and (not group or entry.bits not in (4, 8) or (entry.zeros and entry.bits != 4)):
        raise InputError(
            f"{shard}: {name} cannot have values of {entry.bits} bits, groups of {group}, "
            f"{'codes' if entry.zeros else 'no codes'} of zero and {'a' if entry.masked else 'no'} mask"
        )
    found = dict(zip(parts_of(name, entry), parts, strict=True))
    length = found[f"{name}.values"][1]
    stored, number = length[0] if len(length) == 1 else 0, rows * columns
    most = -(-number // 2) if entry.bits == 4 else number
    integers, grouped = "U8" if entry.bits == 4 else "I8", (rows, -(-columns // (group or 1)))
    expected = {
        "mask": ("U8", (rows, mask_bytes(columns))),
        "values": (integers if group else FLOATS[entry.dtype], (stored if entry.masked else most,)),
        "scales": ("BF16", grouped),
        "zeros": ("U8", grouped),
    }
    for part, held in found.items():
        if held != (wanted := expected[part.removeprefix(f"{name}.")]):
            raise InputError(f"{shard}: {part} is {_words(*held)}, and its entry needs {_words(*wanted)}")
    if stored > most:
        raise InputError(f"{shard}: {name} has {stored} values, more than {rows} × {columns}")


def _words(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {' × '.join(map(str, shape))}"


def read_sparse(shard: Path, name: str, entry: Entry) -> SparseWeight:
    """One packed weight of ``shard``.

    Raises:
        InputError: when the file is damaged, or the parts do not agree.
    """
    with reading(shard) as file:
        parts = {part.removeprefix(f"{name}."): file.get_tensor(part) for part in parts_of(name, entry)}
    weight = SparseWeight(entry.shape, _DTYPES[entry.dtype], **{"mask": None} | parts, group=entry.group)
    weight.check(f"{name} in {shard}")
    return weight


def as_tensors(weights: dict[str, SparseWeight], layers: Mapping[str, int]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Packed weights as the tensors and the metadata of a file; ``layers``: of those that are stacks."""
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for name, weight in weights.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in weight.parts().items()}
        entries[name] = Entry(
            shape=weight.shape,
            dtype=str(weight.dtype).removeprefix("torch."),
            group=weight.group,
            bits=4 if weight.width == 4 else 8,
            zeros=weight.zeros is not None,
            masked=weight.mask is not None,
            layers=layers.get(name, 0),
        )
    header = msgspec.json.encode(_Header(VERSION, entries)).decode()
    return tensors, {KEY: header}
