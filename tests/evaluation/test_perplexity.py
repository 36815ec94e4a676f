import math
from types import SimpleNamespace

import pytest
import torch

import secateur
from secateur.checkpoint import Source
from secateur.errors import InputError
from secateur.recipe import Recipe
from secateur.runtime.kernels import KERNELS
from secateur.runtime.offloading import offloaded_bytes
from secateur.runtime.sparse_linear import SparseLinear, has_triton
from tests import pico, reads


@pytest.fixture
def text(tmp_path):
    (tmp_path / "t.txt").write_text("A law should be able to fail. " * 30)
    return str(tmp_path / "t.txt")


def test_it_agrees_with_a_direct_computation(tmp_path, text):
    folder = pico.save("llama-gqa-tied", tmp_path / "m")
    (result,) = secateur.evaluate(folder, text, window=50)[0].texts
    model, tokenizer = pico.build("llama-gqa-tied").double(), pico.tokenizer()
    ids = tokenizer.encode("A law should be able to fail. " * 30)
    losses = []
    for start in range(0, len(ids) - 49, 50):
        window = ids[start : start + 50]
        with torch.no_grad():
            probabilities = model(torch.tensor([window])).logits[0].softmax(-1)
        losses += [-math.log(probabilities[i, window[i + 1]]) for i in range(49)]
    assert result.tokens == len(losses) == 18 * 49
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert result.nll == pytest.approx(math.log(result.perplexity))


def test_a_precision_is_asked_for_when_a_model_is_loaded(tmp_path, text, monkeypatch):
    dense = pico.save("llama-mha", tmp_path / "dense")  # float32, of which nothing runs packed
    secateur.prune(dense, tmp_path / "pruned", Recipe(score="magnitude"))
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    ran, genuine = set(), SparseLinear.forward

    def forward(self, inputs):
        ran.add(inputs.dtype)
        return genuine(self, inputs)

    monkeypatch.setattr(SparseLinear, "forward", forward)
    (result,) = secateur.evaluate(tmp_path / "packed", text, window=50, dtype="bfloat16")
    packed = has_triton() if torch.cuda.is_available() else bool(KERNELS)
    assert result.dtype == "bfloat16" and ran == ({torch.bfloat16} if packed else set())
    with pytest.raises(InputError, match="'int3' is not one of auto, float32"):
        secateur.evaluate(tmp_path / "none", text, dtype="int3")


def test_several_models_read_the_same_text(tmp_path, text):
    folders = [pico.save("llama-mha", tmp_path / str(seed), seed=seed) for seed in (0, 1, 0)]
    a, b, c = secateur.evaluate(folders, text, window=32, limit=3)
    assert a.perplexity == c.perplexity != b.perplexity
    assert a.texts[0].windows == 3
    assert {r.texts[0].tokens_sha256 for r in (a, b, c)} == {a.texts[0].tokens_sha256}


def test_the_window_is_the_models_context_by_default(tmp_path, text):
    folder = pico.save("llama-mha", tmp_path / "m")
    assert secateur.evaluate(folder, text)[0].texts[0].window == 128
    with pytest.raises(InputError, match="window of 129 tokens does not fit"):
        secateur.evaluate(folder, text, window=129)


@pytest.mark.parametrize("stride", [1, 7, 20])
def test_with_a_stride_every_token_is_predicted_once_and_with_more_context(tmp_path, text, stride):
    folder = pico.save("llama-gqa-tied", tmp_path / "m")
    (result,) = secateur.evaluate(folder, text, window=20, stride=stride, limit=9)[0].texts
    model, tokenizer = pico.build("llama-gqa-tied").double(), pico.tokenizer()
    ids = tokenizer.encode("A law should be able to fail. " * 30)
    losses = {}
    for start in range(0, 9 * stride, stride):
        with torch.no_grad():
            probabilities = model(torch.tensor([ids[start : start + 20]])).logits[0].softmax(-1)
        for place in range(1, 20):  # the first window that reaches a token gives it the most context
            if stride == 20 or start + place not in losses:
                losses[start + place] = -math.log(probabilities[place - 1, ids[start + place]])
    assert result.tokens == len(losses) == 19 + 8 * min(stride, 19)
    assert result.perplexity == pytest.approx(math.exp(sum(losses.values()) / len(losses)), rel=1e-4)


def test_a_stride_of_a_window_is_none(tmp_path, text):
    folder = pico.save("llama-mha", tmp_path / "m")
    a, b = (secateur.evaluate(folder, text, window=32, stride=stride)[0].texts[0] for stride in (None, 32))
    assert (a.nll, a.tokens_sha256, a.tokens) == (b.nll, b.tokens_sha256, b.tokens)
    with pytest.raises(InputError, match="stride of 33 tokens does not fit windows of 32"):
        secateur.evaluate(folder, text, window=32, stride=33)


