from itertools import pairwise
from typing import Any

import pytest

import secateur
from secateur import budget
from secateur.budget import MOST, NEAR, PLAIN, Way, _by_loss, _by_size
from secateur.errors import InputError
from secateur.recipe import Recipe
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


def size(bits, percent):
    """That of a thousand weights and a mask, if it pays."""
    return 1000 * bits if not percent else min(1000 * bits, 1000 + 10 * (100 - percent) * bits)


def search(costs, slope, allowed=0.1):
    """What is found where bits cost ``costs``, and each per cent of the weights that goes ``slope``; what is left."""
    there = set()

    def loss(way):
        there.add((way.bits, way.sparsity))
        return costs.get(way.bits, 0) + slope * 100 * way.sparsity

    ways, _ = _by_loss(size, allowed, loss, lambda way: there.discard((way.bits, way.sparsity)))
    return ways, there


@pytest.mark.parametrize(("costs", "bits"), [({8: 0.0, 4: 0.02}, 4), ({8: 0.001, 4: 0.5}, 8), ({8: 1, 4: 2}, PLAIN)])
@pytest.mark.parametrize("most", [40, 77, MOST])
def test_a_bisection_finds_what_may_go(costs, bits, most):
    slope = (0.1 - costs.get(bits, 0)) / (most + 0.5)  # so that as many per cent may go, and no more
    (best, *others), there = search(costs, slope)
    assert best.bits == bits and best.loss <= 0.1
    assert most - NEAR < 100 * best.sparsity <= most
    assert best.size == min(way.size for way in (best, *others) if way.loss <= 0.1)
    assert there == {(best.bits, best.sparsity)}, "what is not written takes no room"
    assert len(others) <= 8


def test_nothing_is_removed_that_a_mask_does_not_pay_for():
    (best, *others), _ = search({4: 0.05}, 0.05 / 20)
    assert (best.bits, best.sparsity) == (4, 0)
    assert all(way.size < best.size for way in others if way.sparsity)


def test_a_loss_that_nothing_keeps_is_refused():
    with pytest.raises(InputError, match=r"nothing keeps within 0.01: 8% pruned, weights as they are costs"):
        search({8: 1, 4: 2}, 0.02, allowed=0.01)


def test_a_size_is_reached_by_bits_where_they_do():
    for target in (15_999, 8_000, 4_000, 3_500, 1_500):
        (best, *_), _ = _by_size(size, target)
        assert best.size <= target
        assert (best.bits == 4) == (target < 8_000) and (best.sparsity > 0) == (target < 4_000)
        assert best.sparsity == 0 or size(best.bits, round(100 * best.sparsity) - 1) > target
    for target, message in ((16_000, "as it is"), (1_300, "cannot be reached")):
        with pytest.raises(InputError, match=message):
            _by_size(size, target)


def test_what_is_written_keeps_the_size(tmp_path):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    (tmp_path / "text.txt").write_text(TEXT)
    recipe = Recipe(calibration=str(tmp_path / "text.txt"), samples=4, length=32)
    sizes = []
    for number, target in enumerate(("64KB", "46KB")):
        result = secateur.compress(dense, tmp_path / str(number), target_size=target, recipe=recipe)
        assert result.size <= result.ways[0].size <= secateur.sizes.parse_size(target)
        assert secateur.load(tmp_path / str(number))(pico.tokens()).logits.isfinite().all()
        sizes.append((result.ways[0].bits, result.size))
    assert all(before > after for before, after in pairwise(sizes))
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "text.txt", "0", "1"}


def test_a_loss_is_measured_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "NEAR", 60)
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    (tmp_path / "text.txt").write_text(TEXT)
    text = str(tmp_path / "text.txt")
    recipe = Recipe(calibration=text, samples=4, length=32)
    how: dict[str, Any] = {"window": 32, "limit": 4}
    result = secateur.compress(dense, tmp_path / "out", max_loss="10000%", recipe=recipe, data=text, **how)
    best = result.ways[0]
    assert best.bits == 4 and best.sparsity > 0.5
    assert best.loss is not None and -1 < best.loss <= 100
    assert result.size <= best.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one budget"),
        ({"target_size": "1GB", "max_loss": "5%"}, "one budget"),
        ({"target_size": ""}, "'' is no size"),
        ({"target_size": "much"}, "'much' is no size"),
        ({"max_loss": "0%"}, "makes no sense"),
        ({"max_loss": "-1"}, "makes no sense"),
        ({"max_loss": "5%", "recipe": Recipe(pattern="2:4")}, "no --pattern"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        secateur.compress(tmp_path / "dense", tmp_path / "out", **options)


def test_ways_are_told():
    assert str(Way(4, 0.37, 1)) == "37% pruned, 4 bits"
    assert str(Way(PLAIN, 0, 1)) == "dense, weights as they are"
