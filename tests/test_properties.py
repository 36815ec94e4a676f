"""Laws of patterns, masks, orders, packing and recipes, on whatever hypothesis thinks of.

What is drawn is the same in every run; ``pytest --hypothesis-profile=long`` draws more, and anew each time.
"""

import itertools
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load, save

from secateur.checkpoint.packed import KEY, as_tensors
from secateur.checkpoint.sparse import BITS, pack, pack_int4, pack_int8, packed_bytes
from secateur.errors import InputError
from secateur.masks import obeys, retained, select, sparsity_of
from secateur.patterns import NM, Pattern, Unstructured, check_fits, count_kept, parse_nm
from secateur.permute.orders import find_order, inverse, kept_score, share_kept
from secateur.permute.searches import SEARCHES
from secateur.recipe import Recipe
from tests import oracle

SEEDS = st.integers(0, 2**31)


@st.composite
def nm(draw: Any, largest: int = 16) -> NM:
    group = draw(st.integers(1, largest))
    return NM(draw(st.integers(1, group)), group)


@st.composite
def unstructured(draw: Any) -> Unstructured:
    return Unstructured(draw(st.floats(0, 0.999)), draw(st.sampled_from(["row", "matrix"])))


@st.composite
def scores_and_patterns(draw: Any) -> tuple[torch.Tensor, Pattern]:
    """A score with many ties or none, and a pattern that it can have."""
    pattern = draw(nm() | unstructured())
    width = pattern.group * draw(st.integers(0, 5)) if isinstance(pattern, NM) else draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    levels = draw(st.sampled_from([1, 2, 5, 10**6]))
    score = torch.randint(levels, (draw(st.integers(0, 9)), width), generator=generator).float()
    return score * draw(st.sampled_from([1.0, -1.0, 1e-40, 3e32])), pattern


@given(st.text() | st.from_regex(r"\s?\d{1,5}\s?:\s?\d{1,5}\s?", fullmatch=True))
def test_any_text_is_a_pattern_or_is_refused(text):
    try:
        pattern = parse_nm(text)
    except InputError:
        return
    assert 0 < pattern.kept <= pattern.group
    assert parse_nm(f"{pattern.kept}:{pattern.group}") == pattern


@given(scores_and_patterns())
def test_a_mask_is_the_best_one_of_exactly_the_asked_size(drawn):
    score, pattern = drawn
    mask = select(score, pattern)
    match pattern:
        case NM(kept, group):
            expected = oracle.nm_mask(score.double().numpy(), kept, group)
        case Unstructured(sparsity, "row") if len(score):
            expected = oracle.row_mask(score.double().numpy(), sparsity)
        case Unstructured(sparsity, _):
            expected = oracle.matrix_mask(score.double().numpy(), sparsity)
    assert np.array_equal(mask.numpy(), expected)
    assert obeys(mask, pattern)
    assert mask.sum() == count_kept(score.shape[0], score.shape[1], pattern)


@given(nm(), st.integers(1, 100))
def test_a_width_fits_where_it_can_be_cut_into_groups(pattern, width):
    score = torch.rand(2, width)
    if width % pattern.group == 0:
        check_fits(pattern, width)
        assert sparsity_of(select(score, pattern)) == pytest.approx(pattern.sparsity)
        return
    for refuses in (lambda: check_fits(pattern, width), lambda: select(score, pattern)):
        with pytest.raises(InputError, match="not a multiple"):
            refuses()
    assert not obeys(score, pattern)


@given(nm(), st.integers(1, 4), SEEDS)
def test_keeping_more_keeps_what_was_kept_and_retains_more(pattern, groups, seed):
    score = torch.rand(5, groups * pattern.group, generator=torch.Generator().manual_seed(seed))
    masks = [select(score, NM(kept, pattern.group)) for kept in range(1, pattern.group + 1)]
    for less, more in itertools.pairwise(masks):
        assert (more | ~less).all()
        assert retained(score, less) <= retained(score, more)
    assert masks[-1].all()


