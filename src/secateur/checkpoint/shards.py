"""One safetensors file: what its header says, and its tensors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from secateur.errors import InputError, reason

# The types that weights may have, and what safetensors calls them.
FLOATS = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Held:
    """What the header of a safetensors file says of one tensor.

    Attributes:
        file: the file.
        shape: the shape.
        dtype: as safetensors calls it, such as ``BF16``.
        nbytes: what it takes in the file.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@contextmanager
def reading(shard: Path) -> Iterator[Any]:
    """A safetensors file, open; what it raises becomes an :class:`InputError` that names it."""
    try:
        shard.open("rb").close()  # of a file that may not be read safetensors says that there is none
        with safe_open(shard, framework="pt") as file:
            yield file
    except PermissionError:
        raise InputError(f"{shard} cannot be read: permission denied") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{shard} is damaged or incomplete: {reason(error)}") from error


def read_header(shard: Path) -> dict[str, Held]:
    """What a safetensors file holds, by name; raises :class:`InputError` when it is damaged."""
    held = {}
    with reading(shard) as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            view = file.get_slice(name)
            shape, dtype = tuple(view.get_shape()), view.get_dtype()
            bits = re.search(r"\d+", dtype)  # a bool takes a byte
            held[name] = Held(shard, shape, dtype, prod(shape) * int(bits[0] if bits else 8) // 8)
    return held
