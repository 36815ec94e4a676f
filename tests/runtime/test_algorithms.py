import json

import pytest
import torch

from secateur.runtime.algorithms import search
from secateur.runtime.cusparselt import Algorithm
from secateur.runtime.semi_structured import SemiStructuredLinear
from tests.cuda import algorithms, pruned
from tests.cusparselt import CONFIGS


def case(tokens=16):
    weight, rows = pruned(32, 64), torch.randn(tokens, 64).bfloat16()
    return SemiStructuredLinear(weight), rows, rows @ weight.T


def faster_later(groups):
    """A clock by which an algorithm of a higher number is faster."""
    return [10.0 - products[0].keywords["algorithm"].config for products in groups]


def all_alike(groups):
    """A clock by which all are equally fast."""
    return [1.0 for _ in groups]


@torch.no_grad()
def test_the_fastest_of_those_that_multiply_rightly_is_found(cusparselt_stand_in):
    linear, rows, expected = case()
    assert search([linear], rows, expected, faster_later) == Algorithm(CONFIGS - 2)  # the last one is wrong
    with pytest.raises(RuntimeError, match="not the dense one"):
        search([linear], rows, 2 * expected, faster_later)


@torch.no_grad()
def test_only_what_comes_close_is_timed_again(cusparselt_stand_in):
    linears, (_, rows, _) = [case()[0] for _ in range(3)], case()
    expected = rows @ linears[0].weight.T
    alone, together = {0: 1.2, 1: 1.1, 2: 1.0}, {1: 2.0, 2: 3.0}
    timed = []

    def milliseconds(groups):
        shown = alone if len(groups[0]) == 1 else together
        ways = [{product.keywords["algorithm"].config for product in products} for products in groups]
        timed.append([(*way, len(products)) for way, products in zip(ways, groups, strict=True)])
        return [shown[config] for (config,) in ways]

    assert search(linears, rows, expected, milliseconds) == Algorithm(1)
    assert timed == [[(0, 1), (1, 1), (2, 1)], [(1, 3), (2, 3)]]


@torch.no_grad()
def test_what_was_found_is_not_searched_again(cusparselt_stand_in, tmp_path):
    linear, rows, expected = case()
    found = algorithms(tmp_path).find([linear], rows, expected, faster_later)
    again = algorithms(tmp_path).find([linear], rows, expected, lambda groups: pytest.fail("it was timed again"))
    assert again == found == Algorithm(CONFIGS - 2)
    other, rows, expected = case(24)
    assert algorithms(tmp_path).find([other], rows, expected, all_alike) == Algorithm(0)
    (known,) = json.loads((tmp_path / "algorithms.json").read_text(encoding="utf-8")).values()
    assert known == {"32x64 bfloat16, 16 tokens": [2], "32x64 bfloat16, 24 tokens": [0]}


@torch.no_grad()
@pytest.mark.parametrize("text", ["", "{", "[1]", '{"HERE": 3}', '{"HERE": {"KEY": [3]}}', '{"HERE": {"KEY": 7}}'])
def test_a_damaged_file_or_a_wrong_entry_leads_to_a_new_search(text, cusparselt_stand_in, tmp_path):
    linear, rows, expected = case()
    known = algorithms(tmp_path)
    text = text.replace("HERE", known._here).replace("KEY", "32x64 bfloat16, 16 tokens")
    (tmp_path / "algorithms.json").write_text(text, encoding="utf-8")
    assert known.find([linear], rows, expected, faster_later) == Algorithm(CONFIGS - 2)
    assert algorithms(tmp_path).find([linear], rows, expected, all_alike) == Algorithm(CONFIGS - 2)


@torch.no_grad()
def test_where_no_file_can_be_written_the_search_goes_on(cusparselt_stand_in, tmp_path):
    linear, rows, expected = case()
    (tmp_path / "file").write_text("")
    assert algorithms(tmp_path / "file").find([linear], rows, expected, faster_later) == Algorithm(CONFIGS - 2)
