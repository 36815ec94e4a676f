"""``benchmarks/gpu.py`` without a GPU: every section runs, small, with stand-ins, and writes what it found."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.runtime.kernels import KERNELS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def script(cusparselt_stand_in, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    def milliseconds(groups):
        for products in groups:
            products[0]()
        return [1.0 + number for number, _ in enumerate(groups)]

    monkeypatch.setattr(module, "cuda_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return module


def rows_of(script, name, folder):
    script.run_section(name, dataclasses.replace(script.SMOKE, device="cpu"), folder / "gpu.jsonl", 100)
    rows = [json.loads(line) for line in (folder / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["section"] for row in rows} == {name}
    return rows


def test_products_and_their_algorithms_are_told_for_every_shape(script, tmp_path, capsys):
    rows = rows_of(script, "products", tmp_path)
    assert [tuple(row["shape"]) for row in rows] == list(script.SMOKE.shapes)
    assert all(taken == {"dense": 1.0, "2:4": 2.0} for row in rows for taken in row["times"].values())
    assert "256 × 512: 1: 0.50 (0), 8: 0.50 (0)" in capsys.readouterr().out


def test_the_time_of_the_processor_is_told(script, tmp_path):
    rows = rows_of(script, "cpu", tmp_path)
    assert [row["name"] for row in rows] == ["dense", "2:4", "dispatched"]
    assert all(each > 0 for row in rows for each in row["seconds"])


def test_products_of_8_bit_floats_are_right_and_told(script, tmp_path):
    rows = rows_of(script, "fp8", tmp_path)
    assert [(tuple(row["shape"]), row["tokens"]) for row in rows] == [(x, 64) for x in script.SMOKE.shapes]
    assert all((row["config"], row["milliseconds"]) == (0, [1.0, 2.0]) for row in rows)


@pytest.mark.skipif(not KERNELS, reason="needs a C++ compiler")
def test_packed_weights_and_a_model_are_told(script, tmp_path, capsys):
    rows = rows_of(script, "decode", tmp_path)
    assert len(rows) == 3 * 3 * 3 * 2  # shapes, patterns, types of values, numbers of tokens
    assert all(row["share"] == pytest.approx(9 / 16) for row in rows if row["values"] == "bfloat16")
    (tmp_path / "model").mkdir()
    *loads, row = rows_of(script, "model", tmp_path / "model")
    assert [load["loaded"] for load in loads] == ["searching", "from the cache"]
    assert row["packed_bytes"] == row["dense_bytes"] * 9 / 16  # nothing that was pruned is kept as a −0.0
    assert row["linears"] == 7 and len(row["structured"]) == len(row["end_to_end"]) == 4
    assert "a dense model of half the width" in capsys.readouterr().out


@pytest.mark.slow
def test_what_pruning_costs_is_told(script, tmp_path):
    rows = rows_of(script, "prune", tmp_path)
    assert [row["recipe"] for row in rows] == ["50%", "2:4"]
    assert all(row["shape"] == "7b" and row["ratio"] > 0 for row in rows)


def test_the_norm_is_told(script, tmp_path, monkeypatch):
    norm = pytest.importorskip("secateur.models.triton_norm")
    monkeypatch.setattr(
        norm,
        "rms_norm_gather",
        lambda hidden, weight, order, epsilon: nn.functional.rms_norm(hidden, weight.shape, weight, epsilon)[:, order],
    )
    rows = rows_of(script, "norm", tmp_path)
    assert [(row["width"], row["tokens"]) for row in rows] == [(w, t) for w in (256, 512) for t in (1, 1024, 8192)]


def test_a_section_that_fails_or_takes_too_long_costs_only_itself(script, tmp_path, monkeypatch, capsys):
    def hangs(log, scale):
        log(begun=True)
        while True:
            pass

    def fails(log, scale):
        raise RuntimeError("an illegal memory access was encountered")

    sections = {"hangs": (hangs, 0.2), "fails": (fails, 5), "ends": (lambda log, scale: log(scale=scale), 5)}
    monkeypatch.setattr(script, "SECTIONS", sections)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--out", str(tmp_path)])
    script.main()
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["section"] for row in rows] == ["hangs", "ends"]
    shown = capsys.readouterr().out
    assert "hangs has taken 0 s" in shown and "illegal memory access" in shown
