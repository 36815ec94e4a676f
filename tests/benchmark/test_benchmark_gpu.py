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
from secateur.benchmark.running import Benchmark
from secateur.benchmark.sides import SIDES, pairs_of, put
from secateur.benchmark.timing import stopwatch
from secateur.checkpoint import Source
from secateur.cli import main
from secateur.console import speed, terminal
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.recipe import Recipe
from secateur.runtime.acceleration import accelerate
from secateur.runtime.semi_structured import SemiStructuredLinear
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
    monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=clock))
    for module in ("runtime.loading", "benchmark.running"):
        monkeypatch.setattr(f"secateur.{module}.choose_device", lambda name: CPU if name == "cpu" else GPU)
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Stand-in {device.type}")
    return waited


def pairs(folder, device=GPU):
    model, skeleton = secateur.load(folder, torch.bfloat16, device), Source(folder).skeleton(torch.bfloat16)
    return model, *pairs_of(model, blocks_of(skeleton, family_of(skeleton)), device, int8=False)


def two_of_four(folder):
    """The linears of the blocks whose weights are 2:4, counted."""
    linears = {name: x for name, x in secateur.load(folder).named_modules() if isinstance(x, nn.Linear)}
    return {
        name
        for name, linear in linears.items()
        if "layers" in name and ((linear.weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all()
    }


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_the_pairs_on_a_gpu_are_the_linears_that_are_2of4(name, folders, kernels, waits):
    model, found, left = pairs(folders / name)
    expected = two_of_four(folders / "plain")
    assert len(expected) == 19 and {DENSE, UNSTRUCTURED}.isdisjoint(expected)
    assert {pair.name for pair in found} == expected and len(found) == len(expected)
    assert left == 1  # the unstructured one: the other was never pruned
    for pair in found:
        assert model.get_submodule(pair.name) is pair.sparse
        # Keys and values are too small for any backend, and stay dense.
        kind = nn.Linear if pair.name.endswith(("k_proj", "v_proj")) else SemiStructuredLinear
        assert type(pair.sparse) is kind and type(pair.dense) is nn.Linear


def test_experts_and_transposed_weights_run_dense_on_a_gpu(tmp_path, kernels, waits):
    for name, left in (("mixtral", 3 * 8), ("gpt2", 12)):
        dense = pico.save(name, tmp_path / name, torch.bfloat16)
        out = tmp_path / f"{name}-2of4"
        secateur.prune(dense, out, Recipe(score="magnitude", pattern="2:4", permute="none"))
        model, found, rest = pairs(out)
        assert {pair.name for pair in found} == two_of_four(out)
        assert rest == left and not any(".linears." in name for name, _ in model.named_modules())


@pytest.mark.parametrize("form", ["one", "several"])
def test_both_sides_compute_the_same(form, folders, kernels, waits, monkeypatch):
    if form == "one":  # the dense weight is not kept, and comes back transposed, as from some versions of torch
        dense_weight: Any = SemiStructuredLinear.__dict__["weight"].fget
        monkeypatch.setattr(SemiStructuredLinear, "weight", property(lambda self: dense_weight(self).T.contiguous().T))
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
        for side in SIDES:
            put(model, found, side)
            assert all(model.get_submodule(pair.name) is getattr(pair, side) for pair in found)
            logits[side] = model(pico.tokens(2, 24)).logits.float()
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


def test_bench_on_a_gpu_prints_tables_or_one_json_document(folders, kernels, waits, capsys, monkeypatch):
    monkeypatch.setattr(terminal.out, "width", 160)
    line = ["bench", folders / "plain", "--length", 20, "--tokens", 2, "--rounds", 2, "--quiet", "--batch", 1, 16]
    assert run(*line, "--json") == 0
    # Three kinds of linears in 2 + 2 workloads, and two times of each of 2 models: three rounds, two sides, two waits.
    assert len(waits) == (3 * 4 + 2 * 2) * 3 * 2 * 2 and all(isinstance(device, AsGPU) for device in waits)
    document = json.loads(capsys.readouterr().out)
    result = msgspec.convert(document, Benchmark, str_keys=True)
    slower = {"slower": [dataclasses.asdict(x) for x in result.slower]}
    assert json.loads(json.dumps(dataclasses.asdict(result) | slower)) == document
    assert (result.linears, result.left_dense, result.values) == (19, 1, "bfloat16")
    assert (result.kernels, result.machine.gpu, result.form) == ("cusparselt", "Stand-in cuda", "2:4")
    assert sum(choice.layers for choice in result.choices) == 19
    dense = {choice.shape: 2 * choice.layers * choice.shape[0] * choice.shape[1] for choice in result.choices}
    assert result.dense_bytes == sum(dense.values())
    assert result.packed_bytes == dense[8, 32] + 1.5625 * (result.dense_bytes - dense[8, 32])

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text stays text
    assert run(*line, "--plot", folders / "p.svg") == 0
    picture = (folders / "p.svg").read_text(encoding="utf-8")
    assert "2:4 bfloat16 weights" in picture and "some linears are dense on both sides" in picture
    shown = " ".join(capsys.readouterr().out.split())
    words = (
        "2:4 bfloat16",
        "Stand-in cuda with",
        "what multiplies how many tokens",
        "cusparselt 2.00×",
        "on a GPU only 2:4 runs sparse",
    )
    assert all(part in shown for part in words) and "packed" not in shown
    same = {
        note.partition(", as")[0]: set(note.rpartition(": ")[2].split(", "))
        for note in speed.benchmark_notes(result)
        if note.startswith("dense on both sides in")
    }
    small, others = {"8×32 + bias"}, {"32×32 + bias", "64×32 + bias", "32×64 + bias"}
    assert same == {
        "dense on both sides in decode, batch 1": small | others,
        "dense on both sides in decode, batch 16": small,
        "dense on both sides in prefill, 1 × 20": small,
        "dense on both sides in prefill, 16 × 20": small,
    }


def test_what_has_nothing_sparse_on_a_gpu_is_refused(folders, kernels, waits, monkeypatch):
    with pytest.raises(InputError, match="--int8 is for CPUs"):
        secateur.bench("missing-model", int8=True)
    with pytest.raises(InputError, match="only 2:4 runs sparse, and it has no such linear; prune it with"):
        secateur.bench(folders / "dense", **SMALL)
    recipe = Recipe(score="magnitude", sparsity=0.5)
    secateur.prune(folders / "dense", folders / "half", recipe)
    with pytest.raises(InputError, match="only 2:4 runs sparse, and its 21 pruned linears are not"):
        secateur.bench(folders / "half", **SMALL)
    slow = pretend(lambda tokens: 1.0, lambda tokens: 2.0)
    monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=slow))
    with pytest.raises(InputError, match=r"all of its 19 2:4 linears; cusparselt: \(8, 32\) is not .*; cutlass: "):
        secateur.bench(folders / "plain", **SMALL)


@needs_gpu
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_on_a_gpu_a_folder_is_measured(name, folders, monkeypatch):
    # So small a model is fastest dense: as if it were not.
    clock = pretend(lambda tokens: 1.0, lambda tokens: 0.5)
    monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=clock))
    result = secateur.bench(folders / name, **SMALL, device="cuda")
    assert result.machine.gpu == torch.cuda.get_device_name()
    assert (result.linears, result.left_dense) == (19, 1)
    assert all(row.dense.low > 0 and row.sparse.low > 0 for row in (*result.modules, *result.end_to_end))
