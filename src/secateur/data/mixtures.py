"""Several sources of calibration samples at once, each with its share: ``c4:0.5 self:0.5``.

Each source draws as it would alone. The samples are then laid out so that any stretch of them holds each source in
proportion, the last as well, by which the guard judges.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import InputError

# The source that is no text: the model that is calibrated writes it.
SELF = "self"
_SHARE = re.compile(r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}", re.ASCII)


class Part(NamedTuple):
    """One source of a mixture, and its share, in any unit."""

    source: str
    share: Fraction


def parts_of(calibration: str) -> list[Part]:
    """The sources that ``calibration`` names: those of a mixture, or the one that it is.

    A mixture names two or more, with spaces between, and a share above 0 after the last colon of each: ``c4:FILE:2``.
    """
    parts, words = list[Part](), list[str]()
    for word in calibration.split(" "):
        source, _, share = word.rpartition(":")
        words.append(word)
        if _SHARE.fullmatch(share) and float(share) and (name := " ".join([*words[:-1], source]).strip()):
            parts.append(Part(name, Fraction(share)))
            words.clear()
    return parts if len(parts) > 1 and not any(words) else [Part(calibration, Fraction(1))]


def share_out(calibration: str, samples: int) -> dict[str, int]:
    """How many of so many samples each source of ``calibration`` gives, by largest remainder; the first of equals.

    Raises:
        InputError: when a source is named twice, or gets none.
    """
    parts = parts_of(calibration)
    total = sum(part.share for part in parts)
    quotas = [samples * part.share / total for part in parts]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda number: counts[number] - quotas[number])
    for number in by_remainder[: samples - sum(counts)]:
        counts[number] += 1
    found = dict(zip((part.source for part in parts), counts, strict=True))
    if len(found) < len(parts):
        raise InputError(f"{calibration} names a source twice, and it would give the same samples twice")
    if none := [source for source, count in found.items() if not count]:
        raise InputError(f"of {samples} samples the share of {none[0]} comes to none: take more (--samples)")
    return found


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """The samples of all ``parts``, int64 ``(n, L)`` each, those of each in their order and spread evenly."""
    places = [
        (Fraction(2 * row + 1, 2 * len(part)), number) for number, part in enumerate(parts) for row in range(len(part))
    ]
    return torch.cat(list(parts))[sorted(range(len(places)), key=places.__getitem__)]
