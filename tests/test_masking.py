"""Masks as things of their own: what was taken of a pruned folder holds again on weights that have changed."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import secateur
from secateur.checkpoint.maskfile import KEY, open_mask
from secateur.errors import Notice
from secateur.masks import obeys
from secateur.patterns import NM
from tests import pico

RECIPE = secateur.Recipe(score="magnitude", pattern="2:4", reconstruct="none", permute="lsa")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The folder of a tiny pruned model, by its name, and its mask."""
    root = tmp_path_factory.mktemp("pruned")

    def made(name="llama-gqa-tied"):
        if not (root / name).exists():
            secateur.prune(pico.save(name, root / f"{name}-dense"), root / name, RECIPE)
            secateur.mask(root / name, root / f"{name}.safetensors")
        return root / name, root / f"{name}.safetensors"

    return made


def tuned(folder, to, model_dtype=torch.float32):
    """The same model after a LoRA on every linear of its blocks was trained and merged: W + BA."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=model_dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and ".layers." in name and "gate.weight" not in name:
                *layers, outputs, inputs = weight.shape
                weight += 0.1 * torch.randn(*layers, outputs, 2) @ torch.randn(*layers, 2, inputs)
    model.save_pretrained(to)
    pico.tokenizer().save_pretrained(to)
    return to


def metadata(path):
    """What a mask says of itself."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[KEY])


@pytest.mark.parametrize("name", ["llama-gqa-tied", "mixtral"])
def test_a_merged_adapter_obeys_the_pattern_again(name, pruned, tmp_path):
    folder, mask = pruned(name)
    merged = tuned(folder, tmp_path / "merged")
    manifest = secateur.apply(merged, mask, tmp_path / "out")
    before, changed, after = (pico.linears(each) for each in (folder, merged, tmp_path / "out"))
    assert before.keys() == after.keys()
    for key, weight in after.items():
        assert not obeys(changed[key], NM(2, 4)) and obeys(weight, NM(2, 4))
        assert torch.equal(weight, changed[key] * (before[key] != 0))
    ours, theirs = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (tmp_path / "out", merged))
    outside = [key for key in ours if ".layers." not in key or "norm" in key]
    assert outside and all(torch.equal(ours[key], theirs[key]) for key in outside)
    assert abs(manifest["sparsity"] - 0.5) < 0.01
    assert secateur.verify(tmp_path / "out", merged).passed
    assert not secateur.verify(tmp_path / "out", folder).passed
    assert "put on again" in (tmp_path / "out" / "README.md").read_text()


