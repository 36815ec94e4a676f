"""Sizes of memory as people write them: ``8GB``, ``512MiB``, or a number of bytes."""

import re

from secateur.errors import InputError

UNITS = {"": 1, "B": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_BY_WORD = {unit.lower(): factor for unit, factor in UNITS.items()}


def parse_size(text: str) -> int:
    """The bytes that ``text`` stands for: 8GB is 8·10⁹, 8GiB is 8·2³⁰, a bare number counts bytes.

    Raises:
        InputError: when it is no such size, or not even one byte.
    """
    if not isinstance(text, str):
        raise InputError(f"memory {text!r} is no text: write '8GB', or a number of bytes as text")
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{0,9})?)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    factor = _BY_WORD.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise InputError(f"memory {text!r} is no size: give a number with {', '.join(list(UNITS)[1:])}, such as 8GB")
    if (size := int(float(match[1]) * factor)) < 1:
        raise InputError(f"memory {text!r} is less than a byte")
    return size


def show_size(size: int) -> str:
    """``size`` bytes for people, in decimal units: ``7.3 GB``, ``12 MB``, ``300 kB``, ``1 B``."""
    for unit, factor, digits in (("GB", 1e9, 1), ("MB", 1e6, 0), ("kB", 1e3, 0)):
        if size >= factor:
            return f"{size / factor:.{digits}f} {unit}"
    return f"{size} B"
