"""What a mask must obey: a pattern of N:M, or a share of weights anywhere; one for all layers, or by their names.

Nothing here computes: names, numbers and checks, which the recipe and the command line need before torch is loaded.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from secateur.errors import InputError

Scope = Literal["row", "matrix"]


@dataclass(frozen=True)
class Unstructured:
    """Any weight may go: a share ``sparsity`` in [0, 1) of them is removed.

    ``scope`` says which weights compete: those of one output row, or those of the whole matrix.
    """

    sparsity: float
    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            share = f"; {self.sparsity:g} % is {self.sparsity / 100:g}" if 1 <= self.sparsity < 100 else ""
            raise InputError(f"sparsity {self.sparsity} is not in [0, 1){share}")

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.4g} %"


@dataclass(frozen=True)
class NM:
    """``kept`` weights stay of every ``group`` consecutive input channels, in each output row."""

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 0 < self.kept <= self.group:
            raise InputError(
                f"pattern {self.kept}:{self.group} does not keep 1 to {self.group} weights of {self.group}"
            )

    @property
    def sparsity(self) -> float:
        """The share of weights removed."""
        return 1 - self.kept / self.group

    def __str__(self) -> str:
        return f"{self.kept}:{self.group} ({100 * self.sparsity:.4g} %)"


Pattern = Unstructured | NM


def parse_nm(text: str) -> NM:
    """Read ``"2:4"`` as :class:`NM`. Raises :class:`InputError` for anything else."""
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if match is None:
        raise InputError(f"pattern {text!r} is not of the form N:M, such as 2:4 (N weights kept of every M)")
    return NM(int(match[1]), int(match[2]))


def show_patterns(patterns: Iterable[Pattern]) -> str:
    """Some patterns for people: each kind once, the least sparse first; of more than three the first and the last."""
    kinds = list(dict.fromkeys(map(str, sorted(patterns, key=lambda pattern: pattern.sparsity))))
    return " and ".join(kinds) if len(kinds) <= 3 else f"{kinds[0]} to {kinds[-1]}"


def spell(values: Mapping[str, object]) -> str:
    """Values by globs of layer names as one text, ``GLOB=VALUE`` with spaces between.

    Raises:
        InputError: when a glob is empty or has a space in it, as no layer's name has, or there is none.
    """
    for glob in values:
        if not glob or len(glob.split()) != 1:
            raise InputError(f"{glob!r} is no glob of layer names, such as '*.down_proj'")
    if not values:
        raise InputError("a mapping of layers to values is empty: add '*' with the value of all others")
    return " ".join(f"{glob}={value}" for glob, value in values.items())


def read_spelled(text: str) -> dict[str, str]:
    """What :func:`spell` has spelled: values by globs, in their order.

    Raises:
        InputError: when it is not of that form, or has a glob twice.
    """
    values: dict[str, str] = {}
    for word in text.split():
        glob, _, value = word.rpartition("=")
        if not glob:
            raise InputError(f"{word!r} is not of the form GLOB=VALUE, such as '*.down_proj=0.4 *=0.6'")
        if glob in values:
            raise InputError(f"{glob} is given two values: {values[glob]} and {value}")
        values[glob] = value
    return values


def check_fits(pattern: Pattern, in_features: int) -> None:
    """Raise :class:`InputError` when a weight of ``in_features`` columns cannot have ``pattern``."""
    if isinstance(pattern, NM) and in_features % pattern.group:
        raise InputError(f"{in_features} input channels are not a multiple of {pattern.group}, as {pattern} needs")


def in_rows(pattern: Pattern) -> Pattern:
    """What remains of N:M in every row where its groups are not stored side by side."""
    return Unstructured(pattern.sparsity, "row") if isinstance(pattern, NM) else pattern


def count_kept(rows: int, columns: int, pattern: Pattern) -> int:
    """How many weights :func:`secateur.masks.select` keeps of a matrix of this shape.

    Raises:
        InputError: when ``columns`` is not a multiple of the group of an N:M pattern.
    """
    check_fits(pattern, columns)
    match pattern:
        case NM(kept, group):
            return rows * columns // group * kept
        case Unstructured(sparsity, scope):
            number, length = (1, rows * columns) if scope == "matrix" else (rows, columns)
            return number * (length - round(sparsity * length))
