"""AWQ the whole way: channels are scaled, then weights rounded, and the folder is still that model."""

from dataclasses import replace

import pytest
import torch

import secateur
from secateur.quantizing import quantize
from secateur.recipe import QuantizationRecipe, Recipe
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return QuantizationRecipe(
        method="awq", bits=8, group_size=16, calibration=str(tmp_path / "text.txt"), samples=6, length=32
    )


def uneven(name, folder):
    """A model whose norms make loud channels and quiet ones."""
    model, draw = pico.build(name), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data *= 2 ** torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    pico.tokenizer().save_pretrained(folder)
    return folder


def logits(folder):
    with torch.no_grad():
        return secateur.load(folder)(pico.tokens()).logits


def close(before, after):
    """Whether what differs may be rounding to 8 bits."""
    return (after - before).norm() < 0.1 * before.norm()


@pytest.mark.parametrize("name", ["llama-gqa-tied", "llama-biased", "gemma2", "phi3", "opt", "gpt-neox", "gpt-j"])
def test_a_scaled_model_is_the_same_but_for_rounding(name, tmp_path, recipe):
    dense = uneven(name, tmp_path / "dense")
    manifest = quantize(dense, tmp_path / "out", recipe)
    assert close(logits(dense), logits(tmp_path / "out"))
    assert secateur.verify(tmp_path / "out", dense).passed
    old, new = (secateur.checkpoint.Source(folder) for folder in (dense, tmp_path / "out"))
    rest = [key for key in old.names() if key not in new.quantized]
    changed = [key for key in rest if not torch.equal(old.read([key])[key], new.read([key])[key])]
    assert bool(changed) == (name != "gpt-j")
    assert all(layer["relative_error"] < 0.02 for layer in manifest["quantization"]["layers"])


def test_zeros_of_a_pruned_model_stay_and_skipped_layers_are_not_touched(tmp_path, recipe):
    dense, pruned, out = uneven("llama-gqa-tied", tmp_path / "dense"), tmp_path / "pruned", tmp_path / "out"
    secateur.prune(dense, pruned, Recipe(score="magnitude", sparsity=0.5))
    quantize(pruned, out, replace(recipe, skip=("*.v_proj",)))
    verdict = secateur.verify(out, pruned)
    assert verdict.passed, verdict.failures
    before, after = pico.linears(pruned), pico.linears(out)
    assert all((after[name][weight == 0] == 0).all() for name, weight in before.items())
    assert all(torch.equal(after[name], before[name]) for name in before if name.endswith("v_proj"))
    assert not close(before["model.layers.0.mlp.up_proj"], after["model.layers.0.mlp.up_proj"])  # scaled
    assert close(before["model.layers.0.self_attn.q_proj"], after["model.layers.0.self_attn.q_proj"])
    assert close(logits(pruned), logits(out))
