"""Every family the whole way: load, prune, fold, save, load plainly. Its findings are the table in docs/families.md."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.checkpoint.config import auto_class
from secateur.console.models import pruning_notes
from secateur.masks import obeys
from secateur.patterns import NM
from secateur.recipe import Recipe
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.mark.parametrize("name", pico.EVERY)
def test_a_family_goes_the_whole_way(name, tmp_path, families_table, request):
    (tmp_path / "text.txt").write_text(TEXT)
    recipe = Recipe(pattern="2:4", calibration=str(tmp_path / "text.txt"), samples=6, length=32)
    differences = []
    whole = request.config.getoption("--families-table") is not None  # else one precision is enough
    for dtype in (torch.float32, torch.bfloat16) if whole else (torch.bfloat16,):
        dense, out = tmp_path / f"dense-{dtype}", tmp_path / f"out-{dtype}"
        manifest = secateur.prune(pico.save(name, dense, dtype), out, recipe)
        verdict = secateur.verify(out, dense)
        assert verdict.passed, verdict.failures
        differences.append(verdict.logit_difference)
        linears = pico.linears(out)
        assert {layer["name"] for layer in manifest["layers"]} == linears.keys()
        dense_share = sum(manifest["left_dense"].values())
        assert manifest["decoder_sparsity"] == pytest.approx(manifest["sparsity"] * (1 - dense_share))
        assert dense_share == 0 or "stay dense" in pruning_notes(manifest)[-1]
        assert all(obeys(weight, NM(2, 4)) and weight.dtype == dtype for weight in linears.values())
        plain, ours = auto_class(pico.EVERY[name]()).from_pretrained(out), secateur.load(out)
        assert type(plain) is type(pico.build(name))
        with torch.no_grad():
            assert torch.equal(plain(**pico.inputs(name)).logits, ours(**pico.inputs(name)).logits)
    orders = load_file(out / "secateur-orders.safetensors") if (out / "secateur-orders.safetensors").is_file() else {}
    reordered = [space for space, order in orders.items() if not torch.equal(order, torch.arange(len(order)))]
    assert bool(reordered) == (name not in pico.WALKED | pico.RECURRENT)
    folded = [f"{d:.0e}" if reordered else "keeps its order" for d in differences]
    families_table.append([name, manifest["family"], len(linears), "2:4", *folded, "yes"])


@pytest.mark.parametrize("name", ["gpt2", "phi3", "gpt-neox", "mixtral"])
def test_reconstruction_reaches_fused_transposed_and_stacked_weights(name, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    plain = Recipe(pattern="2:4", calibration=str(tmp_path / "text.txt"), samples=16, length=32, guard=False)
    dense = pico.save(name, tmp_path / "dense")
    errors = {}
    for method in ("none", "admm"):
        manifest = secateur.prune(dense, tmp_path / method, replace(plain, reconstruct=method, one_shot=True))
        errors[method] = {layer["name"]: layer["relative_error"] for layer in manifest["layers"]}
        assert secateur.verify(tmp_path / method, dense).passed
    better = [errors["admm"][layer] < errors["none"][layer] for layer in errors["none"]]
    assert sum(better) > 0.9 * len(better)
