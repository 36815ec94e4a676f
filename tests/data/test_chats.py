"""Chats become what the model's own template makes of them, wherever they come from."""

import json

import pyarrow
import pyarrow.parquet
import pytest

import secateur
from secateur import data
from secateur.errors import InputError
from secateur.recipe import Recipe
from tests import pico

BOS = "~"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 is even) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}\n{% endfor %}"
)
CHATS = [
    [{"role": "user", "content": "What is a law?"}, {"role": "assistant", "content": "What can fail."}],
    [{"role": "user", "content": "And a test?"}, {"role": "assistant", "content": "The same."}],
]
EXPECTED = [
    "~<user>What is a law?\n<assistant>What can fail.\n",
    "~<user>And a test?\n<assistant>The same.\n",
]
NAMES = {"user": "human", "assistant": "gpt"}
SHARED = [[{"from": NAMES[message["role"]], "value": message["content"]} for message in chat] for chat in CHATS]


@pytest.fixture
def tokenizer():
    tokenizer = pico.tokenizer(BOS)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def written(path, column, chats):
    rows = [{"id": "x", "title": "y", column: chat} for chat in chats]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("column", "chats"), [("messages", CHATS), ("conversations", SHARED), ("messages", SHARED)])
def test_they_are_read_from_files_of_every_kind(tmp_path, tokenizer, kind, column, chats):
    text = data.load_text(written(tmp_path / f"a{kind}", column, chats), "calibration")
    assert text.rendered(tokenizer).rows == EXPECTED


def test_another_column_may_be_named_and_an_empty_chat_is_none(tmp_path, tokenizer):
    path = written(tmp_path / "a.jsonl", "dialogue", [*CHATS, []])
    assert data.load_text(path, "calibration", column="dialogue").rendered(tokenizer).joined == "".join(EXPECTED)
    with pytest.raises(InputError, match="no column named 'text'"):
        data.load_text(path, "calibration")
    assert data.load_text(written(tmp_path / "b.jsonl", "messages", [[], *CHATS]), "calibration").chats == CHATS
    with pytest.raises(InputError, match="holds no text"):
        data.load_text(written(tmp_path / "c.jsonl", "messages", [[]]), "calibration")


def test_special_tokens_stand_where_the_template_puts_them(tmp_path, tokenizer):
    text = data.load_text(written(tmp_path / "a.jsonl", "messages", CHATS), "evaluation")
    size = len("".join(EXPECTED))
    (once,) = data.evaluation_windows(text, tokenizer, size)
    assert tokenizer.decode(once) == "".join(EXPECTED)
    (each,) = data.evaluation_windows(text, tokenizer, size, bos="each")
    assert each.tolist() == once.tolist()  # and not two of them at the beginning


def test_what_a_template_cannot_write_is_refused(tmp_path, tokenizer):
    turned = [CHATS[0], CHATS[1][::-1]]
    text = data.load_text(written(tmp_path / "a.jsonl", "messages", turned), "calibration")
    with pytest.raises(InputError, match=r"a.jsonl, chat 2, is none that .* takes: roles must alternate"):
        text.rendered(tokenizer)
    with pytest.raises(InputError, match=r"a.jsonl holds chats, and .* has no chat template"):
        text.rendered(pico.tokenizer())


@pytest.mark.parametrize(
    "message",
    ["words", {"role": "user"}, {"role": 1, "content": "a"}, {"from": "human", "value": None}, {"content": ["a"]}],
)
def test_what_is_no_message_is_named(tmp_path, message):
    path = written(tmp_path / "a.jsonl", "messages", [CHATS[0], [CHATS[0][0], message]])
    with pytest.raises(InputError, match="line 2, message 2 of 'messages': it needs a text as 'role' and one"):
        data.load_text(path, "calibration")


def test_the_day_makes_no_difference(tmp_path, tokenizer):
    tokenizer.chat_template = (
        "{%- macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro -%}"
        "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}{{ today }}, {{ day() }}"
    )
    text = data.load_text(written(tmp_path / "a.jsonl", "messages", CHATS[:1]), "calibration")
    assert text.rendered(tokenizer).rows == ["26 Jul 2024, 2024-07-26"]


def test_a_template_stays_in_its_sandbox(tmp_path, tokenizer):
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    text = data.load_text(written(tmp_path / "a.jsonl", "messages", CHATS), "calibration")
    with pytest.raises(InputError, match="unsafe"):
        text.rendered(tokenizer)


def test_a_model_is_calibrated_and_measured_on_them(tmp_path, tokenizer):
    dense = pico.save("llama-mha", tmp_path / "dense")
    tokenizer.save_pretrained(dense)
    path = written(tmp_path / "a.jsonl", "messages", CHATS * 20)
    recipe = Recipe(score="wanda", calibration=path, column="messages", samples=4, length=32)
    manifest = secateur.prune(dense, tmp_path / "pruned", recipe)
    assert manifest["recipe"]["column"] == "messages"
    (result,) = secateur.evaluate(tmp_path / "pruned", path, column="messages", window=32)
    assert (result.texts[0].column, result.texts[0].split) == ("messages", None)
    assert result.texts[0].text_sha256 == data.digest("".join(EXPECTED) * 20)
    with pytest.raises(InputError, match="a.jsonl has no splits"):
        secateur.prune(dense, tmp_path / "other", Recipe(calibration=path, split="train", samples=4, length=32))
