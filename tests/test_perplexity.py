import math

import pytest
import torch

import secateur
from secateur.errors import InputError
from tests import pico


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