def test_to_apply_a_mask_to_its_own_model_changes_nothing(pruned, tmp_path):
    folder, mask = pruned()
    manifest = secateur.apply(folder, mask, tmp_path / "out")
    before, after = (pico.linears(each) for each in (folder, tmp_path / "out"))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert sum(layer["set_to_zero"] for layer in manifest["layers"]) == 0
    secateur.pack(tmp_path / "out", tmp_path / "packed")
    assert secateur.verify(tmp_path / "packed", folder).passed
    secateur.mask(tmp_path / "out", tmp_path / "again.safetensors")  # of what apply wrote one can be taken as well
    one, two = (load_file(path) for path in (mask, tmp_path / "again.safetensors"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_mask_that_holds_in_another_order_is_put_on_as_it_is_stored(tmp_path):
    """Mapped back (``--fold none``) N:M is as many zeros in every row."""
    recipe = replace(RECIPE, fold="none")
    secateur.prune(pico.save("llama-mha", tmp_path / "dense"), tmp_path / "pruned", recipe)
    header = secateur.mask(tmp_path / "pruned", tmp_path / "mask")
    assert {entry.pattern for entry in header.weights.values()} == {"50 %"}
    merged = tuned(tmp_path / "dense", tmp_path / "merged")  # whose channels are in the same order
    secateur.apply(merged, tmp_path / "mask", tmp_path / "out")
    assert secateur.verify(tmp_path / "out", merged).passed


def test_a_mask_is_one_bit_for_each_weight(pruned):
    folder, path = pruned()
    mask, weights = open_mask(path), pico.linears(folder)
    packed = load_file(path)
    assert packed.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(mask.read(name), weight != 0)
        assert packed[name].dtype == torch.uint8 and packed[name].shape == (len(weight), -(-weight.shape[1] // 32) * 4)


# ---------------------------------------------------------------- what is refused


def test_only_a_pruned_folder_with_its_own_zeros_has_a_mask(pruned, tmp_path):
    folder, mask = pruned()
    merged = tuned(folder, tmp_path / "merged")
    with pytest.raises(secateur.InputError, match="is no folder that secateur prune wrote"):
        secateur.mask(merged, tmp_path / "mask")
    shutil.copy(folder / "secateur.json", merged)
    with pytest.raises(secateur.InputError, match="it has changed"):
        secateur.mask(merged, tmp_path / "mask")
    with pytest.raises(secateur.InputError, match="give another --out"):
        secateur.mask(folder, mask)
    assert not (tmp_path / "mask").exists()


def test_another_model_is_refused_before_any_work(pruned, tmp_path):
    _, mask = pruned()
    for name, message in (("mistral", "is of a llama model"), ("llama-mha", "is of another model")):
        with pytest.raises(secateur.InputError, match=message):
            secateur.apply(pico.save(name, tmp_path / name), mask, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_config_is_told_of(pruned, tmp_path):
    folder, mask = pruned()
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3, "use_cache": False}))
    with pytest.warns(Notice, match="is not that of the model whose mask this is"):
        secateur.apply(other, mask, tmp_path / "out")


@pytest.mark.parametrize("damage", ["metadata", "version", "shape", "missing", "keeps all", "none"])
def test_a_damaged_mask_is_refused(damage, pruned, tmp_path):
    folder, path = pruned()
    masks, name = load_file(path), "model.layers.1.mlp.up_proj"
    header = metadata(path)
    if damage == "metadata":
        header["weights"] = 3
    elif damage == "version":
        header["version"] = 2
    elif damage == "shape":
        header["weights"][name]["shape"] = [1 << 40, 1 << 40]
    elif damage == "missing":
        del masks[name]
    elif damage == "keeps all":
        masks[name].fill_(255)
    save_file(masks, tmp_path / "mask", metadata={} if damage == "none" else {KEY: json.dumps(header)})
    with pytest.raises(secateur.InputError):
        secateur.apply(folder, tmp_path / "mask", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bits_beyond_the_last_column_are_refused(pruned, tmp_path):
    _, path = pruned()
    masks, header, name = load_file(path), metadata(path), "model.layers.1.mlp.up_proj"
    header["weights"][name]["shape"][1] -= 1  # which takes as many bytes
    masks[name].fill_(255)
    save_file(masks, tmp_path / "mask", metadata={KEY: json.dumps(header)})
    with pytest.raises(secateur.InputError, match="keeps columns beyond its last"):
        open_mask(tmp_path / "mask").read(name)


# ---------------------------------------------------------------- training


def test_the_callback_keeps_zeros_zero(pruned, tmp_path):
    example = runpy.run_path(str(EXAMPLES / "keep_zeros.py"))
    folder, _ = pruned()
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    samples = [{"input_ids": row, "labels": row} for row in pico.tokens(4, 8)]
    arguments = TrainingArguments(
        tmp_path, max_steps=2, learning_rate=0.1, weight_decay=0.1, use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=samples, callbacks=[example["KeepZeros"]()]).train()
    moved = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert len(moved) == len(before)
    for name, weight in model.named_parameters():
        assert weight.ndim == 1 or torch.equal(weight == 0, before[name] == 0)


def test_the_command_line_masks_and_applies(pruned, tmp_path, capsys):
    from secateur.cli import main

    folder, _ = pruned()
    for words in (
        ["mask", str(folder), "--out", str(tmp_path / "mask.safetensors")],
        ["apply", str(folder), str(tmp_path / "mask.safetensors"), "--out", str(tmp_path / "out"), "--quiet"],
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert not end.value.code
    said = capsys.readouterr().out
    assert "the mask of 21 linears" in said and "0 of" in said and "written to" in said
