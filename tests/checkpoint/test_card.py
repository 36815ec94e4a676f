"""The card of a written folder: true, the same for the same run, private, and never in the way."""

import json
import shutil
from typing import Any

import pytest
from huggingface_hub import ModelCard

import secateur
from secateur.checkpoint.card import model_card
from secateur.citations import PAPERS
from secateur.errors import InputError
from secateur.importance import METHODS
from secateur.permute.searches import SEARCHES
from secateur.quantization.methods import QUANTIZATIONS
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.reconstruct.methods import RECONSTRUCTIONS
from secateur.scores import SCORES
from secateur.shrinkage import Shrinkage
from tests import pico
from tests.specimens import PLAIN, TEXT

FRONT = (
    "---\nlicense: other\nlicense_name: llama\nlicense_link: LICENSE\nlanguage: [en, de]\ntags: [a]\n---\n# Secret\n"
)
SAMPLES = {"samples": 2, "length": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model with a card and terms, and what every command makes of it."""
    root = tmp_path_factory.mktemp("private") / "home"
    dense = pico.save("llama-gqa-tied", root / "tiny-llama")
    (dense / "README.md").write_text(FRONT)
    for name in ("LICENSE-MODEL", "USE_POLICY.md", "Notice", "license.safetensors.txt"):
        (dense / name).write_text(name)
    (root / "notes.txt").write_text(TEXT)
    text: Any = {"calibration": str(root / "notes.txt"), **SAMPLES}
    secateur.prune(dense, root / "pruned", Recipe(pattern="2:4", score="wanda", reconstruct="admm", **text))
    secateur.quantize(root / "pruned", root / "quantized", QuantizationRecipe(group_size=16, **text))
    secateur.pack(root / "pruned", root / "packed")
    secateur.pack(root / "pruned", root / "int8", int8=True)
    secateur.unpack(root / "packed", root / "unpacked")
    secateur.unpack(root / "int8", root / "rounded")
    secateur.shrink(dense, root / "shrunk", Shrinkage(**text))
    secateur.prune(dense, root / "gather", Recipe(pattern="2:4", fold="gather", **text))
    return root


WRITTEN = ["pruned", "quantized", "packed", "int8", "unpacked", "rounded", "shrunk", "gather"]


def card_of(folder) -> Any:  # whose data are declared without the fields that they have
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("name", WRITTEN)
def test_terms_go_along_and_paths_and_other_texts_do_not(root, name):
    card = card_of(root / name)
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "llama", "LICENSE")
    assert card.data.language == ["en", "de"] and card.data.pipeline_tag == "text-generation"
    assert "private" not in card.content and "Secret" not in card.content
    assert "`tiny-llama`" in card.text and "`LICENSE-MODEL`, `Notice`, `USE_POLICY.md`" in card.text
    for term in ("LICENSE-MODEL", "USE_POLICY.md", "Notice"):
        assert (root / name / term).read_text() == term
    assert card.data.base_model is None and "base_model" not in card.content


@pytest.mark.parametrize(
    ("name", "library", "tags", "title"),
    [
        ("pruned", "transformers", ["pruned", "sparsity", "2:4", "wanda"], "# `tiny-llama`, pruned"),
        ("quantized", "transformers", ["pruned", "2:4", "quantized", "gptq", "4-bit"], "pruned, quantized"),
        ("packed", "secateur", ["pruned", "2:4", "packed"], "pruned, packed"),
        ("int8", "secateur", ["pruned", "quantized", "packed"], "pruned, quantized, packed"),
        ("rounded", "transformers", ["pruned", "quantized"], "pruned, quantized"),
        ("shrunk", "transformers", ["shrunk", "structured-pruning"], "# `tiny-llama`, shrunk"),
        ("gather", "secateur", ["pruned", "2:4", "ria"], "# `tiny-llama`, pruned"),
    ],
)
def test_it_says_what_the_model_is(root, name, library, tags, title):
    card = card_of(root / name)
    assert card.data.library_name == library
    assert {"a", "secateur", *tags} <= {*card.data.tags}
    assert ("packed" in card.data.tags) == (name in ("packed", "int8"))
    assert card.text.strip().splitlines()[0].endswith(title)
    assert ("secateur.load" in card.text) == (library == "secateur")


def test_it_tells_what_was_done(root):
    text = card_of(root / "quantized").text
    said = [
        "50.00% of the weights of 21 linears", "2:4 (50 %)", "Score: wanda", "by lsa", "by admm",
        "2 samples of 16 tokens of `notes.txt`, seed 0", "4 bits in groups of 16", "Made of: `pruned`",
    ]  # fmt: skip
    for words in said:
        assert words in text
    for paper in ("zhang2024plug", "sun2024wanda", "meng2024alps", "frantar2023gptq"):
        assert text.count(paper) == 1
    assert "frantar" not in card_of(root / "pruned").text


def test_the_same_run_writes_the_same_card_wherever(root, tmp_path):
    dense = shutil.copytree(root / "tiny-llama", tmp_path / "tiny-llama")
    for out in ("one", "two"):
        secateur.prune(dense, tmp_path / out, PLAIN)
    assert (tmp_path / "one" / "README.md").read_bytes() == (tmp_path / "two" / "README.md").read_bytes()
    assert (root / "unpacked" / "README.md").read_bytes() == (root / "pruned" / "README.md").read_bytes()


def test_what_is_no_longer_true_is_not_carried_over(root, tmp_path):
    secateur.prune(root / "quantized", tmp_path / "again", PLAIN)
    tags = card_of(tmp_path / "again").data.tags
    assert tags == ["a", "secateur", "pruned", "sparsity", "unstructured-sparsity", "magnitude"]


@pytest.mark.parametrize("change", ["edited", "gone"])
def test_it_is_its_readers_to_change(root, tmp_path, change):
    out = shutil.copytree(root / "pruned", tmp_path / "pruned")
    if change == "edited":
        (out / "README.md").write_text("mine")
    else:
        (out / "README.md").unlink()
    assert secateur.verify(out).passed and not any("README" in each for each in secateur.verify(out).unchecked)
    secateur.pack(out, tmp_path / "packed")
    secateur.prune(root / "tiny-llama", out, PLAIN, force=True)
    assert "magnitude" in (out / "README.md").read_text()


def test_a_link_in_its_place_is_not_replaced(root, tmp_path):
    out = shutil.copytree(root / "pruned", tmp_path / "pruned")
    (out / "README.md").unlink()
    (tmp_path / "mine.md").write_text("x")
    (out / "README.md").symlink_to(tmp_path / "mine.md")
    with pytest.raises(InputError, match=r"holds README\.md"):
        secateur.prune(root / "tiny-llama", out, PLAIN, force=True)


def test_terms_that_lie_elsewhere_are_refused_before_any_work(root, tmp_path):
    dense = shutil.copytree(root / "tiny-llama", tmp_path / "dense")
    (tmp_path / "elsewhere").write_text("x")
    (dense / "LICENSE.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"LICENSE\.txt is a link"):
        secateur.prune(dense, tmp_path / "out", PLAIN)


# ---------------------------------------------------------------- names, and cards of others


def of(model, folder, manifest=None, **config) -> Any:
    return ModelCard(model_card(model, folder, manifest or {}, config))


def manifest_of(folder, **changes):
    return json.loads((folder / "secateur.json").read_text()) | changes


def test_the_hubs_names_are_links(root, tmp_path):
    calibration = {"source": "c4", "samples": 128, "length": 2048, "seed": 3}
    manifest = manifest_of(root / "pruned", model="org/Llama-3", calibration=calibration)
    card = of("org/Llama-3", tmp_path, manifest)
    assert card.data.base_model == "org/Llama-3" and "[org/Llama-3](https://huggingface.co/org/Llama-3)" in card.text
    assert card.data.datasets == ["allenai/c4"] and "128 samples of 2,048 tokens of [allenai/c4]" in card.text
    assert "secateur eval org/Llama-3 THIS_FOLDER" in card.text
    assert "base_model_relation" not in card.data
    (tmp_path / "README.md").write_text(card.content)  # now quantized: here, and from the hub
    manifest |= {"quantization": manifest_of(root / "quantized")["quantization"] | {"model": "me/sparse"}}
    for model, base in ((str(tmp_path), "org/Llama-3"), ("me/sparse", "me/sparse")):
        card = of(model, tmp_path, manifest)
        assert (card.data.base_model, card.data["base_model_relation"]) == (base, "quantized")
        assert "Made of: [org/Llama-3]" in card.text
    assert "Made of: [me/sparse]" in card.text


@pytest.mark.parametrize(
    ("source", "datasets", "told"),
    [
        ("wikitext2", ["Salesforce/wikitext"], "[Salesforce/wikitext]"),
        ("c4:/home/me/c4.jsonl", None, "`c4, a local copy`"),
        ("org/data/config", ["org/data"], "[org/data]"),
        ("/home/me/notes.txt", None, "`notes.txt`"),
        ("demo", None, "`demo`"),
    ],
)
def test_only_names_of_texts_are_told(root, tmp_path, source, datasets, told):
    calibration = {"source": source, "samples": 128, "length": 2048, "seed": 3}
    card = of("org/x", tmp_path, manifest_of(root / "pruned", calibration=calibration))
    assert card.data.datasets == datasets and told in card.text and "/home/me" not in card.content


def test_a_cached_snapshot_is_the_hubs(tmp_path):
    folder = tmp_path / "models--org--name" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    assert of(str(folder), folder).data.base_model == "org/name"


def test_a_config_may_know_the_name_and_a_path_in_it_is_none(tmp_path):
    for written, name in (("org/name", "org/name"), ("/home/me/m", None), ("./a/b", None), ("folder", None), (3, None)):
        for config in (
            {"_name_or_path": written},
            {"model_type": "secateur-packed", "base": {"_name_or_path": written}},
        ):
            assert of(str(tmp_path), tmp_path, **config).data.base_model == name


@pytest.mark.parametrize("name", ['x"\n---\nlicense: mit\n# y', "`a` <b> | [c](d)", "a: &b !!c", "\udcff", "{{x}}"])
def test_a_hostile_name_is_a_name(root, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    manifest = manifest_of(root / "pruned", model=str(folder))
    text = model_card(folder, folder, manifest, {})
    card: Any = ModelCard(text.encode().decode())
    assert card.data.license is None and card.data.base_model is None
    assert card.text.strip().startswith("# `") and card.text.count("\n# ") == 1


@pytest.mark.parametrize(
    "text",
    [
        "---\nlicense: [\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: !!python/name:os.system\n---\n",
        "---\nlicense: " + "[" * 5000 + "\n---\n",
        '---\nlicense: "a\\n---\\nb"\nlanguage: {a: 1}\ntags: [1, {}, "x\\ny"]\nbase_model: ../../x\n---\n',
        "---\nlicense: " + "x" * 5000 + "\n---\n",
        "no metadata",
        "\x00",
    ],
)
def test_a_damaged_card_of_the_model_stops_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    card = of(str(tmp_path), tmp_path)
    assert card.data.license is None and card.data.language is None and card.data.base_model is None
    assert card.data.tags == ["secateur"]


def test_nor_does_one_that_is_not_utf8_or_a_folder(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert of(str(tmp_path), tmp_path).data.license is None
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert of(str(tmp_path), tmp_path).data.license is None


def test_a_manifest_that_is_not_secateurs_is_left_out(tmp_path):
    manifest = {"recipe": {"score": "x"}, "layers": 3, "quantization": [], "rounded": {"bits": "\n"}}
    assert of(str(tmp_path), tmp_path, manifest).data.tags == ["secateur"]


def test_every_method_is_cited_or_is_nobodys():
    methods = {*SCORES, *SEARCHES, *RECONSTRUCTIONS, *QUANTIZATIONS, *METHODS, "tune", "reap"}
    of_ria = {"ria", "ri", "ri-input", "ri-output", "activation", "heuristic", "lsa-published"}
    assert methods - {*PAPERS} == of_ria | {"magnitude", "rtn", "lsa", "cg"}
    assert {*PAPERS} <= methods


# ---------------------------------------------------------------- results


def measured(*models, text, **options):
    return secateur.evaluate([str(model) for model in models], str(text), window=32, card=True, **options)


def test_results_are_written_into_the_cards_of_written_folders(root, tmp_path):
    out = shutil.copytree(root / "pruned", tmp_path / "pruned")
    text = tmp_path / "a|b.txt"
    text.write_text(TEXT)
    with (out / "README.md").open("a") as file:
        file.write("\nMy own words.\n")
    dense = root / "tiny-llama"
    before = (dense / "README.md").read_bytes()
    for limit in (4, 5, 5):
        _, result = measured(dense, out, text=text, limit=limit)
    card = card_of(out)
    assert [found.metric_args["windows"] for found in card.data.eval_results] == [4] * 3 + [5] * 3
    far = result.texts[0].divergence
    figures = [(found.metric_type, found.metric_value) for found in card.data.eval_results[3:]]
    assert figures == [
        ("perplexity", result.perplexity),
        ("kl_divergence_from_dense", far.kl),
        ("top1_agreement_with_dense", far.top1),
    ]
    assert {found.dataset_name for found in card.data.eval_results} == {"a|b.txt"}
    assert card.data.model_name == "pruned" and card.data.license == "other"
    assert f"perplexity | {result.perplexity:,.4g} |" in card.text and "a&#124;b.txt" in card.text
    assert "Nothing has been measured" not in card.text and card.text.endswith("My own words.\n")
    assert "private" not in card.content and str(tmp_path) not in card.content
    assert (dense / "README.md").read_bytes() == before
    assert secateur.verify(out).passed


def test_what_cannot_be_written_to_is_told_before_any_work(root, tmp_path, monkeypatch):
    out = shutil.copytree(root / "pruned", tmp_path / "pruned")
    monkeypatch.setattr("secateur.evaluation.evaluate.load", lambda *_: pytest.fail("a model was read"))
    with pytest.raises(InputError, match="none of .* is a folder that Secateur wrote"):
        measured(root / "tiny-llama", text=root / "notes.txt")
    (out / "README.md").write_text("---\nmodel-index: 3\n---\n")
    with pytest.raises(InputError, match=r"README\.md is no card"):
        measured(out, text=root / "notes.txt")


def test_a_card_without_the_place_for_results_gets_them_as_metadata(root, tmp_path):
    out = shutil.copytree(root / "pruned", tmp_path / "pruned")
    (out / "README.md").write_text("mine\n")
    measured(out, text=root / "notes.txt", limit=2)
    assert card_of(out).text.strip() == "mine" and len(card_of(out).data.eval_results) == 1
