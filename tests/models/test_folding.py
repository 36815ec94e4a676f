"""Folding keeps the logits: the folded model is the masked dense model in another order of channels."""

import json
import subprocess
import sys
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import secateur
from secateur.masks import obeys
from secateur.models.blocks import blocks_of, family_of
from secateur.models.fold import by_head, fold_outer, join_heads, select_block, spread_to_queries
from secateur.patterns import NM
from secateur.permute.orders import inverse
from secateur.recipe import Recipe
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(calibration=str(tmp_path / "text.txt"), samples=6, length=32, pattern="2:4")


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name in (*pico.KNOWN, *pico.SEEING, *pico.EXPERTS_KNOWN) for rule in ("model", "heads", "block")]
    + [(name, "block") for name in pico.EXPERTS if name not in pico.EXPERTS_KNOWN],
)
def test_random_orders_keep_the_logits(name, rule):
    model, batch = pico.build(name), pico.inputs(name)
    family = family_of(model)
    with torch.no_grad():
        before = model(**batch).logits
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    keys, width = family.heads[1:]
    spaces = [space for space, allowed in family.rules.items() if allowed == rule]
    for space in spaces:
        residual = torch.randperm(32)
        if rule == "model":
            fold_outer(tensors, family, space, residual)
            if model.config.tie_word_embeddings:
                head = model.get_output_embeddings().weight
                tied = [key for key, value in model.state_dict(keep_vars=True).items() if value is head]
                tensors |= dict.fromkeys(tied, next(tensors[key] for key in tied if key != "lm_head.weight"))
        for block in blocks_of(model, family):
            readers = [linear for linear in block.linears if linear.reads == space]
            written = read = residual
            if rule == "heads":
                written = join_heads(torch.stack([torch.randperm(width) for _ in range(keys)]))
                read = spread_to_queries(written, family.heads)
            elif rule == "block" and readers:
                written = read = torch.randperm(block.weight(readers[0]).shape[1])
            select_block(tensors, block.prefix, family, {space: written}, {space: read})
    moved = any(not torch.equal(tensors[key], value) for key, value in model.state_dict().items())
    assert moved == bool(spaces)
    model.load_state_dict(tensors)
    recurs = name == "qwen3.5"  # which makes more of rounding
    with torch.no_grad():
        assert difference(model(**batch).logits, before) < (5e-4 if recurs else 1e-5)


def test_heads_are_told_apart():
    scores = torch.arange(12.0)[None]  # 3 query heads of 4 channels, one key-value head
    assert by_head(scores, (3, 1, 4)).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]]
    assert by_head(torch.arange(16.0)[None], (4, 2, 4))[1].tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    written = join_heads(torch.tensor([[1, 0], [0, 1]]))
    assert written.tolist() == [1, 0, 2, 3]
    assert spread_to_queries(written, (4, 2, 2)).tolist() == [1, 0, 3, 2, 4, 5, 6, 7]
    order = torch.randperm(9)
    assert torch.equal(order[inverse(order)], torch.arange(9))


@pytest.mark.parametrize("name", pico.KNOWN)
@pytest.mark.parametrize("score", ["ria", "ri"])
def test_the_gathering_model_is_the_masked_dense_model(name, score, tmp_path, recipe):
    dense = pico.save(name, tmp_path / "dense")
    recipe = replace(recipe, fold="gather", score=score)
    if name in pico.UNGATHERED:
        with pytest.raises(secateur.InputError, match="needs a norm before every reader"):
            secateur.prune(dense, tmp_path / "out", recipe)
        return
    secateur.prune(dense, tmp_path / "out", recipe)
    verdict = secateur.verify(tmp_path / "out", dense)
    assert verdict.passed, verdict
    assert verdict.logit_difference is not None
    assert verdict.logit_difference < 1e-5
    orders = load_file(tmp_path / "out" / "secateur-orders.safetensors")
    assert any(not torch.equal(order, torch.arange(len(order))) for order in orders.values())
    assert all(obeys(weight, NM(2, 4)) for weight in pico.linears(tmp_path / "out").values())


def test_plain_transformers_load_exact_and_refuse_gather(tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    batch = pico.tokens()
    for fold in ("exact", "gather"):
        secateur.prune(dense, tmp_path / fold, replace(recipe, fold=fold))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "exact")
    assert torch.equal(plain(batch).logits, secateur.load(tmp_path / "exact")(batch).logits)
    with pytest.raises(ValueError, match="secateur-gather"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "gather")
    with pytest.raises(secateur.InputError, match="written with --fold gather"):
        secateur.prune(tmp_path / "gather", tmp_path / "again", recipe)
    assert secateur.evaluate(tmp_path / "gather", recipe.calibration, window=32, limit=2)[0].perplexity > 1


