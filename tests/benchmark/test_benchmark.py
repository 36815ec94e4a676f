import dataclasses
import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
import torch

import secateur
from secateur.benchmark.machine import CPU, this_machine
from secateur.benchmark.measuring import Benchmark
from secateur.benchmark.pairs import VARIANTS, install, pairs_of
from secateur.benchmark.plot import check_plot, draw
from secateur.benchmark.roles import role_of
from secateur.benchmark.timing import END_TO_END, OVERALL, Measurement, Spread, Workload, measurement, with_overall
from secateur.checkpoint import Source
from secateur.cli import main
from secateur.console import speed
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.runtime.kernels import KERNELS
from secateur.runtime.sparse_linear import SparseLinear
from tests import pico

needs_kernels = pytest.mark.skipif(not KERNELS, reason="no compiler built the kernels")
# Families whose linears are not transposed.
RUN_PACKED = [name for name in pico.ALL if name != "gpt2"]
SMALL: dict[str, Any] = {"batch": (1, 2), "length": (3, 20), "tokens": 2, "rounds": 2, "device": "cpu"}


def save_sparse(name, folder, dtype=torch.bfloat16):
    """A model half of whose weights are zero."""
    model = pico.build(name, dtype=dtype)
    for block in blocks_of(model, family_of(model)):
        for linear in block.linears:
            block.weight(linear)[:, ::2] = 0
    model.save_pretrained(folder)
    pico.tokenizer().save_pretrained(folder)
    return folder


def pairs(folder, bits=None):
    """The model, its pairs, and the number of linears that cannot run packed."""
    model, skeleton = secateur.load(folder, torch.bfloat16), Source(folder).skeleton(torch.bfloat16)
    return model, *pairs_of(model, blocks_of(skeleton, family_of(skeleton)), CPU, bits)


# ---------------------------------------------------------------- roles


@pytest.mark.parametrize("name", [*pico.KNOWN, "llama4", "granite-moe"])
def test_a_known_family_has_the_roles_of_the_paper(name):
    roles = {role_of(linear).removesuffix(" of experts") for linear in family_of(pico.build(name)).linears}
    assert roles == {"Q/K/V/Out", "Up/Gate", "Down"}


def test_roles_follow_from_spaces_not_from_names():
    roles = {linear.name: role_of(linear) for linear in family_of(pico.build("opt")).linears}
    assert (roles["self_attn.out_proj"], roles["fc1"], roles["fc2"]) == ("Q/K/V/Out", "Up/Gate", "Down")
    roles = {linear.name: role_of(linear) for linear in family_of(pico.build("mixtral")).linears}
    assert roles["mlp.experts.3.gate_up_proj"] == "Up/Gate of experts"
    assert roles["mlp.experts.3.down_proj"] == "Down of experts"
    roles = {linear.name: role_of(linear) for linear in family_of(pico.build("gpt-j")).linears}
    assert roles["attn.q_proj"] == "q_proj"  # nothing is known of a family that was walked


# ---------------------------------------------------------------- what is compared


@needs_kernels
@pytest.mark.parametrize("name", RUN_PACKED)
def test_plain_and_packed_folders_give_the_same_pairs(name, tmp_path):
    save_sparse(name, tmp_path / "plain")
    secateur.pack(tmp_path / "plain", tmp_path / "packed")
    model, plain, left = pairs(tmp_path / "plain")
    runs_packed = {key for key, module in model.named_modules() if isinstance(module, SparseLinear)}
    loaded = secateur.load(tmp_path / "packed")
    assert runs_packed == {key for key, module in loaded.named_modules() if isinstance(module, SparseLinear)}
    assert {pair.name for pair in plain} == runs_packed and len(plain) == len(runs_packed)
    built = pico.build(name)
    assert left == 0 and len(plain) == sum(len(block.linears) for block in blocks_of(built, family_of(built)))
    _, packed, left = pairs(tmp_path / "packed")
    assert left == 0
    for a, b in zip(plain, packed, strict=True):
        assert (a.name, a.role) == (b.name, b.role)
        assert torch.equal(a.dense.weight, b.dense.weight) and torch.equal(a.sparse.weight, b.sparse.weight)