@pytest.mark.parametrize("bos", ["each", "once", "never"])
def test_bos_is_seen_and_not_predicted(tmp_path, text, bos):
    folder = pico.save("gemma3", tmp_path / "m")
    pico.tokenizer("~").save_pretrained(folder)
    (result,) = secateur.evaluate(folder, text, window=20, bos=bos)[0].texts
    model, ids = pico.build("gemma3").double(), pico.tokenizer("~").encode("A law should be able to fail. " * 30)
    begins, ids = ids[:1], ids[0 if bos == "once" else 1 :]
    taken = 19 if bos == "each" else 20
    losses = []
    for start in range(0, len(ids) - taken + 1, taken):
        window = torch.tensor([(begins if bos == "each" else []) + ids[start : start + taken]])
        with torch.no_grad():
            logs = model(window).logits[0].log_softmax(-1)
        losses += [-logs[place, token].item() for place, token in enumerate(window[0, 1:])]
    assert (result.bos, result.tokens) == (bos, len(losses))
    assert result.nll == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_pruned_model_reads_what_its_dense_model_reads(tmp_path, text):
    dense = pico.save("gemma3", tmp_path / "dense")
    pico.tokenizer("~").save_pretrained(dense)
    recipe = Recipe(score="wanda", calibration=text, samples=2, length=16)
    assert secateur.prune(dense, tmp_path / "pruned", recipe)["calibration"]["bos"] == "each"
    models = [dense, tmp_path / "pruned"]
    one, other = (result.texts[0] for result in secateur.evaluate(models, text, window=16, card=True))
    card = (tmp_path / "pruned" / "README.md").read_text()
    assert "seed 0, each of which begins with BOS" in card and "window 16, stride 15, bos each" in card
    assert one.bos == other.bos == "each" and one.tokens_sha256 == other.tokens_sha256
    assert other.divergence is not None
    with pytest.raises(InputError, match="'twice' is none of auto, each, once, never"):
        secateur.evaluate(dense, text, bos="twice")  # type: ignore[arg-type]


@pytest.mark.parametrize("free", [0, 10**5, 10**12])
@pytest.mark.filterwarnings("ignore::secateur.errors.Notice")
def test_memory_changes_the_batch_and_not_the_result(tmp_path, text, monkeypatch, free):
    folder = pico.save("llama-mha", tmp_path / "m")
    expected = secateur.evaluate(folder, text, window=32)[0].perplexity
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    assert secateur.evaluate(folder, text, window=32)[0].perplexity == pytest.approx(expected, rel=1e-6)


def test_nothing_to_evaluate_is_refused(tmp_path, text):
    for ask in (lambda: secateur.evaluate(tmp_path, text, limit=0), lambda: secateur.evaluate(tmp_path, task_limit=0)):
        with pytest.raises(InputError, match="limit must be at least 1, not 0"):
            ask()
    with pytest.raises(InputError, match="no model to evaluate"):
        secateur.evaluate([], text)


# Batches of other shapes round otherwise: in bfloat16 by so much.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.01}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", pico.ALL)
@pytest.mark.filterwarnings("ignore::secateur.errors.Notice")
def test_a_block_at_a_time_is_the_whole_model(name, dtype, tmp_path, text):
    folder = pico.save(name, tmp_path / "m", getattr(torch, dtype))
    memory = str(offloaded_bytes(Source(folder), getattr(torch, dtype), torch.device("cpu")))
    whole, parts = (secateur.evaluate(folder, text, window=32, dtype=dtype, memory=m)[0] for m in (None, memory))
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=TOLERANCE[dtype])
    assert parts.texts[0].tokens_sha256 == whole.texts[0].tokens_sha256


@pytest.mark.parametrize("name", ["llama-gqa-tied", "qwen3-moe"])
@pytest.mark.filterwarnings("ignore::secateur.errors.Notice")
def test_all_texts_take_one_reading(name, tmp_path, text, monkeypatch):
    folder = pico.save(name, tmp_path / "m")
    (tmp_path / "other.txt").write_text("Other words, in another text. " * 30)
    texts = [text, str(tmp_path / "other.txt")]
    expected = secateur.evaluate(folder, texts, window=20, stride=10)[0]
    memory = str(offloaded_bytes(Source(folder), torch.float32, torch.device("cpu")))
    with reads.counted(monkeypatch) as read:
        (result,) = secateur.evaluate(folder, texts, window=20, stride=10, memory=memory)
    assert 0.9 * reads.size_of(folder) < read[folder] <= reads.size_of(folder)
    for ours, theirs in zip(result.texts, expected.texts, strict=True):
        assert (ours.tokens, ours.tokens_sha256) == (theirs.tokens, theirs.tokens_sha256)
        assert ours.block_nll == pytest.approx(theirs.block_nll, rel=1e-5)
