import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTModel,
)

import secateur
from secateur.digests import tensors_digest
from secateur.masks import obeys
from secateur.patterns import NM
from secateur.recipe import Recipe
from tests import pico

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
RECIPE = Recipe(pattern="2:4", reconstruct="cg", refine=True)


class Mix(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Mixer(nn.Module):
    """No model of any library: blocks of linears over plain vectors."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Mix(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def vit():
    model = ViTModel(ViTConfig(**SIZES, image_size=16, patch_size=4))
    return model, [{"pixel_values": torch.randn(2, 3, 16, 16)} for _ in range(9)]


def bert():
    model = BertModel(BertConfig(**SIZES, vocab_size=99))
    masks = [torch.ones(2, 12, dtype=torch.int64) for _ in range(9)]
    masks[0][:, 9:] = 0
    return model, [{"input_ids": torch.randint(99, (2, 12)), "attention_mask": mask} for mask in masks]


def mixer():
    return Mixer(), [{"x": torch.randn(40, 16)} for _ in range(9)]


def causal():
    return pico.build("gpt2"), list(pico.tokens(9, 24).split(1))


@pytest.mark.parametrize("kind", [vit, bert, mixer, causal])
@pytest.mark.parametrize("one_shot", [False, True])
def test_any_model_with_linears_is_pruned_in_place(kind, one_shot):
    torch.manual_seed(0)
    model, batches = kind()
    model.eval()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    manifest = secateur.prune_module(model, batches, replace(RECIPE, one_shot=one_shot))
    assert manifest["sparsity"] == pytest.approx(0.5)
    assert len(manifest["layers"]) >= 6
    assert {layer["tokens"] for layer in manifest["layers"]} == {manifest["layers"][0]["tokens"]}
    pruned = {f"{layer['name']}.weight" for layer in manifest["layers"]}
    transposed = kind is causal
    for name, parameter in model.named_parameters():
        assert id(parameter) == identities[name]
        if name in pruned:
            assert obeys(parameter.T if transposed else parameter, NM(2, 4))
        else:
            assert torch.equal(parameter, before[name])
    errors = [layer["relative_error"] for layer in manifest["layers"]]
    assert all(0 < error < 1 for error in errors)


def test_weights_alone_need_no_batches_and_inputs_need_some():
    model, _ = mixer()
    assert secateur.prune_module(model, recipe=Recipe(score="ri"))["sparsity"] == 0.5
    with pytest.raises(secateur.InputError, match="at least 1 batches"):
        secateur.prune_module(model)
    with pytest.raises(secateur.InputError, match="at least 2 batches"):
        secateur.prune_module(model, [{"x": torch.randn(4, 16)}], RECIPE)
    with pytest.raises(secateur.InputError, match="no list of repeated blocks"):
        secateur.prune_module(nn.Linear(4, 4), recipe=Recipe(score="ri"))


def test_batches_may_come_from_a_loader_that_is_read_once():
    model, batches = mixer()
    listed, loaded = (secateur.prune_module(copy.deepcopy(model), x, RECIPE) for x in (batches, iter(batches)))
    assert listed["layers"] == loaded["layers"]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (3, "batches is a int: give a list"),
        (torch.ones(3, 4), "batches is a Tensor: give a list"),
        ([3], "batch 0 is a int: give a mapping"),
        ([[torch.ones(1, 4)]], "batch 0 is a list: give a mapping"),
        ([(torch.ones(1, 4),)], "batch 0 is a tuple: give a mapping"),
        ([torch.ones(0, 4)], "batch 0 is empty"),
        ([{}], "batch 0 is empty"),
    ],
)
def test_what_is_no_batch_is_refused(batches, message):
    with pytest.raises(secateur.InputError, match=message):
        secateur.prune_module(mixer()[0], batches)


def test_a_model_without_weights_is_refused():
    with torch.device("meta"), pytest.raises(secateur.InputError, match="no weights yet"):
        secateur.prune_module(Mixer(), recipe=Recipe(score="ri"))


def test_batches_by_name_are_what_token_ids_are():
    digests = []
    for wrap in (lambda ids: ids, lambda ids: {"input_ids": ids}):
        model = pico.build("llama-gqa-tied")
        secateur.prune_module(model, [wrap(x) for x in pico.tokens(4, 24).split(1)], Recipe(score="wanda"))
        digests.append(tensors_digest(model.state_dict()))
        assert model.config.use_cache
    assert digests[0] == digests[1]


def test_a_model_without_its_head_is_walked():
    model = pico.build("llama-mha").model
    manifest = secateur.prune_module(model, list(pico.tokens(4, 24).split(1)), Recipe(score="wanda"))
    assert {layer["score"] for layer in manifest["layers"]} == {"wanda"}
    assert len(manifest["layers"]) == 21


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_in_memory_are_seen(name):
    model = pico.build(name)
    before = model.config._experts_implementation
    manifest = secateur.prune_module(model, list(pico.tokens(16, 24).split(4)), Recipe(score="wanda"))
    assert model.config._experts_implementation == before
    assert {layer["score"] for layer in manifest["layers"]} == {"wanda"}


def test_a_forward_of_a_modules_own_is_given_back():
    model, batches = mixer()
    block, genuine = model.blocks[1], model.blocks[1].forward
    calls = []

    def own(x):
        calls.append(1)
        return genuine(x)

    block.forward = own
    secateur.prune_module(model, batches, Recipe(score="wanda"))
    assert block.__dict__["forward"] is own
    assert calls


TEXT = SIZES | {"vocab_size": 256, "num_key_value_heads": 2, "max_position_embeddings": 128}
VISION = SIZES | {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
WRAPPERS = {
    "llava": (LlavaConfig, LlamaConfig(**TEXT), CLIPVisionConfig(**VISION)),
    "gemma3": (Gemma3Config, Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=16), SiglipVisionConfig(**VISION)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_for_images_and_text_gets_the_masks_of_its_text_part(name):
    wrapper, text, vision = WRAPPERS[name]
    torch.manual_seed(0)
    config = wrapper(text_config=text, vision_config=vision, image_token_index=250, mm_tokens_per_image=4)
    model = AutoModelForImageTextToText.from_config(config).eval()
    part = copy.deepcopy(model.model.language_model)
    ids = list(pico.tokens(4, 24).clamp_max(240).split(1))
    batches = [{"input_ids": x, "token_type_ids": torch.zeros_like(x)} if name == "gemma3" else x for x in ids]
    recipe = Recipe(score="wanda", pattern="2:4")
    whole, alone = secateur.prune_module(model, batches, recipe), secateur.prune_module(part, ids, recipe)
    assert len(whole["layers"]) == len(alone["layers"]) == 21
    assert tensors_digest(model.model.language_model.state_dict()) == tensors_digest(part.state_dict())
    assert model.config.text_config.use_cache


def test_padding_is_no_token():
    model, batches = bert()
    manifest = secateur.prune_module(model.eval(), batches, Recipe(score="wanda"))
    assert {layer["tokens"] for layer in manifest["layers"]} == {9 * 2 * 12 - 2 * 3}


def test_a_decoder_counts_its_own_tokens_and_refuses_what_an_encoder_pads():
    sizes = {"encoder_layers": 2, "encoder_ffn_dim": 32, "decoder_layers": 2, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = BartForConditionalGeneration(BartConfig(vocab_size=99, d_model=32, **sizes, **heads)).eval()
    padded = torch.tensor([[1] * 12, [1] * 9 + [0] * 3])
    batch = {name: torch.randint(5, 99, (2, 12)) for name in ("input_ids", "decoder_input_ids")}
    with pytest.raises(secateur.InputError, match="batch 0 is padded where the encoder reads it"):
        secateur.prune_module(model, [batch | {"attention_mask": padded}] * 3, Recipe(score="wanda"))
    manifest = secateur.prune_module(model, [batch | {"decoder_attention_mask": padded}] * 3, Recipe(score="wanda"))
    assert {layer["tokens"] for layer in manifest["layers"]} == {3 * 21}
