from dataclasses import replace
from math import prod

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur.errors import InputError
from secateur.knapsack import LEVELS
from secateur.recipe import Recipe
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40
QUIET = "model.layers.1."


# Models, and by how many weights the sum may be off: each expert of a stack rounds the share that all of them have.
MODELS = {"llama-gqa-tied": 0, "mixtral": 4}


def quiet(name, tmp_path):
    """A model whose block 1 adds next to nothing to the residual stream."""
    folder = pico.save(name, tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        if name.startswith(QUIET) and ("o_proj" in name or "down_proj" in name):
            parameter.data *= 1e-3
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(calibration=str(tmp_path / "text.txt"), samples=6, length=32, sparsity=0.6)


@pytest.mark.parametrize("name", MODELS)
def test_as_many_weights_go_where_they_do_the_least_harm(name, tmp_path, recipe):
    manifest = secateur.prune(quiet(name, tmp_path), tmp_path / "out", replace(recipe, allocate=True))
    sizes = [prod(layer["shape"]) for layer in manifest["layers"]]
    even = sum(round(0.6 * size) for size in sizes)
    assert abs(manifest["sparsity"] * sum(sizes) - even) < MODELS[name] + 0.5
    shares = manifest["recipe"]["sparsity"]
    assert {share for layer, share in shares.items() if layer.startswith(QUIET)} == {LEVELS[-1]}
    assert len([share for share in shares.values() if share not in (0, *LEVELS)]) <= 1
    assert secateur.verify(tmp_path / "out").passed


def test_what_was_found_is_a_recipe_that_gives_the_same_weights(tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    manifest = secateur.prune(dense, tmp_path / "out", replace(recipe, allocate=True))
    again = Recipe.from_dict(manifest["recipe"])
    assert not again.allocate and len({*manifest["recipe"]["sparsity"].values()}) > 1
    secateur.prune(dense, tmp_path / "again", again)
    before, after = pico.linears(tmp_path / "out"), pico.linears(tmp_path / "again")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "options", [{"pattern": "2:4"}, {"sparsity": {"*": 0.5}}, {"sparsity": 0.95}], ids=["pattern", "mapping", "more"]
)
def test_what_cannot_be_allocated_is_refused(options):
    with pytest.raises(InputError, match="--allocate"):
        Recipe(allocate=True, **options)


def test_a_module_is_given_an_allocation_and_finds_none():
    with pytest.raises(InputError, match="give the sparsities"):
        secateur.prune_module(pico.build("llama-mha"), [pico.tokens()], Recipe(allocate=True))


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        ({"*.down_proj": 0.4}, "nothing is said of model.layers.0.self_attn.q_proj"),
        ({"*": 0.4, "*.down_proj": 0.6}, r"\\*.down_proj=0.6 counts for no layer"),
    ],
)
def test_a_mapping_that_fits_no_model_is_refused(sparsity, message, tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    with pytest.raises(InputError, match=message):
        secateur.prune(dense, tmp_path / "out", replace(recipe, sparsity=sparsity))


def test_the_first_glob_that_matches_counts(tmp_path, recipe):
    dense = pico.save("llama-mha", tmp_path / "dense")
    mixed = replace(recipe, sparsity={"*.0.*.q_proj": 0, "*.q_proj": 0.25, "*": 0.5}, pattern={"*.down_proj": "1:4"})
    shares = {layer["name"]: layer["sparsity"] for layer in secateur.prune(dense, tmp_path / "out", mixed)["layers"]}
    attention = [shares[f"model.layers.{number}.self_attn.{name}_proj"] for number in (0, 1) for name in "qk"]
    assert attention == [0, 0.5, 0.25, 0.5]
    assert shares["model.layers.2.mlp.down_proj"] == 0.75
    assert secateur.verify(tmp_path / "out", dense).passed
