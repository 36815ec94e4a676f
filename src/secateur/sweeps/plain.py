"""Plain data of a grid, checked: names that are known, once each, and values that a table can show."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from secateur.errors import InputError


def mapping(value: Any, where: str) -> dict[str, Any]:
    """``value`` with its keys as words.

    Raises:
        InputError: when it is no mapping, or two keys are one word, as 1 and "1" are.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a mapping")
    return _named(((str(key), item) for key, item in value.items()), where)


def known_keys(data: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """``data`` with its keys as Python has them; raises :class:`InputError` for one that is not ``known``."""
    if not isinstance(data, dict):
        raise InputError(f"{where} is not a mapping")
    named = _named(((str(key).replace("-", "_"), value) for key, value in data.items()), where)
    for key in named:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise InputError(f"{where} has an unknown key {key!r}{meant}")
    return named


def words(values: Any, where: str) -> list[str]:
    """A list of plain values, each as the table shows it."""
    if not isinstance(values, list | tuple):
        raise InputError(f"{where} is not a list")
    return [label(value, where) for value in values]


def label(value: Any, where: str) -> str:
    """A plain value as the table shows it; raises :class:`InputError` for what is none."""
    if isinstance(value, list | tuple) and not any(isinstance(one, list | tuple) for one in value):
        return ", ".join(words(value, where)) or "none"
    if not isinstance(value, str | int | float | None):
        raise InputError(f"{where}: {type(value).__name__} is no kind of value to choose from")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _named(items: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, item in items:
        if name in named:
            raise InputError(f"{where} has {name!r} twice")
        named[name] = item
    return named
