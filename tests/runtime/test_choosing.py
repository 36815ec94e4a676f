import pytest
import torch

from secateur.runtime.choosing import BUCKETS, TOLERANCE, Choice, Measured, choose, nearest

NBYTES = {"dense": 32, "sparse": 18, "packed": 18}


def table(**times):
    """Times by form, each a list over the numbers of tokens 1, 16, …, by number of tokens."""
    return {tokens: dict(zip(times, row, strict=True)) for tokens, *row in zip(BUCKETS, *times.values(), strict=False)}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        # Dense is fastest everywhere.
        (table(dense=[1, 1], sparse=[2, 2], packed=[3, 3]), ["dense", "dense"]),
        # As fast as dense, within the noise: the smaller form, and of two the faster.
        (table(dense=[1, 1], sparse=[1.04, 1.04], packed=[1.03, 1.03]), ["packed", "packed"]),
        # Faster with many tokens only: both are needed.
        (table(dense=[1, 1], sparse=[2, 0.5]), ["dense", "sparse"]),
        # One sparse form that is nearly as good as the best everywhere spares the others.
        (table(dense=[2, 1], sparse=[1, 1.02], packed=[3, 0.99]), ["sparse", "sparse"]),
        # Two small forms are not smaller than dense alone.
        (table(dense=[1, 1], sparse=[1, 2], packed=[2, 1]), ["dense", "dense"]),
        # Each is by far the best somewhere.
        (table(dense=[1, 2, 2], sparse=[2, 1, 2], packed=[2, 2, 1]), ["dense", "sparse", "packed"]),
    ],
)
def test_what_is_faster_is_chosen_and_what_has_no_use_is_not_kept(times, expected):
    forms = next(iter(times.values()))
    assert list(choose(times, {form: NBYTES[form] for form in forms}).values()) == expected


def test_no_choice_is_slow_and_no_kept_form_can_be_spared():
    generator = torch.Generator().manual_seed(0)
    kept_numbers = set()
    for _ in range(300):
        rows = (1 + torch.rand(len(BUCKETS), 3, generator=generator) ** 6).tolist()
        times = {tokens: dict(zip(NBYTES, row, strict=True)) for tokens, row in zip(BUCKETS, rows, strict=True)}
        plan = choose(times, NBYTES)
        assert plan.keys() == times.keys()
        assert all(times[tokens][form] <= TOLERANCE * min(times[tokens].values()) for tokens, form in plan.items())
        kept = set(plan.values())
        kept_numbers.add(len(kept))
        for spared in kept if len(kept) > 1 else ():
            rest = [[taken[form] for form in kept - {spared}] for taken in times.values()]
            assert any(min(r) > TOLERANCE * min(t.values()) for r, t in zip(rest, times.values(), strict=True))
    assert kept_numbers == {1, 2, 3}


def test_what_takes_too_much_memory_is_not_kept():
    times = table(dense=[4, 2], sparse=[9, 1], packed=[1, 6])
    assert list(choose(times, NBYTES).values()) == ["packed", "sparse"]
    assert list(choose(times, NBYTES, 36).values()) == ["packed", "sparse"]
    assert list(choose(times, NBYTES, 35).values()) == ["dense", "dense"]  # at worst 4 times as slow, not 6 or 9
    assert list(choose(times, NBYTES, 20).values()) == ["packed", "packed"]
    assert list(choose(times, NBYTES, 0).values()) == ["packed", "packed"]


def test_the_nearest_number_of_tokens_is_that_of_the_closest_ratio():
    places = {1: 1, 2: 1, 3: 8, 8: 8, 22: 8, 23: 64, 1024: 1024, 100_000: 8192}
    assert {tokens: nearest(BUCKETS, tokens) for tokens in places} == places


def test_memory_counts_each_form_once():
    measured = Measured({}, NBYTES, {}, {})
    plan = {1: "dense", 16: "packed", 128: "packed"}
    assert Choice((4, 8), "bfloat16", False, "2:4", 1, plan, measured).memory == 50 / 32
