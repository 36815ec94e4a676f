import json
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur import data
from secateur.checkpoint import Writer
from secateur.errors import InputError
from secateur.masks import obeys, select, sparsity_of
from secateur.models.blocks import family_of
from secateur.patterns import NM
from secateur.pruning import group
from secateur.pruning import walk as walking
from secateur.recipe import Recipe
from secateur.reconstruct.methods import RECONSTRUCTIONS
from secateur.scores import SCORES
from secateur.stats.inputs import InputStats
from tests import pico
from tests.counting import Counting

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(calibration=str(tmp_path / "text.txt"), samples=6, length=32)


def weights(folder):
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def linears(state):
    return {k: v for k, v in state.items() if k.endswith("proj.weight")}


@pytest.mark.parametrize("name", ["llama-gqa-tied", "gpt2", "qwen3-moe", "lfm2"])
def test_a_tiny_model_is_pruned_and_loads_plainly(name, tmp_path, recipe):
    dense = pico.save(name, tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", replace(recipe, pattern="2:4", permute="none"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(pico.tokens()).logits.isfinite().all()
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("fox").input_ids
    assert (manifest["family"] == "generic") == (name in pico.WALKED)
    before, after = pico.linears(dense), pico.linears(tmp_path / "out")
    assert {layer["name"] for layer in manifest["layers"]} == set(after) == set(before)
    assert len(after) >= 3 * 4
    for key, weight in after.items():
        assert obeys(weight, NM(2, 4))
        assert sparsity_of(weight) == 0.5
        assert torch.equal(weight, before[key] * (weight != 0))
    before, after = weights(dense), weights(tmp_path / "out")
    assert before.keys() == after.keys(), "the files hold the same tensors as before"
    unpruned = [key for key in after if sparsity_of(after[key]) < 0.5]
    assert len(unpruned) >= 5
    assert all(torch.equal(after[key], before[key]) for key in unpruned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compute", ["auto", "bfloat16"])
def test_weights_keep_their_dtype_and_bits(dtype, compute, tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense", dtype)
    secateur.prune(dense, tmp_path / "out", replace(recipe, dtype=compute, sparsity=0.3))
    before, after = weights(dense), weights(tmp_path / "out")
    assert {w.dtype for w in after.values()} == {dtype}
    for key, weight in linears(after).items():
        assert sparsity_of(weight) == round(0.3 * weight.numel()) / weight.numel()
        assert torch.equal(weight, before[key] * (weight != 0))


@pytest.mark.parametrize("one_shot", [False, True])
@pytest.mark.parametrize("score", ["wanda", "ria"])
def test_masks_are_those_of_a_plain_whole_model_procedure(score, one_shot, tmp_path, recipe):
    recipe = replace(recipe, score=score, one_shot=one_shot)
    secateur.prune(pico.save("qwen2", tmp_path / "dense"), tmp_path / "out", recipe)
    after = weights(tmp_path / "out")
    tokenizer = pico.tokenizer()
    text = data.load_text(recipe.calibration, "calibration")
    samples = data.calibration_samples(text, tokenizer, recipe.samples, recipe.length, recipe.seed)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    masks = {}
    for layer in model.model.layers:
        stats = {}
        handles = []
        for linear in family_of(model).linears:
            module = layer.get_submodule(linear.name)
            stats[linear.name] = InputStats(module.in_features)
            update = stats[linear.name].update
            handles.append(module.register_forward_pre_hook(lambda _, args, update=update: update(args[0])))
        with torch.no_grad():
            model(samples)
        for handle in handles:
            handle.remove()
        for linear in family_of(model).linears:
            module = layer.get_submodule(linear.name)
            mask = select(SCORES[score].function(module.weight.data, stats[linear.name], 0.5), recipe.targets[0][1])
            masks[module] = mask
            if not one_shot:
                module.weight.data *= mask
    for name, module in model.named_modules():
        if module in masks:
            torch.testing.assert_close(after[f"{name}.weight"], module.weight.data * masks[module])


def test_same_seed_same_bytes_and_another_seed_others(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        secateur.prune(dense, tmp_path / out, replace(recipe, seed=seed))
    files = sorted(p.name for p in (tmp_path / "a").glob("*.safetensors"))
    a, b, c = ([(tmp_path / out / f).read_bytes() for f in files] for out in "abc")
    assert a == b != c


def test_the_manifest_tells_the_truth(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", replace(recipe, sparsity=0.25, skip=("*.v_proj",)))
    assert json.loads(json.dumps(manifest)) == json.loads((tmp_path / "out" / "secateur.json").read_text())
    assert Recipe.from_dict(manifest["recipe"]) == replace(recipe, sparsity=0.25, skip=("*.v_proj",))
    assert manifest["skipped"] == [f"model.layers.{i}.self_attn.v_proj" for i in range(3)]
    before, after = weights(dense), weights(tmp_path / "out")
    assert len(manifest["layers"]) == 18
    for layer in manifest["layers"]:
        weight = after[f"{layer['name']}.weight"]
        assert tuple(layer["shape"]) == weight.shape
        assert layer["sparsity"] == sparsity_of(weight) == 0.25
        assert 0.75 < layer["retained"] < 1
        assert 0 < layer["relative_error"] < 1
    for key in before:
        if "v_proj" in key:
            assert torch.equal(before[key], after[key])
    assert manifest["sparsity"] == 0.25


def test_the_output_error_is_that_of_the_inputs(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", recipe)
    model = AutoModelForCausalLM.from_pretrained(dense)
    text = data.load_text(recipe.calibration, "calibration")
    samples = data.calibration_samples(text, pico.tokenizer(), recipe.samples, recipe.length, 0)
    with torch.no_grad():  # fewer tokens than error rows: every one counts, and block 0 sees the dense embedding
        inputs = model.model.layers[0].input_layernorm(model.model.embed_tokens(samples)).flatten(0, 1)
    before, after = (weights(f)["model.layers.0.self_attn.k_proj.weight"] for f in (dense, tmp_path / "out"))
    expected = (inputs @ (before - after).T).norm() / (inputs @ before.T).norm()
    (layer,) = [x for x in manifest["layers"] if x["name"] == "model.layers.0.self_attn.k_proj"]
    assert layer["relative_error"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("score", [name for name in SCORES if not SCORES[name].needs_inputs])
def test_scores_of_weights_alone_need_no_text(score, tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", Recipe(score=score, calibration="nothing"))
    assert manifest["calibration"] is None
    assert manifest["layers"][0]["relative_error"] is None
    assert manifest["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("setting", "passes"),
    [
        ({"score": "ria"}, 2),
        ({"score": "ri", "reconstruct": "cg", "guard": False}, 1),  # what reads no inputs is surveyed without
    ],
)
def test_progress_counts_every_token_of_every_pass(setting, passes, tmp_path, recipe):
    dense, counting = pico.save("llama-mha", tmp_path / "dense"), Counting()
    secateur.prune(dense, tmp_path / "out", replace(recipe, pattern="2:4", **setting), progress=counting)
    tokens, blocks = 6 * 32, 3
    surveyed = blocks * tokens if passes == 2 else blocks
    assert counting.done == counting.total == surveyed + (2 * blocks - 1) * tokens


def test_samples_pass_blocks_of_which_nothing_is_pruned(tmp_path, recipe):
    dense, counting = pico.save("llama-mha", tmp_path / "dense"), Counting()
    one_shot = replace(recipe, one_shot=True)
    secateur.prune(dense, tmp_path / "all", one_shot)
    secateur.prune(dense, tmp_path / "some", replace(one_shot, skip=("model.layers.0.*",)), progress=counting)
    assert counting.done == counting.total
    everything, some = linears(weights(tmp_path / "all")), linears(weights(tmp_path / "some"))
    for name, weight in everything.items():
        assert torch.equal(weight, some[name]) != name.startswith("model.layers.0.")


def test_a_block_is_written_while_the_next_is_at_work(tmp_path, recipe, monkeypatch):
    order, write, prune_groups = [], Writer.add, group.prune_groups
    working = threading.Event()

    def writing(self, tensors, *args):
        if any(name.startswith("model.layers.0.") for name in tensors):
            order.append(working.wait(20))
        write(self, tensors, *args)

    def pruning(visit, groups, task, ranks):
        if visit.block.prefix == "model.layers.1.":
            working.set()
        prune_groups(visit, groups, task, ranks)

    monkeypatch.setattr(Writer, "add", writing)
    monkeypatch.setattr(walking, "prune_groups", pruning)
    secateur.prune(pico.save("llama-mha", tmp_path / "dense"), tmp_path / "out", recipe)
    assert order == [True]


def refused(tmp_path, recipe, message, model="dense"):
    with pytest.raises(InputError, match=message):
        secateur.prune(tmp_path / model, tmp_path / "out", recipe)
    assert {p.name for p in tmp_path.iterdir()} <= {"dense", "text.txt"}


def test_bad_input_is_refused_and_nothing_is_written(tmp_path, recipe):
    folder = pico.save("llama-mha", tmp_path / "dense")
    refused(tmp_path, replace(recipe, pattern="2:7"), r"q_proj: 32 input channels.*--skip '\*\.self_attn\.q_proj'")
    refused(tmp_path, replace(recipe, length=256), "exceed the model's context of 128")
    refused(tmp_path, replace(recipe, samples=6000), "take at most")
    refused(tmp_path, replace(recipe, skip=("*.query",)), r"--skip \*\.query names no layer")
    refused(tmp_path, replace(recipe, skip=("*",)), "every layer is skipped")
    refused(tmp_path, recipe, "no folder", model="missing")
    refused(tmp_path, replace(recipe, device="meta"), "no values to compute with")
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, recipe, r"model\.layers\.1\.mlp\..*NaN or infinite")


def test_overflowing_activations_are_refused_by_name(tmp_path, recipe):
    folder = pico.save("llama-mha", tmp_path / "dense", torch.float16)
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"] *= 60000
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, replace(recipe, dtype="float16"), r"model\.layers\.\d.*")


@pytest.mark.parametrize("method", RECONSTRUCTIONS)
def test_dead_channels_and_too_few_tokens_are_survived_and_reported(method, tmp_path, recipe):
    folder = pico.save("llama-mha", tmp_path / "dense")
    state = load_file(folder / "model.safetensors")
    state["model.embed_tokens.weight"][:, 5] = 0
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    steps = replace(recipe, pattern="2:4", permute="none", reconstruct=method, refine=True, samples=3, length=20)
    manifest = secateur.prune(folder, tmp_path / "out", steps)
    first = manifest["layers"][0]
    assert (first["name"], first["dead_channels"], first["tokens"]) == ("model.layers.0.self_attn.q_proj", 1, 40)
    assert manifest["layers"][-1]["dead_channels"] == 0
    for weight in linears(weights(tmp_path / "out")).values():
        assert weight.isfinite().all()
        assert obeys(weight, NM(2, 4))
