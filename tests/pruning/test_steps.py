"""Steps that change mask and weights: when they begin, and when they are not taken."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.console.models import pruning_notes
from secateur.recipe import Recipe
from tests import pico

STEPS: list[dict[str, Any]] = [
    {"reconstruct": "cg"},
    {"reconstruct": "cg", "refine": True},
    {"refine": True},
    {"reconstruct": "admm"},
    {"reconstruct": "sparsegpt", "guard": False},
    {"score": "sparsegpt", "reconstruct": "sparsegpt"},
]


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(
        "the quick brown fox jumps over the lazy dog, and 0123456789 other things. " * 40
    )
    return Recipe(calibration=str(tmp_path / "text.txt"), samples=8, length=32, pattern="2:4")


def weights(folder):
    return {name: w for file in sorted(folder.glob("model*.safetensors")) for name, w in load_file(file).items()}


@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_no_step_begins_where_nothing_is_lost(tmp_path, recipe, steps):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense", torch.bfloat16)
    first = replace(recipe, score="magnitude", permute="none")
    secateur.prune(dense, tmp_path / "pruned", first)
    manifest = secateur.prune(tmp_path / "pruned", tmp_path / "again", replace(first, **{"score": "ria"} | steps))
    assert manifest["guard"] == []
    assert {layer["relative_error"] for layer in manifest["layers"]} == {0}
    before, after = weights(tmp_path / "pruned"), weights(tmp_path / "again")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("changes the error" in note for note in pruning_notes(manifest))


def test_a_report_of_steps_that_found_no_error_divides_by_nothing():
    trial = {"linears": ["a"], "step": "refine", "before": 0.0, "after": 0.0, "kept": True}
    manifest = {"layers": [], "left_dense": {}, "calibration": {"held_out": 1}, "recipe": {"score": "ria"}}
    assert "by nothing on average" in pruning_notes(manifest | {"guard": [trial]})[0]
    assert "from zero to 0.001 on average" in pruning_notes(manifest | {"guard": [trial | {"after": 1e-3}]})[0]
    trials = [trial | {"after": 1e-7}, trial | {"before": 0.2, "after": 0.1}]
    assert "by -50.0% on average" in pruning_notes(manifest | {"guard": trials})[0]


def near_the_end_of_float16(model):
    """Scale each linear so that its largest weight is just below 65,504: what makes up for others has no room."""
    for name, parameter in model.named_parameters():
        if "proj" in name:
            parameter.data *= 65_000 / parameter.abs().max()
    return model


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("steps", [s for s in STEPS if "reconstruct" in s], ids=str)
def test_weights_that_float16_cannot_hold_are_not_taken(tmp_path, recipe, steps, guard):
    model = near_the_end_of_float16(pico.build("llama-gqa-tied", dtype=torch.float32))
    model.half().save_pretrained(tmp_path / "dense")
    pico.tokenizer().save_pretrained(tmp_path / "dense")
    manifest = secateur.prune(tmp_path / "dense", tmp_path / "out", replace(recipe, **steps | {"guard": guard}))
    refused = [layer["name"] for layer in manifest["layers"] if layer["refused"]]
    assert refused
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())
    written = json.loads((tmp_path / "out" / "secateur.json").read_text())["layers"]
    assert [layer["name"] for layer in written if layer["refused"]] == refused
    (note,) = [note for note in pruning_notes(manifest) if "their dtype cannot hold" in note]
    assert refused[0] in note
    assert secateur.verify(tmp_path / "out", tmp_path / "dense").failures.keys() <= {"logits"}