@needs_kernels
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("name", ["llama-biased", "falcon-40b", "lfm2", "mixtral"])
def test_both_variants_compute_the_same(name, bits, tmp_path):
    model, found, _ = pairs(save_sparse(name, tmp_path / "plain"), bits)
    assert all(pair.sparse.bits == (bits or 16) for pair in found)
    logits = {}
    with torch.inference_mode():
        for pair in found:
            assert torch.equal(pair.dense.weight, pair.sparse.weight)
            for tokens in (1, 40):
                inputs = torch.randn(tokens, pair.dense.in_features).bfloat16()
                torch.testing.assert_close(pair.dense(inputs), pair.sparse(inputs), rtol=0.02, atol=0.05)
        for variant in VARIANTS:
            install(model, found, variant)
            types = [type(model.get_submodule(pair.name)) for pair in found]
            assert set(types) == {torch.nn.Linear if variant == "dense" else SparseLinear}
            logits[variant] = model(pico.tokens()).logits.float()
    difference = (logits["dense"] - logits["sparse"]).abs().max()
    assert difference < 0.05 * logits["dense"].abs().max()


@needs_kernels
def test_an_expert_among_dense_ones_leaves_all_of_them_dense(tmp_path):
    folder = save_sparse("mixtral", tmp_path / "plain")
    model = secateur.load(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2] = 1
    model.save_pretrained(folder)
    _, found, left = pairs(folder)
    assert left == 3 and len(found) == 3 * (4 + 8) - 4


@needs_kernels
def test_int8_rounds_what_was_packed_in_bfloat16(tmp_path):
    secateur.pack(save_sparse("llama-mha", tmp_path / "plain"), tmp_path / "packed")
    _, rounded, _ = pairs(tmp_path / "packed", bits=8)
    _, expected, _ = pairs(tmp_path / "plain", bits=8)
    assert all(torch.equal(a.dense.weight, b.dense.weight) for a, b in zip(rounded, expected, strict=True))
    secateur.pack(tmp_path / "plain", tmp_path / "int8", int8=True)
    _, stays, _ = pairs(tmp_path / "int8")
    assert all(pair.sparse.group for pair in stays)


# ---------------------------------------------------------------- times


def test_overall_is_the_sum_round_by_round():
    roles = {"a": [(4.0, 1.0), (2.0, 1.0), (9.0, 3.0)], "b": [(1.0, 1.0), (2.0, 3.0), (1.0, 2.0)]}
    *parts, total = with_overall(Workload("decode", 1), roles)
    assert [row.part for row in parts] == ["a", "b"] and total.part == OVERALL
    sums = [(5.0, 2.0), (4.0, 4.0), (10.0, 5.0)]
    assert total == measurement(OVERALL, Workload("decode", 1), sums)
    assert (total.dense.median, total.sparse.median, total.speedup.median) == (5, 4, 2)


def test_a_speedup_is_taken_within_rounds():
    row = measurement("a", Workload("decode", 1), [(1.0, 0.5), (10.0, 5.0), (100.0, 50.0)])
    assert row.speedup == Spread(2, 2, 2)
    assert row.dense.low < row.dense.median < row.dense.high


def made_up(*slower: str) -> Benchmark:
    """A benchmark in which only those roles are slower."""

    def row(kind: str, workload: Workload) -> Measurement:
        sparse = 2.0 if kind in slower else 0.5
        return measurement(kind, workload, [(1.0, sparse), (1.1, sparse), (1.2, sparse)])

    decode, prefill = Workload("decode", 1), Workload("prefill", 1, 512)
    return Benchmark(
        model="m",
        values="int8",
        linears=3,
        left_dense=0,
        dense_bytes=100,
        packed_bytes=50,
        kernels="AVX2",
        choices=[],
        graph=False,
        prefill_graph=False,
        machine=this_machine(),
        rounds=3,
        tokens=2,
        modules=[row(kind, work) for work in (decode, prefill) for kind in ("Up/Gate", "Down", OVERALL)],
        end_to_end=[row(END_TO_END, Workload("decode", 1, 512)), row(END_TO_END, prefill)],
        structured=[],
    )


