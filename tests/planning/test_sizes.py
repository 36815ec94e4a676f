import dataclasses
import itertools
import json

import msgspec
import pytest
import torch

import secateur
from secateur.checkpoint import outline
from secateur.checkpoint.sparse import pack, pack_int4, pack_int8, packed_bytes
from secateur.errors import InputError
from secateur.masks import select
from secateur.models.blocks import blocks_of, family_of
from secateur.patterns import NM, Unstructured, count_kept
from secateur.planning.plan import Plan
from secateur.planning.rates import read_rate
from secateur.recipe import Recipe
from tests import pico
from tests.planning.machines import slow


def plan(folder, **options):
    """Where memory delivers a gigabyte per second."""
    recipe = Recipe(length=16, **options)
    return secateur.plan(folder, recipe, rates=slow(), rate=lambda number: 1e9)


@pytest.mark.parametrize("vocabulary", [2**33, 2**40])
def test_a_vocabulary_that_no_file_bears_out_is_refused(tmp_path, vocabulary):
    path = pico.save("llama-mha", tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": vocabulary}))
    with pytest.raises(InputError, match="its sizes make no sense"):
        plan(tmp_path)


def bounds(folder, **pattern):
    return {bound.weights: bound for bound in plan(folder, **pattern).bounds}


def save_pruned(name, folder, pattern):
    """A model in bfloat16 whose linears obey ``pattern`` exactly, with no other zeros."""
    model = pico.build(name, dtype=torch.bfloat16)
    for block in blocks_of(model, family_of(model)):
        for linear in block.linears:
            weight = block.weight(linear)
            weight[:] = torch.where(select(torch.rand(weight.shape), pattern), weight.abs() + 1, 0)
    model.save_pretrained(folder)


@pytest.mark.parametrize("columns", [8, 40, 96, 200, 256])
@pytest.mark.parametrize(
    "pattern", [NM(2, 4), NM(1, 8), NM(8, 8), Unstructured(0.3), Unstructured(0.7, "row")], ids=str
)
def test_bytes_and_counts_are_those_of_the_format(columns, pattern):
    mask = select(torch.rand(7, columns), pattern)
    weight = torch.ones(7, columns).where(mask, 0)
    kept = count_kept(7, columns, pattern)
    assert kept == mask.sum()
    for dtype in (torch.float32, torch.bfloat16):
        assert packed_bytes(7, columns, kept, 8 * dtype.itemsize) == pack(weight.to(dtype)).nbytes
    assert packed_bytes(7, columns, kept, 8) == pack_int8(weight).nbytes
    assert packed_bytes(7, columns, kept, 4) == pack_int4(weight).nbytes


@pytest.mark.parametrize("options", [{"pattern": "2:4"}, {"sparsity": 0.3}], ids=str)
@pytest.mark.parametrize("name", pico.ALL)
def test_the_plan_is_what_pack_writes(name, options, tmp_path):
    save_pruned(name, tmp_path / "pruned", Recipe(**options).targets[0][1])
    planned = plan(tmp_path / "pruned", **options)
    totals = {bound.weights: bound.model_bytes for bound in planned.bounds}
    for values in ("bfloat16", "int8", "int4"):
        rounded = {"int8": values == "int8", "int4": values == "int4"}
        packing = secateur.pack(tmp_path / "pruned", tmp_path / values, **rounded)  # type: ignore[arg-type]
        assert sum(row.size.dense for row in planned.roles) == packing.dense_bytes
        assert sum(getattr(row.size, values) for row in planned.roles) == packing.packed_bytes
        assert (totals["dense"], totals[values]) == (packing.total_dense_bytes, packing.total_packed_bytes)
        assert plan(tmp_path / values, **options).roles == planned.roles


def test_the_config_is_enough(tmp_path):
    whole = pico.save("mixtral", tmp_path / "whole")
    (tmp_path / "config").mkdir()
    (whole / "config.json").rename(tmp_path / "config" / "config.json")
    alone = plan(tmp_path / "config")
    (tmp_path / "config" / "config.json").rename(whole / "config.json")
    assert dataclasses.replace(alone, model=str(whole)) == plan(whole)


def test_only_the_share_that_is_kept_counts(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    assert plan(dense).roles == plan(dense, pattern="2:4").roles == plan(dense, pattern="16:32").roles
    assert plan(dense).roles != plan(dense, pattern="1:4").roles


def test_what_packing_would_enlarge_stays_dense(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    for row in plan(dense, sparsity=0.05).roles:
        assert row.size.dense == row.size.bfloat16 > row.size.int8 > row.size.int4
    assert all(row.size.dense > row.size.bfloat16 for row in plan(dense, sparsity=0.07).roles)


def parameters(folder, without=""):
    """Bytes in bfloat16 of all parameters whose names do not hold a word."""
    return 2 * sum(
        x.numel() for name, x in outline(str(folder)).named_parameters() if not without or without not in name
    )


def test_a_token_reads_every_weight_but_the_tables(tmp_path):
    tied = pico.save("llama-gqa-tied", tmp_path / "tied")  # its table is its output head
    assert bounds(tied)["dense"].token_bytes == parameters(tied)
    for name, table in (("llama-mha", "embed_tokens"), ("opt", "embed_positions"), ("gpt-j", "wte")):
        folder = pico.save(name, tmp_path / name)
        assert bounds(folder)["dense"].token_bytes == parameters(folder, table)


def test_of_experts_a_token_reads_those_it_is_routed_to(tmp_path):
    folder = pico.save("mixtral", tmp_path / "m")  # to 2 of 4
    experts = parameters(folder) - parameters(folder, ".experts.")
    read = parameters(folder, "embed_tokens") - experts / 2
    assert bounds(folder)["dense"].token_bytes == read
    saved = {x.role: x.size.dense - x.size.bfloat16 for x in plan(folder).roles}
    of_experts = saved["Up/Gate of experts"] + saved["Down of experts"]
    assert read - bounds(folder)["bfloat16"].token_bytes == saved["Q/K/V/Out"] + of_experts / 2


def test_bounds_follow_from_bytes_and_rate(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    found = bounds(dense)
    assert found["dense"].by_bytes == 1 < found["bfloat16"].by_bytes < found["int8"].by_bytes < found["int4"].by_bytes
    for bound in found.values():
        assert bound.tokens_per_second == pytest.approx(1e9 / bound.token_bytes, abs=0.01)
    transposed = plan(pico.save("gpt2", tmp_path / "gpt2"))
    assert transposed.dense_linears == 12
    assert [bound.by_bytes for bound in transposed.bounds] == [1, 1, 1, 1]
    assert transposed.bounds[1].model_bytes < transposed.bounds[0].model_bytes


def test_a_rate_is_bytes_over_seconds(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("secateur.planning.rates.time.perf_counter", lambda: float(next(ticks)))
    assert read_rate(1 << 20) == 1 << 20
    assert read_rate(1) == 1 << 12
    monkeypatch.setattr("secateur.planning.rates.MOST_BYTES", 1 << 16)
    assert read_rate(1 << 40) == 1 << 16


def test_a_plan_survives_json(tmp_path):
    planned = plan(pico.save("qwen3-moe", tmp_path / "dense"))
    assert msgspec.convert(json.loads(json.dumps(dataclasses.asdict(planned))), Plan) == planned


def test_what_cannot_be_planned(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    with pytest.raises(InputError, match="not a multiple of 5"):
        plan(dense, pattern="2:5")
    with pytest.raises(InputError, match="not both"):
        plan(dense, pattern="2:4", sparsity=0.5)
    with pytest.raises(InputError, match="no file"):
        plan(tmp_path / "none.gguf")
    with pytest.raises(InputError, match=r"no config\.json"):
        plan(tmp_path)
