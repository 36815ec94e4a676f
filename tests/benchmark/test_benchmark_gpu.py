"""``secateur bench`` on a GPU, with what stands in for one, and on a real one if there is one."""

import dataclasses
import json
from functools import partial
from typing import Any

import matplotlib
import msgspec
import pytest
import torch
from torch import nn

import secateur
from secateur.benchmark.machine import CPU
from secateur.benchmark.measuring import Benchmark
from secateur.benchmark.pairs import VARIANTS, install, pairs_of
from secateur.benchmark.timing import stopwatch
from secateur.checkpoint import Source
from secateur.cli import main
from secateur.console import speed
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.recipe import Recipe
from secateur.runtime.acceleration import accelerate
from secateur.runtime.dispatch import DispatchedLinear
from tests import pico
from tests.cuda import AsGPU, needs_gpu, pretend

GPU = AsGPU("cpu")
SMALL: dict[str, Any] = {"batch": (1,), "length": (20,), "tokens": 2, "rounds": 2}
DENSE, UNSTRUCTURED = "model.layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj"


@pytest.fixture
def folders(tmp_path):
    """A 2:4 model, plain and packed, with one linear that is dense and one that is unstructured."""
    dense = pico.save("llama-biased", tmp_path / "dense", torch.bfloat16)
    recipe = Recipe(score="magnitude", pattern="2:4", permute="none", skip=("*.1.self_attn.q_proj",))
    secateur.prune(dense, tmp_path / "pruned", recipe)
    model = secateur.load(tmp_path / "pruned")
    weight = model.get_submodule(UNSTRUCTURED).weight
    weight.data = torch.ones_like(weight)
    weight.data[:, ::8] = 0
    model.save_pretrained(tmp_path / "plain")
    pico.tokenizer().save_pretrained(tmp_path / "plain")
    secateur.pack(tmp_path / "plain", tmp_path / "packed")
    return tmp_path


@pytest.fixture
def waits(monkeypatch):
    """The CPU counts as a GPU, on which few tokens run faster dense; the devices that were waited for."""
    clock = pretend(lambda tokens: 1.0, lambda tokens: 2.0 if tokens < 16 else 0.5)
    monkeypatch.setattr("secateur.benchmark.rounds.capture", lambda work: work)
    monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=clock))
    for module in ("runtime.loading", "benchmark.measuring"):
        monkeypatch.setattr(f"secateur.{module}.choose_device", lambda name: CPU if name == "cpu" else GPU)
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Stand-in {device.type}")
    return waited


def pairs(folder, device=GPU):
    model, skeleton = secateur.load(folder, torch.bfloat16, device), Source(folder).skeleton(torch.bfloat16)
    return model, *pairs_of(model, blocks_of(skeleton, family_of(skeleton)), device, None)


def half_pruned(folder):
    """The linears of the blocks that are pruned."""
    linears = {name: x for name, x in secateur.load(folder).named_modules() if isinstance(x, nn.Linear)}
    return {
        name for name, linear in linears.items() if "layers" in name and (linear.weight == 0).float().mean() > 1 / 16
    }


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_the_pairs_on_a_gpu_are_the_linears_that_are_pruned(name, folders, cusparselt_stand_in, waits):
    model, found, left = pairs(folders / name)
    expected = half_pruned(folders / "plain")
    assert len(expected) == 20 and DENSE not in expected
    assert {pair.name for pair in found} == expected and len(found) == len(expected)
    assert left == 0
    for pair in found:
        assert model.get_submodule(pair.name) is pair.sparse
        # What is unstructured has no form that this clock shows as faster than dense.
        assert type(pair.sparse) is (nn.Linear if pair.name == UNSTRUCTURED else DispatchedLinear)
        assert type(pair.dense) is nn.Linear


def test_experts_and_transposed_weights_run_dense_on_a_gpu(tmp_path, cusparselt_stand_in, waits):
    for name, left in (("mixtral", 3 * 8), ("gpt2", 12)):
        dense = pico.save(name, tmp_path / name, torch.bfloat16)
        out = tmp_path / f"{name}-2of4"
        secateur.prune(dense, out, Recipe(score="magnitude", pattern="2:4", permute="none"))
        model, found, rest = pairs(out)
        assert {pair.name for pair in found} == half_pruned(out)
        assert rest == left and not any(".linears." in name for name, _ in model.named_modules())


