"""The whole pruned model against the whole dense one, on the samples that the guard judges by."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur import data
from secateur.console.models import pruning_notes
from secateur.recipe import Recipe
from tests import pico
from tests.counting import Counting
from tests.stopping import stopped

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(calibration=str(tmp_path / "text.txt"), samples=16, length=32, dtype="float32", reconstruct="cg")


def direct(dense, pruned, recipe):
    """KL and agreement by plain forward passes of both models."""
    text = data.load_text(recipe.calibration, "calibration", recipe.samples * recipe.length)
    samples = data.calibration_samples(text, pico.tokenizer(), recipe.samples, recipe.length, recipe.seed)
    with torch.no_grad():
        p, q = (
            AutoModelForCausalLM.from_pretrained(folder)(samples[-recipe.held_out :]).logits.double().log_softmax(-1)
            for folder in (dense, pruned)
        )
    return (p.exp() * (p - q)).sum(-1).mean().item(), (p.argmax(-1) == q.argmax(-1)).double().mean().item()


@pytest.mark.parametrize("options", [{}, {"one_shot": True}, {"pattern": "2:4"}, {"pattern": "2:4", "fold": "none"}])
@pytest.mark.parametrize("name", ["llama-gqa-tied", "gemma2", "gpt2", "bloom"])
def test_it_is_what_both_models_say(name, options, tmp_path, recipe):
    dense, recipe = pico.save(name, tmp_path / "dense"), replace(recipe, **options)
    progress = Counting()
    manifest = secateur.prune(dense, tmp_path / "pruned", recipe, progress=progress)
    found = manifest["held_out"]
    kl, top1 = direct(dense, tmp_path / "pruned", recipe)
    assert found["tokens"] == 2 * 32
    assert found["kl"] == pytest.approx(kl, rel=1e-3) and kl > 0
    assert found["top1"] == pytest.approx(top1, abs=1 / 64)
    assert progress.done == progress.total
    assert any(f"{found['top1']:.1%}" in note for note in pruning_notes(manifest))
    assert f"{found['kl']:.3g} nats" in (tmp_path / "pruned" / "README.md").read_text()


def test_without_a_guard_there_is_none(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    unguarded = replace(recipe, guard=False), replace(recipe, reconstruct="none")
    for number, each in enumerate(unguarded):
        manifest = secateur.prune(dense, tmp_path / str(number), each)
        assert manifest["held_out"] is None
        assert "Against the dense model" not in (tmp_path / str(number) / "README.md").read_text()


@pytest.mark.parametrize("one_shot", [False, True])
@pytest.mark.parametrize("stop", [33, 60])  # after the first block, and after the last
def test_a_resumed_run_says_the_same(stop, one_shot, tmp_path, recipe, monkeypatch):
    dense, recipe = pico.save("llama-gqa-tied", tmp_path / "dense"), replace(recipe, pattern="2:4", one_shot=one_shot)
    whole = secateur.prune(dense, tmp_path / "whole", recipe)
    assert stopped(lambda: secateur.prune(dense, tmp_path / "out", recipe), stop)
    names = json.loads((tmp_path / ".out.partial" / "journal.json").read_text())["files"]
    assert sum(name.endswith(".results") for name in names) == (1 if stop == 33 else 3)
    progress = Counting()
    resumed = secateur.prune(dense, tmp_path / "out", recipe, resume=True, progress=progress)
    assert resumed["held_out"] == whole["held_out"]
    assert progress.done == progress.total
