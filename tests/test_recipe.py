from typing import Any

import msgspec
import pytest
import torch

from secateur.devices import choose_device, choose_dtype
from secateur.errors import InputError
from secateur.patterns import NM, Unstructured
from secateur.recipe import PRESETS, Recipe


def test_yaml_round_trip(tmp_path):
    recipe = Recipe(score="wanda", pattern="4:8", skip=("*.q_proj",), one_shot=True)
    import yaml

    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert Recipe.load(tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_recipe_by_name(name):
    assert Recipe.load(name).targets == (("*", NM(2, 4)),)
    assert Recipe.load(name).fold == "exact"


def test_presets_are_what_they_say():
    assert Recipe.load("paper").permute == "lsa-published"
    assert not Recipe.load("fast").needs_inputs
    assert Recipe.load("good").steps == Recipe.load("best").steps == ("reconstruct",)
    assert Recipe.load("best").tune and not Recipe.load("good").tune
    with pytest.raises(InputError, match="the presets are fast, paper, good, best"):
        Recipe.load("bset")


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "8:16", "16:32"])
def test_a_bare_pattern_in_yaml_is_understood(tmp_path, pattern):
    (tmp_path / "r.yaml").write_text(f"pattern: {pattern}\none-shot: true\n")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert recipe.pattern == pattern
    assert recipe.one_shot


def test_the_published_scope_is_the_default():
    assert Recipe(score="wanda").targets == (("*", Unstructured(0.5, "row")),)
    assert Recipe(score="ria").targets == (("*", Unstructured(0.5, "matrix")),)
    assert Recipe(score="ria", scope="row", sparsity=0.7).targets == (("*", Unstructured(0.7, "row")),)
    assert Recipe(pattern="2:4").targets == (("*", NM(2, 4)),)


BY_LAYER: dict[str, Any] = {"sparsity": {"*.down_proj": 0.4, "*": 0.6}, "pattern": {"*.q_proj": "2:4"}}


def test_what_is_said_by_layer_is_a_mapping_a_text_and_data_alike(tmp_path):
    (tmp_path / "r.yaml").write_text("sparsity: {'*.down_proj': 0.4, '*': 0.6}\npattern: {'*.q_proj': 2:4}")
    recipes = [
        Recipe(**BY_LAYER),
        Recipe(sparsity="*.down_proj=0.4 *=0.6", pattern="*.q_proj=2:4"),
        Recipe.load(tmp_path / "r.yaml"),
    ]
    assert len({*recipes}) == 1
    assert BY_LAYER.items() <= recipes[0].to_dict().items()
    assert Recipe.from_dict(recipes[0].to_dict()) == recipes[0]
    wanted = (("*.q_proj", NM(2, 4)), ("*.down_proj", Unstructured(0.4)), ("*", Unstructured(0.6)))
    assert recipes[0].targets == wanted


def test_the_order_of_a_mapping_tells_recipes_apart():
    values = {"*.down_proj": 0.4, "*": 0.6}
    assert Recipe(sparsity=values) != Recipe(sparsity=dict(reversed(values.items())))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scor: ria", "unknown option 'scor'; did you mean 'score'"),
        ("sparsity: high", "'high' is no number"),
        ("sparsity: {'*': high}", "Expected `float`, got `str`"),
        ("sparsity: {}", "is empty"),
        ("sparsity: {'* x': 0.5}", "'\\* x' is no glob"),
        ("sparsity: '*=0.5 0.4'", "'0.4' is not of the form GLOB=VALUE"),
        ("sparsity: '*=0.5 *=0.4'", "two values: 0.5 and 0.4"),
        ("sparsity: {'*': 1.5}", "1.5 is not in"),
        ("sparsity: 0.5\npattern: {'*': '4:4'}", "4:4 keeps all"),
        ("score: best", "Invalid enum value 'best'"),
        ("- a", "not a mapping"),
        ("a: [", "not YAML"),
        ("pattern: 5:4", "pattern 5:4"),
        ("pattern: 122", "2:2 keeps all"),
        ("pattern: '4:4'", "4:4 keeps all"),
        ("sparsity: 1.5", "not in"),
        ("sparsity: 0.5\npattern: 2:4", "not both"),
        ("alpha: -1", "negative"),
        ("samples: 0", "too few"),
        ("pattern: 4", "Expected `str \\| object \\| null`, got `int`"),
        ("pattern: 2:4\nscope: row", "no meaning"),
        ("fold: gather", "this recipe has none"),
        ("compare_folds: true", "--compare-folds needs"),
    ],
)
def test_bad_recipes_are_refused(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Recipe.load(tmp_path / "r.yaml")


def test_a_missing_recipe_is_refused():
    with pytest.raises(InputError, match="has no name"):
        Recipe.load("")
    with pytest.raises(InputError, match="cannot be read"):
        Recipe.load("nowhere.yaml")


def test_skip_matches_full_names():
    recipe = Recipe(skip=("*.down_proj", "model.layers.0.*"))
    assert recipe.skips("model.layers.7.mlp.down_proj")
    assert recipe.skips("model.layers.0.self_attn.q_proj")
    assert not recipe.skips("model.layers.7.self_attn.q_proj")


def test_auto_dtype():
    assert choose_dtype("auto", torch.bfloat16, torch.device("cpu")) is torch.float32
    assert choose_dtype("auto", torch.bfloat16, torch.device("cuda")) is torch.bfloat16
    assert choose_dtype("float16", torch.bfloat16, torch.device("cpu")) is torch.float16


def test_bad_devices_are_refused():
    with pytest.raises(InputError, match="cannot be used here"):
        choose_device("gpu5")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="cannot be used here"):
            choose_device("cuda")


def test_half_a_character_is_refused():
    with pytest.raises(InputError, match="surrogates"):
        Recipe.from_dict({"score": "\ud800"})


@pytest.mark.parametrize("wrong", [{"dtype": "float64"}, {"memory": 2000000000}, {"memory": "much"}])
def test_values_of_other_kinds_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_a_recipe_from_data_is_the_recipe_that_python_makes():
    read, made = Recipe.from_dict({"score": "wanda"}), Recipe(score="wanda")
    assert read == made
    assert msgspec.json.encode(read) == msgspec.json.encode(made)
    assert read.to_dict() == made.to_dict()
