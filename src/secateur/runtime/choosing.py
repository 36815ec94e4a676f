"""Which form of a weight is worth having, for how many tokens: decided by what was measured."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from secateur.runtime.cusparselt import Algorithm

DENSE, SEMI_STRUCTURED, PACKED = "dense", "2:4", "packed"
FORMS = (DENSE, SEMI_STRUCTURED, PACKED)
# Forms are timed with so many tokens: a token at a time, small batches, prompts.
BUCKETS = (1, 8, 64, 256, 1024, 2048, 4096, 8192)
# Smaller differences between two times are noise.
TOLERANCE = 1.05


@dataclass(frozen=True)
class Measured:
    """What was measured of linears that have shape, type and bias in common.

    Attributes:
        times: by number of tokens, the milliseconds that each form takes for a product; the same forms everywhere.
        nbytes: what each of those forms takes in memory.
        refused: other forms, and why they cannot be used.
        algorithms: by number of tokens, what cuSPARSELt multiplies with, where 2:4 is among the forms.
    """

    times: dict[int, dict[str, float]]
    nbytes: dict[str, int]
    refused: dict[str, str]
    algorithms: dict[int, Algorithm]


@dataclass(frozen=True)
class Choice:
    """How the pruned linears of one shape are multiplied with, and why.

    Attributes:
        shape: ``(O, I)``.
        dtype: of the weight.
        bias: whether they have one.
        pattern: ``2:4`` as stored, or ``unstructured``: any other.
        layers: the number of such linears.
        forms: by number of tokens, the form that was chosen: ``dense``, ``2:4`` or ``packed``.
        measured: what it was chosen by.
    """

    shape: tuple[int, int]
    dtype: str
    bias: bool
    pattern: str
    layers: int
    forms: dict[int, str]
    measured: Measured

    @property
    def memory(self) -> float:
        """What the forms that are kept take, as a share of the dense weight."""
        return sum(self.measured.nbytes[form] for form in set(self.forms.values())) / self.measured.nbytes[DENSE]


def choose(
    times: Mapping[int, Mapping[str, float]], nbytes: Mapping[str, int], most_bytes: float = math.inf
) -> dict[int, str]:
    """The form to use for each number of tokens.

    Of all sets of forms that contain, for every number of tokens, one at most ``TOLERANCE`` times as slow as the
    fastest, the set that takes the least memory is kept, and of two that take the same, the faster one. Where all of
    these take more than ``most_bytes``, it is the set whose worst delay is least. From it the fastest form is chosen
    for each number of tokens, so that every form that is kept has a use.

    Args:
        times: by number of tokens, what each form takes.
        nbytes: what each form takes in memory.
        most_bytes: what all that are kept may take; the smallest form is always allowed.
    """

    def slowdowns(kept: Iterable[str]) -> list[float]:
        return [min(taken[form] for form in kept) / min(taken.values()) for taken in times.values()]

    def size(kept: Iterable[str]) -> int:
        return sum(nbytes[form] for form in kept)

    most_bytes = max(most_bytes, min(nbytes.values()))
    sets = [kept for number in range(1, len(nbytes) + 1) for kept in itertools.combinations(nbytes, number)]
    sets = [kept for kept in sets if size(kept) <= most_bytes]
    if enough := [kept for kept in sets if max(slowdowns(kept)) <= TOLERANCE]:
        best = min(enough, key=lambda kept: (size(kept), sum(slowdowns(kept))))
    else:
        best = min(sets, key=lambda kept: (max(slowdowns(kept)), size(kept)))
    return {tokens: min(best, key=taken.__getitem__) for tokens, taken in times.items()}


@lru_cache(maxsize=4096)
def nearest(buckets: tuple[int, ...], tokens: int) -> int:
    """The bucket whose ratio to ``tokens``, at least 1, is closest to 1."""
    return min(buckets, key=lambda bucket: abs(math.log(bucket / tokens)))
