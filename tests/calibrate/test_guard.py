import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.calibrate.guard import Guard
from secateur.calibrate.stream import Stream
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.pruning.linear import LinearPruning
from secateur.recipe import Recipe
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(score="magnitude", calibration=str(tmp_path / "text.txt"), samples=8, length=32, pattern="2:4")


def weights(folder):
    return {k: v for f in sorted(folder.glob("model*.safetensors")) for k, v in load_file(f).items()}


def test_the_error_is_that_of_the_held_out_tokens():
    model = pico.build("llama-mha")
    blocks = blocks_of(model, family_of(model))
    batches = [pico.tokens(2, 24), pico.tokens(2, 24, seed=2)]
    stream = Stream(model, blocks, batches, held_out=1)
    guard = Guard(stream, 0)
    assert guard.error() == 0
    inputs = model.model.embed_tokens(batches[1])
    call = {"position_embeddings": model.model.rotary_emb(inputs, torch.arange(24)[None])}
    with torch.no_grad():
        wanted = blocks[0].module(inputs, **call)
        blocks[0].weight(blocks[0].linears[-1]).mul_(0.5)
        now = blocks[0].module(inputs, **call)
    share = (now - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert guard.error() == pytest.approx(share.square().mean().sqrt().item(), rel=1e-5)


def test_a_harmful_step_is_taken_back(tmp_path, recipe, monkeypatch):
    def spoil(pruning, _):
        pruning.accept(pruning.mask, -3 * pruning.changed)

    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    secateur.prune(dense, tmp_path / "plain", recipe)
    monkeypatch.setattr(LinearPruning, "step", spoil)
    manifest = secateur.prune(dense, tmp_path / "guarded", replace(recipe, reconstruct="cg", refine=True))
    assert len(manifest["guard"]) == 3 * 4 * 2
    for trial in manifest["guard"]:
        assert not trial["kept"]
        assert trial["after"] > trial["before"] > 0
    plain, guarded = weights(tmp_path / "plain"), weights(tmp_path / "guarded")
    assert all(torch.equal(plain[name], guarded[name]) for name in plain)
    secateur.prune(dense, tmp_path / "free", replace(recipe, reconstruct="cg", guard=False))
    assert any(not torch.equal(plain[name], w) for name, w in weights(tmp_path / "free").items())


@pytest.mark.parametrize("fold", ["exact", "gather", "none"])
@pytest.mark.parametrize("one_shot", [False, True])
def test_what_is_kept_helped_on_what_was_held_out(fold, one_shot, tmp_path, recipe):
    dense = pico.save("qwen3", tmp_path / "dense", torch.bfloat16)
    steps = replace(recipe, score="ria", reconstruct="cg", refine=True, fold=fold, one_shot=one_shot)
    manifest = secateur.prune(dense, tmp_path / "out", steps)
    assert manifest["calibration"]["held_out"] == 1
    assert {layer["tokens"] for layer in manifest["layers"]} == {7 * 32}
    assert [trial["step"] for trial in manifest["guard"]] == ["reconstruct", "refine"] * 12
    for trial in manifest["guard"]:
        assert trial["kept"] == (trial["after"] <= trial["before"])
    assert any(trial["kept"] for trial in manifest["guard"])
    assert json.loads((tmp_path / "out" / "secateur.json").read_text())["guard"] == manifest["guard"]
    verdict = secateur.verify(tmp_path / "out", dense)
    assert set(verdict.failures) <= ({"pattern"} if fold == "none" else set())


def test_without_steps_every_sample_counts(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", replace(recipe, score="wanda"))
    assert manifest["calibration"]["held_out"] == 0
    assert manifest["guard"] == []
    assert {layer["tokens"] for layer in manifest["layers"]} == {8 * 32}


def test_one_sample_cannot_be_parted():
    with pytest.raises(InputError, match="--no-guard"):
        Recipe(reconstruct="cg", samples=1)
    assert Recipe(reconstruct="cg", samples=1, guard=False).held_out == 0