def test_none_keeps_every_weight_in_its_place(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", replace(recipe, fold="none"))
    before, after = (
        {k: v for f in sorted(folder.glob("model*.safetensors")) for k, v in load_file(f).items()}
        for folder in (dense, tmp_path / "out")
    )
    orders = load_file(tmp_path / "out" / "secateur-orders.safetensors")
    for layer in manifest["layers"]:
        weight = after[f"{layer['name']}.weight"]
        assert torch.equal(weight, before[f"{layer['name']}.weight"] * (weight != 0))
        assert obeys(weight[:, orders[layer["name"]]], NM(2, 4))
    verdict = secateur.verify(tmp_path / "out")
    assert verdict.passed and "2:4" in verdict.unchecked[0]  # not N:M as stored


def test_every_order_retains_more_than_none(tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    kept = {}
    for fold in ("exact", "gather", "none"):
        setting = replace(recipe, fold=fold, one_shot=True, compare_folds=fold != "none")
        manifest = secateur.prune(dense, tmp_path / fold, setting)
        kept[fold] = sum(layer["retained"] for layer in manifest["layers"])
        for layer in manifest["layers"]:
            assert not layer["folds"] or layer["retained"] < layer["folds"]["unstructured"] < 1
        if fold == "exact":
            (layer,) = [x for x in manifest["layers"] if x["name"] == "model.layers.1.mlp.up_proj"]
            assert set(layer["folds"]) == {"exact", "gather", "none", "unordered", "unstructured"}
            unordered = {x["name"]: x["folds"]["unordered"] for x in manifest["layers"]}
    manifest = secateur.prune(dense, tmp_path / "plain", replace(recipe, permute="none", one_shot=True))
    assert sum(layer["retained"] for layer in manifest["layers"]) < kept["exact"] < kept["none"]
    assert {x["name"]: pytest.approx(x["retained"]) for x in manifest["layers"]} == unordered


def test_verify_sees_a_changed_reconstructed_weight(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    secateur.prune(dense, tmp_path / "out", replace(recipe, reconstruct="cg"))
    assert secateur.verify(tmp_path / "out", dense).passed
    path = tmp_path / "out" / "model-00003-of-00004.safetensors"
    state = load_file(path)
    state["model.layers.1.mlp.down_proj.weight"] *= -3
    save_file(state, path, metadata={"format": "pt"})
    assert set(secateur.verify(tmp_path / "out", dense).failures) == {"bytes"}
    (tmp_path / "out" / "secateur.json").write_text("{")
    with pytest.raises(secateur.InputError, match="damaged"):
        secateur.verify(tmp_path / "out")


@pytest.mark.parametrize("reconstruct", ["sparsegpt", "cg", "admm"])
@pytest.mark.parametrize("fold", ["exact", "gather", "none"])
@pytest.mark.parametrize("score", ["ria", "wanda", "sparsegpt"])
def test_reconstruction_goes_with_every_fold(reconstruct, fold, score, tmp_path, recipe):
    dense = pico.save("llama-biased", tmp_path / "dense")
    setting = replace(recipe, fold=fold, score=score, one_shot=True)
    errors = {}
    for method in ("none", reconstruct):
        manifest = secateur.prune(dense, tmp_path / method, replace(setting, reconstruct=method), force=True)
        errors[method] = fmean(layer["relative_error"] for layer in manifest["layers"])
        verdict = secateur.verify(tmp_path / method, dense)
        assert verdict.passed and any("in the order that was searched" in x for x in verdict.unchecked) == (
            fold == "none"
        )
    assert errors[reconstruct] < errors["none"]


def test_orders_wait_for_models_whose_spaces_are_known(tmp_path, recipe):
    dense = pico.save("gpt-j", tmp_path / "dense")
    assert secateur.prune(dense, tmp_path / "out", recipe)["sparsity"] == 0.5
    assert secateur.verify(tmp_path / "out", dense).passed
    with pytest.raises(secateur.InputError, match="whose writers are known"):
        secateur.prune(dense, tmp_path / "gather", replace(recipe, fold="gather"))


def test_a_group_wider_than_a_head_leaves_the_value_space_alone(tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")  # heads of 8 channels
    secateur.prune(dense, tmp_path / "out", replace(recipe, pattern="8:16"))
    orders = load_file(tmp_path / "out" / "secateur-orders.safetensors")
    assert not any(name.endswith("value") for name in orders)
    assert secateur.verify(tmp_path / "out", dense).passed


def test_the_exact_output_needs_no_secateur(tmp_path, recipe):
    secateur.prune(pico.save("qwen3", tmp_path / "dense"), tmp_path / "out", recipe)
    code = f"""
import sys
sys.modules["secateur"] = None  # as if it were not installed
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r})
for name, module in model.model.layers.named_modules():
    if name.endswith("_proj"):
        assert ((module.weight != 0).reshape(module.out_features, -1, 4).sum(-1) <= 2).all()
print("fine")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "fine"


def test_verify_sees_a_changed_weight(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    secateur.prune(dense, tmp_path / "out", recipe)
    path = tmp_path / "out" / "model-00003-of-00004.safetensors"
    state = load_file(path)
    weight = state["model.layers.1.mlp.down_proj.weight"]
    place = tuple((weight == 0).nonzero()[0])
    for value, failed in ((1.0, {"pattern", "zeros", "bytes"}), (0.0, set())):
        weight[place] = value
        save_file(state, path, metadata={"format": "pt"})
        assert set(secateur.verify(tmp_path / "out").failures) == failed
    other = tuple((weight != 0).nonzero()[0])
    weight[other] += 1
    save_file(state, path, metadata={"format": "pt"})
    assert set(secateur.verify(tmp_path / "out").failures) == {"bytes"}
    assert "weights" in secateur.verify(tmp_path / "out", dense).failures


def test_verify_on_the_command_line(tmp_path, recipe, capsys):
    from secateur.cli import main

    dense, other = (pico.save("llama-mha", tmp_path / str(seed), seed=seed) for seed in (0, 1))
    for fold, against, code in (("exact", dense, 0), ("none", dense, 0), ("exact", other, 1)):
        secateur.prune(dense, tmp_path / "out", replace(recipe, fold=fold), force=True)
        with pytest.raises(SystemExit) as stop:
            main(["verify", str(tmp_path / "out"), "--dense", str(against), "--json"])
        assert stop.value.code == code
        assert json.loads(capsys.readouterr().out)["passed"] == (code == 0)
