import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import secateur
from secateur import memory
from secateur.calibrate.calls import Batch
from secateur.calibrate.stream import Rooms, Stream, in_parts
from secateur.digests import file_digest
from secateur.errors import InputError
from secateur.memory import Room
from secateur.models.blocks import blocks_of, family_of
from secateur.models.spaces import reader_groups
from secateur.pruning import job
from secateur.recipe import Recipe
from tests import pico
from tests.counting import Counting
from tests.stopping import stopped

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40
CPU = torch.device("cpu")
RECIPES: dict[str, dict[str, Any]] = {
    "ria": {},
    "ordered": {"pattern": "2:4"},
    "best": {"pattern": "2:4", "reconstruct": "cg", "refine": True},
    "own orders": {"pattern": "2:4", "fold": "none", "score": "sparsegpt", "reconstruct": "cg"},
    "one shot": {"pattern": "2:4", "reconstruct": "admm", "one_shot": True},
    "sparsegpt": {"score": "sparsegpt", "reconstruct": "sparsegpt", "dtype": "bfloat16"},
}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(calibration=str(tmp_path / "text.txt"), samples=8, length=32)


def content(out):
    """The digest of every file, and the manifest without times and what memory there was."""
    manifest = json.loads((out / "secateur.json").read_text())
    del manifest["seconds"], manifest["recipe"]["memory"]
    return {path.name: file_digest(path) for path in out.iterdir() if path.name != "secateur.json"} | {"": manifest}


@pytest.mark.parametrize(
    ("model", "name", "room"),  # Gram matrices have 4 to 16 kB
    [
        *(("llama-gqa-tied", name, 10_000) for name in RECIPES),
        ("llama-gqa-tied", "one shot", 0),
        ("mixtral", "best", 0),
        ("mixtral", "own orders", 30_000),
    ],
)
def test_where_things_wait_changes_no_byte(model, name, room, tmp_path, recipe, monkeypatch):
    dense = pico.save(model, tmp_path / "dense", torch.bfloat16)
    recipe = replace(recipe, **RECIPES[name])
    secateur.prune(dense, tmp_path / "roomy", recipe)
    claimed, claim = [], memory._File.claim

    def noting(file, size):
        claimed.append(size)
        return claim(file, size)

    monkeypatch.setattr(memory._File, "claim", noting)
    monkeypatch.setattr(job, "places", lambda *_: ({CPU: room}, {CPU: room}))
    secateur.prune(dense, tmp_path / "narrow", recipe)
    assert claimed
    assert content(tmp_path / "narrow") == content(tmp_path / "roomy")


@pytest.mark.parametrize("name", ["ordered", "own orders", "one shot"])
@pytest.mark.parametrize("model", ["llama-gqa-tied", "mixtral"])
def test_progress_is_all_of_it_in_the_end(model, name, tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(job, "places", lambda *_: ({CPU: 0}, {CPU: 10_000}))
    progress, dense = Counting(), pico.save(model, tmp_path / "dense")
    secateur.prune(dense, tmp_path / "out", replace(recipe, **RECIPES[name]), progress=progress)
    assert progress.done == progress.total > 0


@pytest.mark.parametrize("keep_output", [True, False])
@pytest.mark.parametrize("room", [0, 10_000, 1 << 20])
@pytest.mark.parametrize("name", ["llama-gqa-tied", "qwen3-moe"])
def test_matrices_that_are_gathered_in_parts_are_those_of_one_pass(name, room, keep_output, tmp_path):
    batches: list[Batch] = [pico.tokens(2, 24), pico.tokens(2, 24, seed=2)]
    seen, hidden, passes = [], [], []
    with Room({CPU: room}, tmp_path) as narrow:
        for rooms in (Rooms(), Rooms(statistics=narrow)):
            model, progress = pico.build(name), Counting()
            model.config._experts_implementation = "eager"
            blocks = blocks_of(model, family_of(model))
            stream = Stream(model, blocks, batches, progress, rooms=rooms)
            seen.append(stream.observe(0, 3, keep_output, gram=True))
            hidden.append(list(stream.hidden))
            passes.append(progress.done / (2 * 48))
        one, several = seen
        assert one.keys() == several.keys()
        for key, stats in one.items():
            gram, gathered = stats.gram, several[key].gram
            assert gram is not None
            assert gathered is not None
            assert torch.equal(gram, gathered)
            assert torch.equal(stats.square_sum, several[key].square_sum)
            assert torch.equal(stats.sample, several[key].sample)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*hidden, strict=True))
        del seen, several
    parts, groups = in_parts(blocks[0], room), reader_groups(blocks[0].linears)
    assert passes == [1, len(parts)]
    assert [group for part in parts for group in part] == groups
    assert {0: len(groups), 1 << 20: 1}.get(room, len(parts)) == len(parts)
    for part in parts:
        assert len(part) == 1 or sum(4 * blocks[0].weight(group[0]).shape[1] ** 2 for group in part) <= room


def test_a_step_is_tried_for_all_experts_of_a_stack_at_once(tmp_path, recipe):
    dense = pico.save("mixtral", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", replace(recipe, pattern="2:4", reconstruct="cg"))
    kinds = ["self_attn.q_proj", "self_attn.o_proj", "mlp.experts.0.gate_up_proj", "mlp.experts.0.down_proj"]
    assert [trial["linears"][0] for trial in manifest["guard"]] == [
        f"model.layers.{block}.{kind}" for block in range(3) for kind in kinds
    ]
    assert [len(trial["linears"]) for trial in manifest["guard"]] == [3, 1, 4, 4] * 3


def test_too_little_memory_is_said_before_any_work(tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    with pytest.raises(InputError, match=r"for blocks.* --memory 1MB leaves 0 B beside the .* that") as error:
        secateur.prune(dense, tmp_path / "out", replace(recipe, memory="1MB"))
    assert list(tmp_path.glob("*out*")) == [], "nothing is left behind"
    enough = str(error.value).split("give --memory ")[1].split()[0]
    secateur.prune(dense, tmp_path / "out", replace(recipe, memory=enough))


def test_a_run_may_go_on_with_other_memory(tmp_path, recipe):
    dense, out = pico.save("llama-gqa-tied", tmp_path / "dense"), tmp_path / "out"
    secateur.prune(dense, tmp_path / "whole", recipe)
    assert stopped(lambda: secateur.prune(dense, out, replace(recipe, memory="20GB")), 30)
    secateur.prune(dense, out, replace(recipe, memory="30GiB"), resume=True)
    assert content(out) == content(tmp_path / "whole")


def test_memory_in_a_recipe_may_be_a_bare_number():
    assert Recipe.from_dict({"memory": 8_000_000_000}).memory == "8000000000"
    with pytest.raises(InputError, match="'much' is no size"):
        Recipe(memory="much")
