"""A mixture of sources gives each its share, everywhere."""

from contextlib import suppress
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur import data
from secateur.data import interleave, parts_of, share_out
from secateur.errors import InputError
from tests import pico

SHARES = st.lists(st.integers(1, 50), min_size=1, max_size=4)


def named(shares):
    return " ".join(f"source{number}:{share}" for number, share in enumerate(shares))


@pytest.mark.parametrize(
    ("calibration", "parts"),
    [
        ("c4:0.5 self:.25", {"c4": Fraction(1, 2), "self": Fraction(1, 4)}),
        ("c4:a/b.jsonl:2  demo:1", {"c4:a/b.jsonl": 2, "demo": 1}),
        ("my notes.txt:1 org/name/config:3", {"my notes.txt": 1, "org/name/config": 3}),
        # One source, whatever is in its name.
        ("c4", {"c4": 1}),
        ("my notes 0.5.txt", {"my notes 0.5.txt": 1}),
        ("c4:7", {"c4:7": 1}),
        ("c4:0.5 self", {"c4:0.5 self": 1}),
        ("c4:0 self:0", {"c4:0 self:0": 1}),
        ("c4:nan self:inf", {"c4:nan self:inf": 1}),
        ("", {"": 1}),
    ],
)
def test_a_mixture_is_what_has_a_share_after_each_of_several_names(calibration, parts):
    assert dict(parts_of(calibration)) == parts


@given(SHARES, st.integers(1, 300))
def test_samples_are_shared_out_within_one_of_the_quota(shares, samples):
    calibration = named(shares) if len(shares) > 1 else "c4"
    if min(shares) * samples < sum(shares):  # less than one: its remainder decides
        with suppress(InputError):
            share_out(calibration, samples)
        return
    counts = share_out(calibration, samples)
    assert sum(counts.values()) == samples
    for count, share in zip(counts.values(), shares, strict=True):
        assert abs(count - Fraction(samples * share, sum(shares))) < 1


def test_the_largest_remainder_gets_what_is_left():
    assert share_out("a:1 b:1 c:1", 4) == {"a": 2, "b": 1, "c": 1}
    assert share_out("a:0.7 b:0.3", 10) == {"a": 7, "b": 3}
    assert share_out("a:1 b:5", 8) == {"a": 1, "b": 7}


def test_a_source_twice_or_for_nothing_is_refused():
    with pytest.raises(InputError, match="names a source twice"):
        share_out("c4:0.5 c4:0.5", 4)
    with pytest.raises(InputError, match="share of self comes to none"):
        share_out("c4:0.99 self:0.01", 4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_any_stretch_of_a_mixture_holds_each_source_in_proportion(sizes, drawn):
    ids = interleave([torch.stack([torch.arange(n), torch.full((n,), number)], 1) for number, n in enumerate(sizes)])
    for number, n in enumerate(sizes):  # all of each, in its order
        assert ids[ids[:, 1] == number, 0].tolist() == list(range(n))
    begin = drawn.draw(st.integers(0, len(ids)))
    stretch = ids[begin : drawn.draw(st.integers(begin, len(ids)))]
    for number, n in enumerate(sizes):
        assert abs(int((stretch[:, 1] == number).sum()) - len(stretch) * n / len(ids)) <= len(sizes)


def test_what_is_no_text_is_not_read_as_one():
    for purpose in ("calibration", "evaluation"):
        with pytest.raises(InputError, match="self is not text to read"):
            data.load_text("self", purpose)
    assert data.hub_dataset("self") is None


def test_one_source_alone_stays_as_it_is():
    ids = pico.tokenizer()("one two", return_tensors="pt").input_ids
    assert torch.equal(interleave([ids]), ids)
