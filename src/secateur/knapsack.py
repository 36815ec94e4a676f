"""How much to remove where, so that it costs the least in all.

Each linear has a curve: what it costs to remove so many of its weights. Of all ways to remove a given number, the
cheapest takes from each linear until one weight more would cost the same everywhere (Everett, *Generalized Lagrange
Multiplier Method for Solving Problems of Optimum Allocation of Resources*, 1963). Where curves are convex, that is to
take the cheapest piece that is left, over and over; a curve that is not is replaced by the largest convex one below it,
whose corners are points of the curve.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

Point = tuple[int, float]

# The shares that a linear may lose, but for one linear that makes the sum right.
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def cheapest(curves: Mapping[str, Sequence[Point]], removed: int) -> dict[str, int]:
    """How many weights go from each linear, ``removed`` in all: a corner of its curve for all but one of them.

    Args:
        curves: by the names of linears, how many weights may go and what that costs: numbers that rise, the first 0.

    Raises:
        ValueError: when that are more than all curves allow.
    """
    pieces = [
        ((there[1] - here[1]) / (there[0] - here[0]), name, there[0] - here[0])
        for name, curve in curves.items()
        for here, there in pairwise(convex(curve))
    ]
    shares, left = dict.fromkeys(curves, 0), removed
    for _, name, number in sorted(pieces, key=lambda piece: piece[0]):
        taken = min(number, left)
        shares[name] += taken
        left -= taken
    if left:
        raise ValueError(f"the curves end {left} weights before {removed}")
    return shares


def convex(curve: Sequence[Point]) -> list[Point]:
    """The corners of the largest convex curve that is nowhere above ``curve``."""
    corners: list[Point] = []
    for point in curve:
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-1], point):
            corners.pop()
        corners.append(point)
    return corners


def _slope(here: Point, there: Point) -> float:
    return (there[1] - here[1]) / (there[0] - here[0])