def test_what_is_slower_is_named():
    result = made_up("Down")
    notes = speed.benchmark_notes(result)
    assert "slower than dense in decode, batch 1: Down 0.55×" in notes
    assert "slower than dense in prefill, 1 × 512: Down 0.55×" in notes
    assert not any("Up/Gate" in note or "nowhere" in note for note in notes)
    assert {row.part for row in result.slower} == {"Down"}
    assert any("nowhere slower" in note for note in speed.benchmark_notes(made_up()))


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_a_picture_is_drawn(suffix, tmp_path):
    file = tmp_path / f"picture{suffix}"
    draw(made_up("Down", END_TO_END), file)
    assert file.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r", b"%PDF-")
    with pytest.raises(InputError, match="exists"):
        draw(made_up(), file)


# ---------------------------------------------------------------- the whole way


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


@needs_kernels
def test_bench_prints_tables_or_one_json_document(tmp_path, capsys):
    folder = save_sparse("llama-gqa-tied", tmp_path / "sparse")
    line = ["bench", folder, "--batch", 1, 2, "--length", 3, 20, "--tokens", 2, "--rounds", 2, "--device", "cpu"]
    assert run(*line, "--quiet", "--json", "--int8", "--plot", tmp_path / "p.svg") == 0
    assert (tmp_path / "p.svg").stat().st_size
    document = json.loads(capsys.readouterr().out)
    result = msgspec.convert(document, Benchmark)
    assert dataclasses.asdict(result) | {"slower": [dataclasses.asdict(x) for x in result.slower]} == document
    assert (result.linears, result.left_dense, result.values) == (21, 0, "int8")
    sizes = [(1, 3), (1, 20), (2, 3), (2, 20)]
    works = [*[("decode", b, None) for b in (1, 2)], *[("prefill", *size) for size in sizes]]
    found = [(row.workload.phase, row.workload.batch, row.workload.length, row.part) for row in result.modules]
    assert found == [(*work, kind) for work in works for kind in ("Q/K/V/Out", "Up/Gate", "Down", OVERALL)]
    ends = {(row.workload.phase, row.workload.batch, row.workload.length) for row in result.end_to_end}
    assert ends == {(phase, *size) for phase in ("decode", "prefill") for size in sizes}
    assert run(*line, "--quiet") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("overall", "end to end", "tokens/s", "threads" if torch.get_num_threads() > 1 else "1 thread"):
        assert words in shown


@needs_kernels
def test_what_cannot_be_measured(tmp_path):
    sparse = save_sparse("llama-mha", tmp_path / "sparse")
    for options in ({"batch": (0,)}, {"length": ()}, {"length": (3, -1)}, {"tokens": 0}):
        with pytest.raises(InputError, match="from 1 on"):
            secateur.bench(sparse, **SMALL | options)
    with pytest.raises(InputError, match="at least 2"):
        secateur.bench(sparse, rounds=1, device="cpu")
    with pytest.raises(InputError, match="takes 128 tokens, and 120 \\+ 9 are more"):
        secateur.bench(sparse, length=(120,), tokens=9, device="cpu")
    with pytest.raises(InputError, match="nothing sparse to measure: prune it first"):
        secateur.bench(pico.save("llama-mha", tmp_path / "dense"), **SMALL)
    with pytest.raises(InputError, match="nothing sparse to measure: its 12 pruned linears run dense"):
        secateur.bench(save_sparse("gpt2", tmp_path / "gpt2"), **SMALL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "picture.txt"], "not the name of a picture"),
        (["--plot", "missing/picture.svg"], "no folder missing"),
        (["--plan", "--pattern", "2:4"], "secateur plan missing-model says this now"),
        (["--sparsity", "0.5"], "secateur plan missing-model says this now"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--device", "meta"], "nothing runs sparse on meta"),
    ],
)
def test_options_are_refused_before_the_model_is_read(words, message, capsys):
    assert run("bench", "missing-model", *words) == 2
    assert message in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install 'matplotlib>="):
        check_plot(tmp_path / "p.svg")
    assert run("bench", "missing-model", "--plot", tmp_path / "p.svg") == 2
    assert "pip install 'matplotlib>=" in capsys.readouterr().err


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, secateur.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
