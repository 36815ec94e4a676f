"""Blocks that learn: what changes, what must not, and what it is worth on samples that nobody learnt from."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.calibrate.calibration import Calibration
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.recipe import Recipe
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(
        calibration=str(tmp_path / "text.txt"),
        samples=16,
        length=32,
        pattern="2:4",
        tune=True,
        epochs=3,
        learning_rate=5e-3,  # so that weights of bfloat16 move
    )


def weights(folder):
    return {name: w for file in sorted(folder.glob("model*.safetensors")) for name, w in load_file(file).items()}


CHANGES = {
    "llama-gqa-tied": {"norm"},
    "llama-biased": {"norm", "bias"},
    "gpt2": {"ln_", "bias"},
    "mixtral": {"norm"},
    "qwen3": {"norm"},
    "gemma3": {"norm"},
}


@pytest.mark.parametrize("model", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_weights_norms_and_biases_learn_and_nothing_else_changes(tmp_path, recipe, model, dtype):
    dense = pico.save(model, tmp_path / "dense", dtype)
    secateur.prune(dense, tmp_path / "pruned", replace(recipe, tune=False, guard=False, samples=14))
    manifest = secateur.prune(dense, tmp_path / "tuned", recipe)
    before, after = weights(tmp_path / "pruned"), weights(tmp_path / "tuned")
    linears = {name + ".weight" for name in pico.linears(tmp_path / "tuned")}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed - linears if ".experts." not in name} <= {*manifest["tuned"]}
    assert all(any(part in name for part in CHANGES[model]) for name in manifest["tuned"])
    assert {part for part in CHANGES[model] for name in changed if part in name} == CHANGES[model]
    assert not any(name in changed for name in before if "embed" in name or "lm_head" in name or "router" in name)
    first = [layer for layer in manifest["layers"] if re.match(r"(model.layers|transformer.h)\.0\.", layer["name"])]
    assert first  # the first block was pruned on the same hidden states: its masks are the same
    ours, theirs = pico.linears(tmp_path / "tuned"), pico.linears(tmp_path / "pruned")
    for layer in first:
        zeros = theirs[layer["name"]] == 0
        assert torch.equal(ours[layer["name"]] == 0, zeros)
    trials = [trial for trial in manifest["guard"] if trial["step"] == "tune"]
    assert len(trials) == 3 and any(trial["kept"] for trial in trials)
    assert all(trial["after"] < trial["before"] for trial in trials if trial["kept"])
    verdict = secateur.verify(tmp_path / "tuned", dense)
    assert verdict.passed, verdict.failures


@pytest.mark.parametrize("fold", ["exact", "gather", "none"])
def test_a_tuned_model_verifies_however_it_is_folded(tmp_path, recipe, fold):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", replace(recipe, fold=fold, reconstruct="cg"))
    assert sum(trial["kept"] for trial in manifest["guard"] if trial["step"] == "tune") > 0
    assert all(name.endswith("norm.weight") for name in manifest["tuned"])
    assert secateur.verify(tmp_path / "out", dense).passed


def test_tuning_that_does_not_help_leaves_what_was_there(tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", replace(recipe, learning_rate=50.0))
    plain = secateur.prune(dense, tmp_path / "plain", replace(recipe, tune=False, guard=False, samples=14))
    trials = [trial for trial in manifest["guard"] if trial["step"] == "tune"]
    assert [trial["kept"] for trial in trials] == [False] * 3 and manifest["tuned"] == []
    assert all(trial["after"] > trial["before"] for trial in trials)
    assert plain["sparsity"] == manifest["sparsity"]
    assert secateur.verify(tmp_path / "out", dense).passed


def test_skipped_linears_do_not_learn(tmp_path, recipe):
    dense = pico.save("llama-biased", tmp_path / "dense")
    skipping = replace(recipe, skip=("*.o_proj", "model.layers.1.*"), permute="none")
    manifest = secateur.prune(dense, tmp_path / "out", skipping)
    before, after = weights(dense), weights(tmp_path / "out")
    assert manifest["tuned"]
    for name, weight in before.items():
        if "o_proj" in name or "layers.1." in name:
            assert torch.equal(weight, after[name]), name
    assert secateur.verify(tmp_path / "out", dense).passed


def test_a_step_goes_down_the_slope_of_what_the_guard_measures():
    model = pico.build("llama-gqa-tied", 0)
    blocks = blocks_of(model, family_of(model))
    calibration = Calibration(model, blocks, [*pico.tokens(8, 24).split(2)], corrects=0)
    lesson = calibration.observe(0).lesson
    assert lesson is not None and lesson.batches == 4
    with torch.no_grad():
        for linear in blocks[0].linears:
            blocks[0].weight(linear)[:, ::2] = 0

    def loss(batch):
        output, wanted = lesson.stream.run(0, batch), lesson.wanted[batch]
        return ((output - wanted).norm(dim=-1) / wanted.norm(dim=-1)).square().mean().item()

    norm = blocks[0].module.get_parameter("input_layernorm.weight")
    (slope,) = lesson.slope(1, [norm])
    assert slope.shape == norm.shape and norm.grad is None
    before = loss(1)
    with torch.no_grad():
        norm[3] += 1e-3
    assert loss(1) - before == pytest.approx(1e-3 * slope[3].item(), rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_aim_lies_between_the_dense_block_and_the_dense_model(share):
    model, batches = pico.build("llama-gqa-tied", 0), [*pico.tokens(8, 24).split(2)]
    dense = [model(batch, output_hidden_states=True).hidden_states[2].detach() for batch in batches]
    blocks = blocks_of(model, family_of(model))
    calibration = Calibration(model, blocks, batches, held_out=1, corrects=share)
    calibration.observe(0)
    with torch.no_grad():
        blocks[0].weight(blocks[0].linears[0])[:, ::2] = 0
    calibration.advance(0)
    lesson = calibration.observe(1).lesson
    assert lesson is not None and lesson.guard is not None
    aims, stream = [*lesson.wanted, *lesson.guard._wanted], lesson.stream
    for number, aim in enumerate(aims):
        ours = stream.run(1, number)  # the block is still dense
        assert not torch.allclose(ours, dense[number], rtol=1e-3)
        torch.testing.assert_close(aim, (1 - share) * ours + share * dense[number], rtol=1e-4, atol=1e-4)


def test_a_module_in_memory_learns_and_its_parameters_keep_what_they_require():
    model = pico.build("llama-gqa-tied", 0)
    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in pico.tokens(18, 24).split(2)]
    batches[0]["attention_mask"][:, 20:] = 0
    frozen = model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    report = secateur.prune_module(model, batches, Recipe(pattern="2:4", tune=True, epochs=2))
    assert any(trial["kept"] for trial in report["guard"])
    assert all(p.requires_grad for p in model.parameters() if p is not frozen) and not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_one_shot_has_nothing_to_learn_from():
    with pytest.raises(InputError, match="--one-shot"):
        Recipe(tune=True, one_shot=True)
    with pytest.raises(InputError, match="--correct"):
        Recipe(tune=True, correct=1.5)
    with pytest.raises(InputError, match="--epochs"):
        Recipe(tune=True, epochs=0)
    with pytest.raises(InputError, match="--learning-rate"):
        Recipe(tune=True, learning_rate=float("nan"))