@given(st.sampled_from(["none", *SEARCHES]), nm(8), st.integers(1, 6), st.integers(0, 7), st.integers(1, 3), SEEDS)
def test_an_order_is_a_permutation_that_retains_no_less(search, pattern, groups, rows, communities, seed):
    width = groups * pattern.group
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(rows, width, generator=generator) * torch.randint(2, (width,), generator=generator)
    order = find_order(score, pattern, search, communities=communities, seed=seed)
    assert torch.equal(order.sort().values, torch.arange(width))
    assert torch.equal(order[inverse(order)], torch.arange(width))
    moved = score[:, order]
    assert torch.equal(moved[:, inverse(order)], score)
    assert kept_score(moved, pattern) >= kept_score(score, pattern) * (1 - 1e-6)
    assert 0 <= share_kept(moved, pattern) <= 1 + 1e-6
    assert share_kept(moved, pattern) == pytest.approx(retained(moved, select(moved, pattern)))


@st.composite
def weights(draw: Any) -> torch.Tensor:
    """Any bits at all: NaNs with payloads, infinities, zeros of both signs; many exact zeros."""
    dtype = draw(st.sampled_from(list(BITS)))
    shape = draw(st.integers(0, 7)), draw(st.integers(0, 150))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    info = torch.iinfo(BITS[dtype])
    bits = torch.randint(info.min, info.max, shape, generator=generator, dtype=BITS[dtype])
    kept = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return bits.where(kept, 0).view(dtype)


@given(weights())
def test_packing_and_a_file_give_back_every_bit(weight):
    packed = pack(weight)
    packed.check("w")
    assert packed.nbytes == packed_bytes(
        weight.shape[0], weight.shape[1], len(packed.values), 8 * weight.dtype.itemsize
    )
    tensors, metadata = as_tensors({"w": packed}, {})
    assert set(metadata) == {KEY}
    parts = load(save(tensors))
    again = type(packed)(packed.shape, packed.dtype, parts["w.mask"], parts["w.values"])
    bits = BITS[weight.dtype]
    assert torch.equal(again.dense().view(bits), weight.view(bits))


@given(weights(), st.sampled_from([32, 64, 128]))
def test_integers_keep_the_zeros_and_are_near(weight, group):
    weight = weight.clamp(-1e4, 1e4).nan_to_num() + 0
    for pack_integers, bits in ((pack_int8, 8), (pack_int4, 4)):
        packed = pack_integers(weight, group)
        packed.check("w")
        assert packed.mask is None or torch.equal(packed.kept(), weight != 0)
        assert (packed.dense()[weight == 0] == 0).all()
        if group == 128 and (bits == 8 or packed.zeros is not None):
            assert packed.nbytes == packed_bytes(*packed.shape, int(weight.count_nonzero()), bits)
    packed = pack_int8(weight, group)
    assert packed.scales is not None
    steps = packed.scales.float().repeat_interleave(group, 1)[:, : weight.shape[1]]
    near = (packed.to(torch.float32).dense() - weight.float()).abs() <= 0.5 * steps * (1 + 1e-5) + 1e-37
    assert near.all()


@given(weights(), st.sampled_from(["mask", "values"]), st.integers(0, 10**6), st.integers(1, 255))
def test_a_part_with_another_byte_is_another_weight_or_is_refused(weight, part, place, flip):
    packed = pack(weight)
    damaged = getattr(packed, part).clone()
    raw = damaged.view(torch.uint8).flatten()
    assume(len(raw))
    raw[place % len(raw)] ^= flip
    changed = type(packed)(
        packed.shape, packed.dtype, **{"mask": packed.mask, "values": packed.values} | {part: damaged}
    )
    try:
        changed.check("w")
    except InputError:
        return
    bits = BITS[weight.dtype]
    assert not torch.equal(changed.dense().view(bits), weight.view(bits))


OPTIONS = [field.name for field in fields(Recipe)]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(PLAIN, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3))
LIKELY = st.sampled_from(["2:4", "ria", "cg", 0.5, 1, 2, "row", "gather", "none", ["*.o_proj"], "cpu", "auto"])


@given(
    st.dictionaries(st.sampled_from([*OPTIONS, "permtue"]) | st.text(max_size=6), LIKELY | ANYTHING, max_size=6)
    | ANYTHING
)
def test_any_data_is_a_recipe_or_is_refused(data):
    try:
        recipe = Recipe.from_dict(data)
    except InputError:
        return
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.summary()
