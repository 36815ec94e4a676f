import json

import pytest
import torch

import secateur
from secateur.calibrate.divergence import divergences
from secateur.checkpoint import Source
from secateur.console.evaluation import evaluation_table
from secateur.evaluation.comparison import document
from secateur.runtime.offloading import offloaded_bytes
from tests import pico

TEXT = "A law should be able to fail. " * 30


@pytest.fixture
def text(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    return str(tmp_path / "t.txt")


def direct(windows):
    """KL and agreement per token of two models, in double precision, with all logits in memory."""
    with torch.no_grad():
        p, q = (
            pico.build("llama-gqa-tied", seed=seed).double()(torch.tensor(windows)).logits[:, :-1].log_softmax(-1)
            for seed in (0, 1)
        )
    return (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)


@pytest.mark.parametrize("stride", [50, 7])
def test_it_agrees_with_a_direct_computation(tmp_path, text, stride):
    folders = [pico.save("llama-gqa-tied", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    dense, model = (one.texts[0] for one in secateur.evaluate(folders, text, window=50, stride=stride))
    ids = pico.tokenizer().encode(TEXT)
    kl, same = direct([ids[start : start + 50] for start in range(0, len(ids) - 49, stride)])
    kl, same = (torch.cat([each[0], each[1:, -stride:].flatten()]) for each in (kl, same))
    assert dense.divergence is None
    found = model.divergence
    assert found and found.kl_low and found.kl_high and found.top1_low is not None and found.top1_high is not None
    assert len(kl) == model.tokens
    assert found.kl == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found.top1 == pytest.approx(same.double().mean().item(), abs=1.5 / model.tokens)
    assert found.kl_low < found.kl < found.kl_high
    assert 0 <= found.top1_low <= found.top1 <= found.top1_high <= 1


def test_divergence_is_never_negative_and_zero_from_itself():
    torch.manual_seed(0)
    p, q = 3 * torch.randn(2, 600, 40)
    both = [torch.cat(each) for each in zip(*divergences(p, q), strict=True)]
    assert both[0].shape == both[1].shape == (600,)
    assert both[0].min() > 0
    ((zero, same),) = divergences(p[:9], p[:9] + 5)  # a constant added to logits is no other distribution
    assert zero.abs().max() < 1e-5 and same.all()


@pytest.mark.parametrize(
    ("name", "bounded"), [*((name, False) for name in pico.ALL), ("gemma2", True), ("bloom", True)]
)
@pytest.mark.filterwarnings("ignore::secateur.errors.Notice")
def test_what_is_kept_of_the_dense_model_has_its_logits(name, bounded, tmp_path, text):
    folder = pico.save(name, tmp_path / "m")
    least = offloaded_bytes(Source(folder), torch.float32, torch.device("cpu"))
    memory = str(2 * least) if bounded else None
    _, again = secateur.evaluate([folder, folder], [text, text], window=32, limit=6, memory=memory)
    for found in (each.divergence for each in again.texts):
        assert found and abs(found.kl) < 1e-6
        assert found.top1 > 0.99


def test_the_dense_model_need_not_be_among_the_results(tmp_path, text):
    folders = [pico.save("llama-mha", tmp_path / str(seed), seed=seed) for seed in (0, 1, 2)]
    _, *among = secateur.evaluate(folders, text, window=32)
    aside = secateur.evaluate(folders[1:], text, window=32, dense=folders[0])
    assert [one.model for one in aside] == [one.model for one in among] == list(map(str, folders[1:]))
    assert [one.texts[0].divergence for one in aside] == [one.texts[0].divergence for one in among]


def test_other_vocabularies_and_other_windows_have_none(tmp_path, text):
    folders = [pico.save("llama-mha", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    wider = pico.save("llama-mha", tmp_path / "wider")
    model = pico.build("llama-mha")
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(wider)
    found = secateur.evaluate([*folders, wider], text, window=32)
    assert [one.texts[0].divergence is None for one in found] == [True, False, True]


def test_tables_and_documents_have_it_where_there_is_one(tmp_path, text):
    folders = [pico.save("llama-mha", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    results = secateur.evaluate(folders, text, window=32)
    far = results[1].texts[0].divergence
    assert far
    first, second = json.loads(json.dumps(document(results)))["models"]
    assert first["texts"][0]["divergence"] is None
    assert second["texts"][0]["divergence"]["kl"] == far.kl
    plain = evaluation_table(results).plain()
    assert "KL, nats" in plain and f"{far.top1:.1%}" in plain
    assert "KL, nats" not in evaluation_table(results[:1]).plain()
