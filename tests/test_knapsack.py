import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.knapsack import cheapest, convex

STEP = 10  # weights of a piece
STEPS = st.lists(st.integers(0, 20), min_size=3, max_size=3)  # what each piece costs more than the one before


def curve(rises, bent=True):
    """A convex curve of pieces whose slopes rise by so much each; not ``bent``, one whose slopes are these."""
    slopes = itertools.accumulate(rises) if bent else rises
    costs = [0, *itertools.accumulate(slopes)]
    return [(STEP * number, float(cost)) for number, cost in enumerate(costs)]


def cost_of(curves, shares):
    return sum(dict(curves[name])[number] for name, number in shares.items())


@given(st.lists(STEPS, min_size=1, max_size=4), st.data())
def test_nothing_is_cheaper_of_convex_curves(rises, data):
    curves = {str(number): curve(each) for number, each in enumerate(rises)}
    removed = STEP * data.draw(st.integers(0, 3 * len(curves)))
    shares = cheapest(curves, removed)
    assert sum(shares.values()) == removed
    others = itertools.product(*([number for number, _ in each] for each in curves.values()))
    least = min(cost_of(curves, dict(zip(curves, each, strict=True))) for each in others if sum(each) == removed)
    assert cost_of(curves, shares) == least


@given(st.lists(STEPS, min_size=2, max_size=4), st.data())
def test_the_sum_is_right_and_all_but_one_are_at_corners_of_any_curves(slopes, data):
    curves = {str(number): curve(each, bent=False) for number, each in enumerate(slopes)}
    removed = data.draw(st.integers(0, 3 * STEP * len(curves)))
    shares = cheapest(curves, removed)
    assert sum(shares.values()) == removed
    between = [name for name, number in shares.items() if number not in dict(convex(curves[name]))]
    assert len(between) <= 1


def test_more_than_there_is_cannot_be_removed():
    with pytest.raises(ValueError, match="end 5 weights before 35"):
        cheapest({"a": curve([1, 1, 1])}, 35)