@pytest.mark.parametrize("form", ["one", "several"])
def test_both_variants_compute_the_same(form, folders, cusparselt_stand_in, waits, monkeypatch):
    if form == "one":  # the dense weight is not kept, and comes back transposed, as from some versions of torch
        dense_weight: Any = DispatchedLinear.__dict__["weight"].fget
        monkeypatch.setattr(DispatchedLinear, "weight", property(lambda self: dense_weight(self).T.contiguous().T))
        fast = pretend(lambda tokens: 1.0, lambda tokens: 0.5)
        monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=fast))
    model, found, _ = pairs(folders / "plain")
    genuine, logits = secateur.load(folders / "plain"), {}
    with torch.inference_mode():
        for pair in found:
            weight = genuine.get_submodule(pair.name).weight
            assert torch.equal(pair.dense.weight, weight) and torch.equal(pair.sparse.weight, weight)
            assert pair.dense.weight.is_contiguous()
            for tokens in (1, 40):
                inputs = torch.randn(tokens, pair.dense.in_features).bfloat16()
                torch.testing.assert_close(pair.dense(inputs), pair.sparse(inputs), rtol=0.02, atol=0.05)
        for variant in VARIANTS:
            install(model, found, variant)
            assert all(model.get_submodule(pair.name) is getattr(pair, variant) for pair in found)
            logits[variant] = model(pico.tokens(2, 24)).logits.float()
        expected = genuine(pico.tokens(2, 24)).logits.float()
    assert torch.equal(logits["dense"], expected)
    assert (logits["sparse"] - expected).abs().max() < 0.02 * expected.abs().max()


def test_the_watch_waits_for_a_gpu_and_only_for_that(monkeypatch):
    now, queued = [0.0], [5.0]  # seconds; work from before is still running

    def synchronize(device):
        now[0] += queued[0]
        queued[0] = 0

    def launch():
        now[0] += 1
        queued[0] += 3

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert stopwatch(torch.device("cpu"))(launch) == 1
    assert stopwatch(torch.device("cuda"))(launch) == 4


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_bench_on_a_gpu_prints_tables_or_one_json_document(folders, cusparselt_stand_in, waits, capsys, monkeypatch):
    line = ["bench", folders / "plain", "--length", 20, "--tokens", 2, "--rounds", 2, "--quiet", "--batch", 1, 16]
    assert run(*line, "--json") == 0
    # Three roles of linears in 2 + 2 workloads, and two times of each of 2 batches: three rounds of two variants, two
    # waits each.
    assert len(waits) == (3 * 4 + 2 * 2) * 3 * 2 * 2 and all(isinstance(device, AsGPU) for device in waits)
    document = json.loads(capsys.readouterr().out)
    result = msgspec.convert(document, Benchmark, str_keys=True)
    slower = {"slower": [dataclasses.asdict(x) for x in result.slower]}
    assert json.loads(json.dumps(dataclasses.asdict(result) | slower)) == document
    assert (result.linears, result.left_dense, result.values) == (20, 0, "bfloat16")
    assert (result.kernels, result.machine.gpu, result.form) == ("CUDA", "Stand-in cuda", "2:4")
    assert sum(choice.layers for choice in result.choices) == 20
    dense = {x.pattern: 0 for x in result.choices}
    for x in result.choices:
        dense[x.pattern] += 2 * x.layers * x.shape[0] * x.shape[1]
    assert result.dense_bytes == sum(dense.values())
    assert result.packed_bytes == dense["unstructured"] + 1.5625 * dense["2:4"]

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text stays text
    assert run(*line, "--structured", "--plot", folders / "p.svg") == 0
    picture = (folders / "p.svg").read_text(encoding="utf-8")
    assert "2:4 bfloat16 weights" in picture and "some linears are dense in both" in picture
    shown = " ".join(capsys.readouterr().out.split())
    words = (
        "2:4 bfloat16",
        "Stand-in cuda with",
        "what multiplies how many tokens",
        "2:4 2.00×",
        "a dense model of half the width",
    )
    assert all(part in shown for part in words) and "packed" not in shown
    same = {
        note.partition(", as")[0]: set(note.rpartition(": ")[2].split(", "))
        for note in speed.benchmark_notes(result)
        if note.startswith("dense in both variants in")
    }
    unstructured, others = {"64×32 + bias"}, {"32×32 + bias", "8×32 + bias", "64×32 + bias", "32×64 + bias"}
    assert same == {
        "dense in both variants in decode, batch 1": others,
        "dense in both variants in decode, batch 16": others,
        "dense in both variants in prefill, 1 × 20": others,
        "dense in both variants in prefill, 16 × 20": unstructured,
    }


def test_what_has_nothing_sparse_on_a_gpu_is_refused(folders, cusparselt_stand_in, waits, monkeypatch):
    with pytest.raises(InputError, match="--int8 is for CPUs"):
        secateur.bench("missing-model", int8=True)
    with pytest.raises(InputError, match="nothing sparse to measure: prune it first"):
        secateur.bench(folders / "dense", **SMALL)
    slow = pretend(lambda tokens: 1.0, lambda tokens: 2.0)
    monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=slow))
    with pytest.raises(InputError, match="all of its 20 pruned linears; 2:4: the weight is not 2:4$"):
        secateur.bench(folders / "plain", **SMALL)


@needs_gpu
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_on_a_gpu_a_folder_is_measured(name, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # So small a model is fastest dense: as if it were not.
    clock = pretend(lambda tokens: 1.0, lambda tokens: 0.5)
    monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=clock))
    result = secateur.bench(folders / name, **SMALL, device="cuda")
    assert result.machine.gpu == torch.cuda.get_device_name()
    assert (result.linears, result.left_dense, result.graph) == (20, 0, True) and result.prefill_graph
    assert all(row.dense.low > 0 and row.sparse.low > 0 for row in (*result.modules, *result.end_to_end))
