"""Where the token that begins a text stands: in each window, once, or never."""

from types import SimpleNamespace

import pytest
import torch

from secateur import data
from secateur.data.sources import Text
from secateur.data.tokens import tokens_kept_in
from secateur.errors import InputError
from tests import pico

TEXT = Text("t", ["abcdefghij"])


@pytest.fixture
def tokenizer():
    return pico.tokenizer("~")


def decoded(tokenizer, windows):
    return [tokenizer.decode(window) for window in windows]


def test_each_window_begins_with_it_and_they_cover_the_text(tokenizer):
    def windows(**options):
        return decoded(tokenizer, data.evaluation_windows(TEXT, tokenizer, 4, **options))

    assert windows(bos="once") == ["~abc", "defg"]
    assert windows(bos="never") == ["abcd", "efgh"]
    assert windows(bos="each") == ["~abc", "~def", "~ghi"]
    assert windows(bos="each", stride=2) == ["~abc", "~cde", "~efg", "~ghi"]
    assert windows(bos="each", limit=1) == ["~abc"]
    assert decoded(tokenizer, data.evaluation_windows(Text("t", TEXT.rows, windows=2), tokenizer, 4, bos="each")) == [
        "~abc",
        "~def",
    ]
    with pytest.raises(InputError, match="less than one window of 11"):
        data.evaluation_windows(TEXT, tokenizer, 12, bos="each")


@pytest.mark.parametrize("by_document", [False, True])
def test_each_sample_begins_with_it_and_goes_on_with_the_text(tokenizer, by_document):
    text = Text("t", TEXT.rows, by_document=by_document)
    samples = decoded(tokenizer, data.calibration_samples(text, tokenizer, 2, 5, 0, "each"))
    assert all(sample[0] == "~" and sample[1:] in "abcdefghij" and len(sample) == 5 for sample in samples)


@pytest.mark.parametrize("by_document", [False, True])
@pytest.mark.parametrize("bos", ["once", "never"])
def test_a_sample_has_it_where_the_text_has_it(tokenizer, bos, by_document):
    text, drawn = Text("t", TEXT.rows, by_document=by_document), ""
    for seed in range(20):
        drawn += "".join(decoded(tokenizer, data.calibration_samples(text, tokenizer, 2, 5, seed, bos)))
    assert ("~" in drawn) == (bos == "once")


@pytest.mark.parametrize(
    ("family", "bos", "settled"),
    [
        ("gemma3_text", "~", "each"),
        ("gemma2", "~", "each"),
        ("gemma2", None, "once"),
        ("llama", "~", "once"),
        ("gpt2", None, "once"),
    ],
)
def test_the_checkpoint_says_what_auto_is(family, bos, settled):
    config = SimpleNamespace(model_type=family)
    assert data.settle_bos("auto", pico.tokenizer(bos), config) == settled
    for asked in ("once", "never"):
        assert data.settle_bos(asked, pico.tokenizer(bos), config) == asked


def test_a_tokenizer_without_one_cannot_put_it_in_each_window():
    with pytest.raises(InputError, match="has no token that begins a text"):
        data.settle_bos("each", pico.tokenizer(), SimpleNamespace(model_type="llama"))


@pytest.mark.parametrize("bos", ["each", "once", "never"])
def test_token_ids_that_are_kept_know_the_protocol(tokenizer, tmp_path, bos):
    expected = data.evaluation_windows(TEXT, tokenizer, 4, bos=bos)
    with tokens_kept_in(tmp_path):
        data.evaluation_windows(TEXT, tokenizer, 4, bos="never" if bos == "once" else "once")
        for _ in range(2):
            assert torch.equal(data.evaluation_windows(TEXT, tokenizer, 4, bos=bos), expected)
    assert len(list(tmp_path.iterdir())) == 2
