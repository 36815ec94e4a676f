"""Which form of a weight is worth having, for how many tokens: decided by what was measured."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DENSE = "dense"
# Forms are timed with so many tokens: a token at a time, small batches, prompts.
BUCKETS = (1, 16, 128, 1024, 4096)
# Smaller differences between two times are noise.
TOLERANCE = 1.05


@dataclass(frozen=True)
class Measured:
    """What was found out about the linears of one kind.

    Attributes:
        times: by number of tokens, the milliseconds that each form takes for a product; the same forms everywhere.
        nbytes: what each of those forms takes in memory.
        refused: other forms, and why they cannot be used.
    """

    times: dict[int, dict[str, float]]
    nbytes: dict[str, int]
    refused: dict[str, str]


@dataclass(frozen=True)
class Choice:
    """How the 2:4 linears of one kind are multiplied with, and why.

    Attributes:
        shape: ``(O, I)``.
        dtype: of the weight.
        bias: whether they have one.
        layers: the number of such linears.
        forms: by number of tokens, the form that was chosen: ``dense``, ``cusparselt`` or ``cutlass``.
        measured: what it was chosen by.
    """

    shape: tuple[int, int]
    dtype: str
    bias: bool
    layers: int
    forms: dict[int, str]
    measured: Measured

    @property
    def memory(self) -> float:
        """What the forms that are kept take, as a share of the dense weight."""
        return sum(self.measured.nbytes[form] for form in set(self.forms.values())) / self.measured.nbytes[DENSE]


def choose(times: Mapping[int, Mapping[str, float]], nbytes: Mapping[str, int]) -> dict[int, str]:
    """The form to use for each number of tokens.

    Of all sets of forms that contain, for every number of tokens, one at most ``TOLERANCE`` times as slow as the
    fastest, the set that takes the least memory is kept, and of two that take the same, the faster one. From
    it the fastest is chosen for each number of tokens, so that every form that is kept has a use.

    Args:
        times: by number of tokens, what each form takes.
        nbytes: what each form takes in memory.
    """

    def slowdowns(kept: Iterable[str]) -> list[float]:
        return [min(taken[form] for form in kept) / min(taken.values()) for taken in times.values()]

    sets = [kept for size in range(1, len(nbytes) + 1) for kept in itertools.combinations(nbytes, size)]
    enough = [kept for kept in sets if max(slowdowns(kept)) <= TOLERANCE]
    best = min(enough, key=lambda kept: (sum(nbytes[form] for form in kept), sum(slowdowns(kept))))
    return {tokens: min(best, key=taken.__getitem__) for tokens, taken in times.items()}


def nearest(buckets: Iterable[int], tokens: int) -> int:
    """The bucket whose ratio to ``tokens``, at least 1, is closest to 1."""
    return min(buckets, key=lambda bucket: abs(math.log(bucket / tokens)))
