"""A model writes what it is calibrated on: the same each time, and only once."""

import shutil
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

import secateur
from secateur import data
from secateur.checkpoint import CARD, Source
from secateur.digests import digest
from secateur.errors import InputError, Notice
from secateur.pruning.prepare import draw_samples
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.runtime import selftext
from secateur.runtime.loading import load
from secateur.runtime.selftext import KEPT, WRITTEN, write_samples
from secateur.shrinkage import Shrinkage
from tests import pico
from tests.counting import Counting

CPU, FLOAT = torch.device("cpu"), torch.float32
LENGTH = 16


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "secateur" / "selftext"


@pytest.fixture
def dense(tmp_path):
    return pico.save("llama-gqa-tied", tmp_path / "dense")


def write(folder, samples=KEPT, length=LENGTH, seed=0, **options):
    return write_samples(Source(folder), samples, length, seed, device=CPU, dtype=FLOAT, **options)


def begin_with(folder, letter):
    """Let the tokenizer put ``letter`` before every text; its id."""
    tokenizer = pico.tokenizer()
    number = tokenizer.get_vocab()[letter]
    template = TemplateProcessing(single=f"{letter} $A", special_tokens=[(letter, number)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(folder)
    return number


@pytest.mark.parametrize("name", ["llama-gqa-tied", "opt", "gpt2", "bloom", "gemma2", "qwen3-moe"])
def test_samples_are_what_was_asked_for_whatever_the_family(cache, tmp_path, name):
    folder = pico.save(name, tmp_path / "dense")
    ids = write(folder, 3)
    assert ids.shape == (3, LENGTH) and ids.dtype == torch.int64
    assert int(ids.max()) < pico.VOCABULARY
    assert len({tuple(sample) for sample in ids.tolist()}) == 3


def test_the_same_seed_gives_the_same_and_nobody_elses_draws_matter(cache, dense):
    torch.manual_seed(1)
    before, ids = torch.get_rng_state(), write(dense)
    assert torch.equal(torch.get_rng_state(), before)
    shutil.rmtree(cache)
    torch.manual_seed(2)
    assert torch.equal(write(dense), ids)
    assert not torch.equal(write(dense, seed=1), ids)


def test_the_first_token_is_any_but_a_special_one(cache, dense):
    tokenizer = Source(dense).tokenizer()
    special = tokenizer.get_vocab()["a"]
    tokenizer.add_special_tokens({"pad_token": "a"})
    tokenizer.save_pretrained(dense)
    first = write(dense, 50 * KEPT, 3)[:, 0].tolist()
    assert len(set(first)) > pico.VOCABULARY / 2 and special not in first


def test_every_text_begins_as_the_tokenizer_has_it(cache, dense):
    number = begin_with(dense, "b")
    ids = write(dense)
    assert (ids[:, 0] == number).all() and len({*ids[:, 1].tolist()}) > 1


def test_every_text_begins_with_bos_where_each_window_does(cache, dense):
    tokenizer = pico.tokenizer("~")
    tokenizer.add_bos_token = False
    tokenizer.save_pretrained(dense)
    number = tokenizer.bos_token_id
    assert (write(dense, bos="each")[:, 0] == number).all()
    for bos in ("once", "never"):
        assert not (write(dense, bos=bos)[:, 0] == number).any()


def test_what_its_authors_want_to_be_generated_does_not_matter(cache, dense):
    ids = write(dense)
    shutil.rmtree(cache)
    ends = GenerationConfig(eos_token_id=list(range(pico.VOCABULARY)), do_sample=True, top_k=1, repetition_penalty=2.0)
    ends.save_pretrained(dense)
    assert torch.equal(write(dense), ids)


def test_what_follows_is_drawn_by_the_models_probabilities(cache, dense, monkeypatch):
    """Its tokens are as likely as tokens drawn from the model are on average: by its entropy."""
    monkeypatch.setattr(selftext, "KEPT", WRITTEN)
    model = load(dense)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)  # sharper, so that the likeliest would be far more likely
    model.save_pretrained(dense)
    ids = write(dense, 8 * WRITTEN)
    with torch.no_grad():
        logs = model(ids).logits[:, :-1].log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1).mean()
    nll = -logs.gather(-1, ids[:, 1:, None]).mean()
    assert entropy < 4
    assert abs(nll - entropy) < 0.15


def test_those_of_the_highest_and_lowest_perplexity_are_dropped(cache, dense, monkeypatch):
    kept = write(dense)
    shutil.rmtree(cache)
    monkeypatch.setattr(selftext, "KEPT", WRITTEN)
    written, model = write(dense, WRITTEN), load(dense)
    with torch.no_grad():
        losses = cross_entropy(model(written).logits[:, :-1].flatten(0, 1), written[:, 1:].flatten(), reduction="none")
    order = losses.view(WRITTEN, -1).mean(1).argsort()
    margin = (WRITTEN - KEPT) // 2
    assert torch.equal(kept, written[order[margin:-margin].sort().values])


def test_what_is_written_is_kept_and_few_samples_are_the_first_of_many(cache, dense, monkeypatch):
    few = write(dense, 5)
    monkeypatch.setattr(selftext, "load", lambda *_, **__: pytest.fail("written again"))
    assert torch.equal(write(dense, 5), few)
    assert torch.equal(write(dense, KEPT)[:5], few)
    monkeypatch.setattr(selftext, "load", load)
    many = write(dense, KEPT + 1)
    assert torch.equal(many[:5], few)
    shutil.rmtree(cache)
    assert torch.equal(write(dense, KEPT + 1), many)


