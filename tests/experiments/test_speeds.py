"""What the experiments on time are made of, on tiny cases, and each of them on a tiny model."""

import importlib
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from experiments import (
    appendix_g,
    equal_bytes,
    few_bits,
    reconstruction,
    section5_4,
    table1,
    table4,
    table5,
    table9,
    table11,
    timing,
)
from experiments.group_ranges import Sums
from experiments.table11 import OWN, SEARCHES, compared, heavy, side_by_side
from secateur.checkpoint import Source
from secateur.permute import searches
from secateur.scores import relative_importance
from tests import pico

EXPERIMENTS = (
    *("table5", "table9", "table11", "appendix_g", "section5_4"),
    *("equal_bytes", "few_bits", "group_ranges", "reconstruction"),
)
ONE = {"2:4": {"pattern": "2:4"}}
# What is made small, besides the model.
SHORT: dict[Any, dict[str, Any]] = {
    timing: {"ROUNDS": 2, "ENOUGH": 1e-9, "PROMPT": 8, "TOKENS": 2},
    searches: {"GREEDY_ESCAPES": 1},
    table5: {"TARGETS": ONE, "FEW": {"batch": (1,), "length": (8,)}},
    table9: {"FEW": (1, 2), "SMALL_LENGTH": 8, "TOKENS": 2},
    table11: {"SMALL_WIDTHS": (16, 32, 64), "SMALL_HEIGHT": 8},
    appendix_g: {"SMALL_WIDTHS": (16, 32, 64), "RECIPES": {"greedy": appendix_g.RECIPES["greedy"]}, "FIRST": 1},
    table1: {"METHODS": {"ria": {"score": "ria"}}},
    table4: {"METHODS": {"ria": {"score": "ria", "permute": "none"}}},
    equal_bytes: {"TARGETS": ONE},
    few_bits: {
        "TARGETS": {name: few_bits.TARGETS[name] for name in ("dense", "good 2:4")},
        "VALUES": ("bfloat16", "int4"),
    },
    reconstruction: {"SMALL_AXES": {"target": ONE, "reconstruct": ["cg"]}},
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for module, values in SHORT.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


def test_works_take_turns_until_they_have_taken_enough(monkeypatch):
    ran: list[str] = []
    works = {name: partial(ran.append, name) for name in "ab"}
    monkeypatch.setattr(timing, "ENOUGH", 60)
    assert [len(times) for times in timing.in_turns(works).values()] == [2, 2] and "".join(ran) == "abab"
    monkeypatch.setattr(timing, "ENOUGH", 1e-9)
    assert [len(times) for times in timing.in_turns(works).values()] == [1, 1]


def test_an_exponent_is_found_within_its_interval():
    widths = (256, 512, 1024, 2048)
    assert appendix_g.exponent(widths, [3e-9 * width**2.5 for width in widths]) == pytest.approx((2.5, 2.5, 2.5))
    noisy = [3e-9 * width**2.5 * (1 + (-1) ** place / 10) for place, width in enumerate(widths)]
    slope, low, high = appendix_g.exponent(widths, noisy)
    assert low < 2.5 < high and low < slope < high and high - low > 0.1


def test_no_search_retains_more_than_the_best_half_or_less_than_no_order():
    found = compared(heavy(24, 32), SEARCHES)
    for search in found["searches"].values():
        assert 0 < found["unordered"] <= search["retained"] < 1
    assert found["searches"][OWN]["retained"] > found["unordered"]


def test_scores_lie_side_by_side(tmp_path):
    source = Source(pico.save("llama-mha", tmp_path / "pico"))
    down = [pico.linears(source.folder)[f"model.layers.{block}.mlp.down_proj"] for block in (0, 1)]
    wanted = torch.cat([relative_importance(weight) for weight in down], 1)[:, :80]
    torch.testing.assert_close(side_by_side(source, 80), wanted, rtol=0, atol=0)
    assert side_by_side(source, 1000).shape[1] == 3 * 64  # all there are


def test_ranges_that_halve_are_narrower_everywhere():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    same, halved = Sums(), Sums()
    same.add(weight, weight, 32)
    halved.add(weight, weight / 2, 32)
    assert (same.groups, same.narrower, same.ranges) == (16, 0, 16) and same.pruned_error == same.dense_error
    assert halved.narrower == 16 and halved.ranges == pytest.approx(8)
    assert halved.pruned_error < 0.5 * halved.dense_error


def test_bits_and_groups_of_a_dense_model(tmp_path):
    folder = pico.save("llama-gqa-tied", tmp_path / "pico", torch.bfloat16)
    assert few_bits.bits(folder) == 16 and few_bits.group_size(Source(folder)) == 32


def test_stages_are_means_over_seeds_and_add_up(setting):
    two = replace(setting, seeds=(0, 1))
    results = two.sweep({"ria": {"score": "ria"}}, base={"pattern": "2:4"})
    (mean,) = section5_4.stages(results).values()
    spent = [x.outcome.pruning.seconds for x in results.entries if x.outcome.pruning]
    assert len(spent) == 2 and mean["all"] == pytest.approx(sum(sum(x.values()) for x in spent) / 2)
    assert mean["order"] == pytest.approx(sum(x["order"] for x in spent) / 2) and mean["order"] > 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_gives_full_tables_and_is_filed(name, setting, tmp_path, monkeypatch):
    module = importlib.import_module(f"experiments.{name}")
    report = module.run(setting)
    assert report.tables and all(found.rows for _, found in report.tables)
    assert all(len(row) == len(found.columns) for _, found in report.tables for row in found.rows)
    assert "|" in report.write(tmp_path, name, "")
    monkeypatch.setattr(timing, "in_turns", None)  # what is filed is not measured again
    monkeypatch.setattr("secateur.bench", None)
    assert module.run(setting).tables == report.tables
