"""Language models inside others, models with states, and blocks that are not as alike as blocks are elsewhere."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.calibrate.stream import Stream
from secateur.checkpoint import Source, Writer, load_into
from secateur.checkpoint.config import empty_model
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of, left_dense
from secateur.models.families import FAMILIES, inside
from secateur.recipe import Recipe
from secateur.shrinkage import Shrinkage
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(pattern="2:4", permute="none", calibration=str(tmp_path / "text.txt"), samples=4, length=16)


def weights(folder):
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def logits_block_by_block(model, ids):
    blocks = blocks_of(model, family_of(model))
    stream = Stream(model, blocks, [ids])
    for index in range(len(blocks)):
        stream.advance(index)
    return stream.output(0).logits


@pytest.mark.parametrize("name", pico.SEEING | pico.RECURRENT)
def test_block_by_block_it_is_the_whole_model(name):
    model, ids = pico.build(name), pico.tokens()
    with torch.no_grad():
        whole = model(ids).logits
    if name == "rwkv":  # which has changed its weights in that pass
        state = pico.build(name).state_dict()
        model = empty_model(model.config, torch.float32)
        load_into(model, state, "", torch.device("cpu"))
    tolerance = 5e-3 if name == "rwkv" else 1e-4  # halved hidden states are nearer to the epsilon of the norms
    torch.testing.assert_close(logits_block_by_block(model, ids), whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", pico.SEEING)
def test_what_is_pruned_of_a_wrapper_is_its_language_part(name):
    model = pico.build(name)
    assert family_of(model).name != "generic"
    blocks = blocks_of(model, family_of(model))
    assert len(blocks) == model.config.get_text_config().num_hidden_layers
    ids = {id(parameter) for parameter in model.get_decoder().parameters()}
    assert all(id(parameter) in ids for block in blocks for parameter in block.module.parameters())


def test_all_else_of_a_wrapper_stays_as_it_was(tmp_path, recipe):
    dense, out = pico.save("llava", tmp_path / "dense", torch.bfloat16), tmp_path / "out"
    # As it was published: the vision tower had one more part in its names.
    tower = "vision_tower."
    published = {k.replace(tower, f"{tower}vision_model."): v for k, v in weights(dense).items()}
    assert f"{tower}vision_model.post_layernorm.weight" in published
    assert "language_model.model.layers.0.mlp.up_proj.weight" in published
    save_file(published, dense / "model.safetensors", metadata={"format": "pt"})
    beside = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
    for name in (*beside, "chat_template.jinja"):
        (dense / name).write_text("{}")
    manifest = secateur.prune(dense, out, recipe)
    after = weights(out)
    assert after.keys() == published.keys()
    changed = {name for name in after if not torch.equal(after[name], published[name])}
    pruned = {layer["name"] for layer in manifest["layers"]}
    assert {name.removesuffix(".weight") for name in changed} == {
        name.replace("model.language_model.", "language_model.model.") for name in pruned
    }
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", *beside):
        assert (out / name).read_bytes() == (dense / name).read_bytes()
    assert "AutoModelForImageTextToText" in (out / "README.md").read_text()


def test_a_run_on_a_wrapper_goes_on_to_the_same_bytes(tmp_path, recipe, monkeypatch):
    dense = pico.save("gemma3-vl", tmp_path / "dense")
    secateur.prune(dense, tmp_path / "whole", replace(recipe, permute="lsa"))
    add, calls = Writer.add, []

    def stop(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(self, *args)

    monkeypatch.setattr(Writer, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(dense, tmp_path / "out", replace(recipe, permute="lsa"))
    monkeypatch.undo()
    secateur.prune(dense, tmp_path / "out", replace(recipe, permute="lsa"), resume=True)
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_wrapper_is_packed_and_unpacked(tmp_path, recipe):
    dense = pico.save("qwen2.5-vl", tmp_path / "dense", torch.bfloat16)
    secateur.prune(dense, tmp_path / "out", recipe)
    secateur.pack(tmp_path / "out", tmp_path / "packed")
    secateur.unpack(tmp_path / "packed", tmp_path / "again")
    before, after = weights(tmp_path / "out"), weights(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    inputs = pico.inputs("qwen2.5-vl")
    with torch.no_grad():
        plain, packed = (secateur.load(tmp_path / name)(**inputs).logits for name in ("out", "packed"))
    torch.testing.assert_close(packed, plain, rtol=0.05, atol=0.1)


def test_what_is_not_done_with_a_wrapper_is_refused(tmp_path):
    dense = pico.save("llava", tmp_path / "dense")
    with pytest.raises(InputError, match="a llava model has a language model as a part"):
        secateur.shrink(dense, tmp_path / "out", Shrinkage(sparsity=0.25, method="depth"))
    with pytest.raises(InputError, match=r"other names than transformers has \(language_model"):
        secateur.quantize(dense, tmp_path / "out")
    tensors = weights(dense)
    tensors["lm_head.weight"] = tensors["language_model.lm_head.weight"].clone()
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="which are the same tensor"):
        Source(dense)


def test_weights_that_blocks_share_stay_dense(tmp_path, recipe):
    model = pico.build("zamba2")
    blocks = blocks_of(model, family_of(model))
    names = {block.full_name(linear) for block in blocks for linear in block.linears}
    assert "model.layers.1.mamba_decoder.mamba.in_proj" in names
    assert not any("shared_transformer" in name for name in names)
    assert "shared_transformer.self_attn.q_proj.weight" in left_dense(blocks, [])
    dense = pico.save("zamba2", tmp_path / "dense")
    secateur.prune(dense, tmp_path / "out", recipe)
    before, after = weights(dense), weights(tmp_path / "out")
    shared = [name for name in before if "shared_transformer" in name]
    assert shared
    assert all(name.startswith("model.layers.1.") for name in shared)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in shared)


def test_a_linear_is_seen_where_its_weight_comes_first():
    model, ids = pico.build("mamba"), pico.tokens()
    block, *_ = blocks_of(model, family_of(model))
    seen = []
    projection = block.module.get_submodule("mixer.x_proj")
    projection.register_forward_hook(lambda _module, _args, output: seen.append(output))
    stats = Stream(model, blocks_of(model, family_of(model)), [ids]).observe(0)["mixer.dt_proj"]
    steps = seen[0][..., : model.config.time_step_rank].flatten(0, 1)
    torch.testing.assert_close(stats.sample, steps)


def test_what_is_changed_between_blocks_is_refused():
    with pytest.raises(InputError, match="changes the hidden states between its blocks 0 and 1"):
        logits_block_by_block(pico.build("rwkv"), pico.tokens())


def test_where_the_projector_is_not_known_the_residual_space_keeps_its_order():
    language = FAMILIES["llama"](pico.EVERY["llama-mha"]())
    family = inside(language, "model.language_model", SimpleNamespace(model_type="one that is not known"))
    assert family.rules == {"value": "heads", "mlp": "block"}
    assert family.blocks == "model.language_model.layers"


def test_a_model_that_needs_images_is_refused():
    class Looks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2)])

        def forward(self, pixels, ids):
            raise AssertionError("it is not called so")

    model = Looks()
    with pytest.raises(InputError, match="Looks does not run on token ids alone: TypeError"):
        Stream(model, blocks_of(model, family_of(model)), [pico.tokens()])