def test_other_weights_seeds_and_lengths_are_other_texts(cache, dense, tmp_path):
    write(dense)
    weights = load_file(dense / "model.safetensors")
    write(shutil.copytree(dense, tmp_path / "same"))
    assert len(list(cache.glob("*.lock"))) == 1
    other = shutil.copytree(dense, tmp_path / "other")
    next(iter(weights.values())).flatten()[0] += 1  # a header does not tell
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    write(other)
    write(dense, seed=1)
    write(dense, length=LENGTH + 1)
    assert len(list(cache.glob("*.lock"))) == 4


@pytest.mark.parametrize("harm", ["cut", "other length", "gone"])
def test_a_damaged_text_is_written_again(cache, dense, harm):
    ids = write(dense)
    (file,) = cache.glob("*/ids.safetensors")
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "other length":
        save_file({"ids": ids[:, 1:].contiguous()}, file)
    else:
        shutil.rmtree(file.parent)
    assert torch.equal(write(dense), ids)
    assert torch.equal(load_file(file)["ids"], ids)


def test_a_cache_that_others_can_write_to_is_not_used(cache, dense):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.warns(Notice, match="not kept for the next run"):
        ids = write(dense)
    assert not list(cache.iterdir())
    cache.chmod(0o700)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert torch.equal(write(dense), ids)


def test_what_cannot_be_written_is_refused_before_the_model_is_read(cache, dense, monkeypatch):
    monkeypatch.setattr(selftext, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(InputError, match=r"of memory \(the whole model.*allowed \(--memory\)"):
        write(dense, memory="10kB")
    begin_with(dense, "b")
    with pytest.raises(InputError, match=r"3 tokens or more, not of 2 \(--length\)"):
        write(dense, length=2)
    assert not list(cache.glob("*/ids.safetensors"))


def test_progress_comes_to_its_end(cache, dense):
    progress = Counting()
    write(dense, KEPT + 1, progress=progress)
    assert progress.done == progress.total == 2 * WRITTEN * (LENGTH - 1)


def test_every_command_calibrates_on_it(cache, dense, tmp_path):
    asked: dict[str, Any] = {"calibration": "self", "samples": 4, "length": LENGTH, "dtype": "float32"}
    expected = {
        "source": "self",
        "samples": 4,
        "length": LENGTH,
        "bos": "once",
        "seed": 0,
        "token_ids_sha256": digest(write(dense, 4)),
        "self": selftext.origin(),
    }
    pruned = secateur.prune(dense, tmp_path / "pruned", Recipe(score="wanda", **asked))
    quantized = secateur.quantize(dense, tmp_path / "q", QuantizationRecipe(method="gptq", group_size=16, **asked))
    shrunk = secateur.shrink(dense, tmp_path / "shrunk", Shrinkage(method="activation", sparsity=0.25, **asked))
    for manifest in (pruned, quantized["quantization"], shrunk):
        assert manifest["calibration"] == expected | {"held_out": manifest["calibration"]["held_out"]}
    card = (tmp_path / "pruned" / CARD).read_text()
    assert "4 samples of 16 tokens of text that the model itself wrote, seed 0" in card and "datasets:" not in card


def test_a_mixture_draws_from_each_source_what_that_gives_alone(cache, dense, tmp_path):
    (tmp_path / "a.txt").write_text("Laws that cannot fail say nothing. " * 40)
    recipe = Recipe(reconstruct="cg", calibration=f"{tmp_path / 'a.txt'}:1 self:1", samples=16, length=LENGTH)
    mixed = draw_samples(Source(dense), recipe, 1, CPU)
    ids = torch.cat([*mixed.batches])
    assert mixed.held_out == 2 and mixed.origin and mixed.origin["parts"] == {str(tmp_path / "a.txt"): 8, "self": 8}
    for number, source in enumerate((str(tmp_path / "a.txt"), "self")):
        alone = draw_samples(Source(dense), replace(recipe, calibration=source, samples=8), 8, CPU)
        assert torch.equal(ids[number::2], torch.cat([*alone.batches]))  # so that the guard sees one of each


def test_a_card_tells_each_source_of_a_mixture(cache, dense, tmp_path, monkeypatch):
    (tmp_path / "c4.txt").write_text("Laws that cannot fail say nothing. " * 40)
    mixture = f"c4:{tmp_path / 'c4.txt'}:3 self:1"
    recipe = Recipe(score="wanda", calibration=mixture, samples=4, length=LENGTH)
    secateur.prune(dense, tmp_path / "out", recipe)
    text = (tmp_path / "out" / CARD).read_text()
    assert "a mixture: 75% `c4, a local copy`, 25% text that the model itself wrote, seed 0" in text
    assert str(tmp_path) not in text


def test_a_plan_writes_nothing(cache, dense, monkeypatch):
    monkeypatch.setattr(selftext, "load", lambda *_, **__: pytest.fail("written"))
    recipe = Recipe(score="wanda", calibration="self:1 c4:3", samples=8, length=LENGTH)
    planned = secateur.plan(dense, recipe)
    assert planned.calibration == {"self": 2, "c4": 6} and not cache.exists()
    with pytest.raises(InputError, match="names a source twice"):
        secateur.plan(dense, replace(recipe, calibration="self:1 self:3"))


def test_a_text_that_is_missing_is_missed_before_anything_is_written(cache, dense, monkeypatch):
    monkeypatch.setattr(selftext, "load", lambda *_, **__: pytest.fail("written"))
    recipe = Recipe(calibration="self:1 nowhere.txt:1", samples=8, length=LENGTH)
    with pytest.raises(InputError, match=r"there is no file nowhere\.txt"):
        draw_samples(Source(dense), recipe, 1, CPU)
    assert data.parts_of(recipe.calibration)[0].source == "self"
