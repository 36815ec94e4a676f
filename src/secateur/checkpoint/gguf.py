"""The header of a GGUF file, read with care: other readers believe the numbers that are in it.

A file of a few bytes may announce 2⁶⁰ entries, or nothing but an architecture, for which transformers then builds its
default model of seven billion weights. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes the format.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from secateur.errors import InputError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Bytes of a value, by the number of its type; 8 is text, 9 an array.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9
_FEWEST_BITS = 1  # no type of tensor takes less for a weight


@dataclass(frozen=True)
class Contents:
    """What a GGUF file holds.

    Attributes:
        tensors: their number.
        weights: the number of their entries.
    """

    tensors: int
    weights: int


def read_contents(path: Path) -> Contents:
    """Walk through the header of a GGUF file: every length in it is compared with the length of the file.

    Raises:
        InputError: when it is none, is cut off, or holds no tensors, or more of them than its bytes can be.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _Header(file, size)
        try:
            if file.read(4) != _MAGIC or header.number("I") not in _VERSIONS:
                raise InputError(f"{path} is not a GGUF file of version {' or '.join(map(str, _VERSIONS))}")
            tensors, entries = header.number("Q"), header.number("Q")
            for _ in range(entries):
                header.text()
                header.value(header.number("I"))
            weights = sum(header.tensor() for _ in range(tensors))
        except (EOFError, struct.error, RecursionError):
            raise InputError(f"{path} is damaged or incomplete: its header ends early") from None
    if not tensors or weights * _FEWEST_BITS > 8 * size:
        raise InputError(f"{path} is damaged: of {size} bytes, it announces {tensors} tensors with {weights:,} weights")
    return Contents(tensors, weights)


class _Header:
    """The part of a GGUF file that is not weights, from front to back."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def number(self, kind: str) -> int:
        """An unsigned integer: ``I`` of 4 bytes, ``Q`` of 8, little-endian."""
        (value,) = struct.unpack(f"<{kind}", self._file.read(struct.calcsize(kind)))
        return int(value)

    def skip(self, length: int) -> None:
        """Pass over so many bytes; raises EOFError when the file has not so many."""
        if self._file.tell() + length > self._size:
            raise EOFError
        self._file.seek(length, 1)

    def text(self) -> None:
        """Pass over a text."""
        self.skip(self.number("Q"))

    def value(self, kind: int) -> None:
        """Pass over a value of this type; of an array's items each takes at least a byte of the file."""
        if kind == _TEXT:
            self.text()
        elif kind == _ARRAY:
            items, length = self.number("I"), self.number("Q")
            if items in _SIZES:
                self.skip(_SIZES[items] * length)
            else:
                for _ in range(length):
                    self.value(items)
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise EOFError  # where the next one begins cannot be known

    def tensor(self) -> int:
        """Pass over what is said of a tensor; the number of its entries."""
        self.text()
        dimensions = self.number("I")
        if dimensions > 8:
            raise EOFError
        shape = [self.number("Q") for _ in range(dimensions)]
        self.skip(4 + 8)  # type and place
        return prod(shape)
