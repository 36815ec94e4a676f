import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest
import torch

from secateur import data
from secateur.data import readers, sources
from secateur.errors import InputError, Notice
from tests import pico

ROWS = ["The first row.", "", "A third, longer row of text.", "Four."]


@pytest.fixture
def tokenizer():
    return pico.tokenizer()


def parquet(path, rows, column="text"):
    pyarrow.parquet.write_table(pyarrow.table({column: rows, "number": list(range(len(rows)))}), path)
    return path


def jsonl(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row, "url": "x"}) + "\n" for row in rows)
    return path


def test_local_files_of_every_kind_hold_the_same_rows(tmp_path):
    expected = "\n\n".join(ROWS)
    for path in (
        jsonl(tmp_path / "a.jsonl", ROWS),
        jsonl(tmp_path / "b.jsonl.gz", ROWS),
        parquet(tmp_path / "c.parquet", ROWS),
    ):
        assert data.load_text(str(path), "evaluation").joined == expected
    (tmp_path / "d.txt").write_text(expected)
    assert data.load_text(str(tmp_path / "d.txt"), "calibration").joined == expected


def test_a_byte_order_mark_and_an_upper_case_suffix_change_nothing(tmp_path):
    (tmp_path / "a.JSONL").write_text('{"text": "words"}\n', encoding="utf-8-sig")
    (tmp_path / "b.TXT").write_text("words", encoding="utf-8-sig")
    for name in ("a.JSONL", "b.TXT"):
        assert data.load_text(str(tmp_path / name), "evaluation").rows == ["words"]


def test_text_may_be_encoded_by_a_dictionary(tmp_path):
    path = parquet(tmp_path / "a.parquet", pyarrow.array(ROWS).dictionary_encode())
    assert data.load_text(str(path), "evaluation").rows == ROWS


def test_the_only_column_of_strings_is_the_text(tmp_path):
    assert data.load_text(str(parquet(tmp_path / "a.parquet", ROWS, "sentence")), "evaluation").rows == ROWS


@pytest.mark.parametrize("dataset", ["wikitext2", "ptb", "c4"])
@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_hub_corpora_are_read_as_the_literature_reads_them(tmp_path, monkeypatch, dataset, purpose):
    asked: dict[str, str] = {}

    def download(repository, file, repo_type, revision):
        asked.update(repository=repository, file=file, revision=revision)
        if file.endswith(".json.gz"):
            return str(jsonl(tmp_path / "x.json.gz", ROWS))
        return str(parquet(tmp_path / "x.parquet", ROWS, "sentence" if dataset == "ptb" else "text"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    text = data.load_text(dataset, purpose)
    separator = "\n\n" if (dataset, purpose) in {("wikitext2", "evaluation"), ("c4", "calibration")} else " "
    assert text.joined == separator.join(ROWS)
    assert text.by_document == ((dataset, purpose) == ("c4", "calibration"))
    assert ("train" in asked["file"]) == (purpose == "calibration")


def test_a_local_copy_of_wikitext_has_the_rows_of_the_hub(tmp_path):
    (tmp_path / "wiki.test.raw").write_text(" \n = Title = \n \n Words . \n")
    text = data.load_text(f"wikitext2:{tmp_path / 'wiki.test.raw'}", "evaluation")
    assert text.rows == ["", " = Title = \n", "", " Words . \n"]


def test_c4_evaluation_is_cut_as_in_the_literature(tmp_path):
    path = jsonl(tmp_path / "c4.jsonl", [f"row {i}" for i in range(1200)])
    text = data.load_text(f"c4:{path}", "evaluation")
    assert (len(text.rows), text.windows) == (1100, 256)


def test_samples_are_drawn_as_the_authors_code_draws_them(tokenizer):
    text = sources.Text("t", ["".join(random.Random(5).choices("abcdef ", k=40))])
    ids = tokenizer(text.joined, return_tensors="pt").input_ids[0]
    for seed in range(20):
        random.seed(seed)
        starts = [random.randint(0, len(ids) - 4 - 1) for _ in range(10)]
        samples = data.calibration_samples(text, tokenizer, 10, 4, seed)
        assert torch.equal(samples, torch.stack([ids[s : s + 4] for s in starts]))


def test_document_samples_are_drawn_as_the_authors_code_draws_them(tokenizer):
    rows = [f"{i} " * (1 + 7 * (i % 3)) for i in range(20)]
    text = sources.Text("t", rows, by_document=True)
    random.seed(4)
    expected = []
    for _ in range(6):
        while True:
            ids = tokenizer(rows[random.randint(0, len(rows) - 1)], return_tensors="pt").input_ids[0]
            if len(ids) > 10:
                break
        start = random.randint(0, len(ids) - 10 - 1)
        expected.append(ids[start : start + 10])
    assert torch.equal(data.calibration_samples(text, tokenizer, 6, 10, seed=4), torch.stack(expected))


def test_seed_decides(tokenizer):
    text = sources.Text("t", ["abcdefgh" * 500])
    draw = [data.calibration_samples(text, tokenizer, 4, 16, seed) for seed in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_windows_cover_the_text_in_order(tokenizer):
    text = sources.Text("t", ["abcdefghij"])
    windows = data.evaluation_windows(text, tokenizer, 4)
    assert tokenizer.decode(windows.flatten()) == "abcdefgh"
    assert len(data.evaluation_windows(text, tokenizer, 4, limit=1)) == 1
    assert len(data.evaluation_windows(sources.Text("t", ["abcdefghij"], windows=1), tokenizer, 4)) == 1
    overlapping = data.evaluation_windows(sources.Text("t", ["abcdefghij"], windows=2), tokenizer, 4, stride=3)
    assert [tokenizer.decode(window) for window in overlapping] == ["abcd", "defg"]  # the cut comes before the windows


def test_too_little_text_says_what_to_do(tokenizer):
    with pytest.raises(InputError, match=r"t has 10 tokens, and 8 samples of 4 need 32: take at most 2 samples"):
        data.calibration_samples(sources.Text("t", ["abcdefghij"]), tokenizer, 8, 4, 0)
    with pytest.raises(InputError, match="none of the 2 documents of t is longer than 4 tokens"):
        data.calibration_samples(sources.Text("t", ["abcd", "ab"], by_document=True), tokenizer, 8, 4, 0)
    with pytest.raises(InputError, match="less than one window of 16"):
        data.evaluation_windows(sources.Text("t", ["abcdefghij"]), tokenizer, 16)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.jsonl", b"\n\n", "holds no text"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"', "broken.jsonl, line 2: not JSON"),
        ("list.jsonl", b"[1]\n", "row 1: not a JSON object .*one object a line"),
        ("cut.json", b'[{"text": "a"}, {"text": "b"}, ', "row 3: not JSON"),
        ("number.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2: no text in 'text'"),
        (
            "two.jsonl",
            b'{"a": "x", "b": "y"}\n',
            "no column named 'text' nor 'messages' or 'conversations', and it has 'a', 'b': say which it is",
        ),
        ("latin.txt", b"\xff\xfe\xfa", "cannot be read as text"),
        ("fake.jsonl.gz", b"not gzip", "cannot be read as text"),
        ("fake.parquet", b"not parquet", "cannot be read as parquet"),
        ("damaged.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:12] + b"\xff" * 20, "cannot be read as text"),
        ("cut.jsonl.gz", gzip.compress(bytes(999), mtime=0)[:-9], "cannot be read as text"),
        ("deep.jsonl", b"[" * 100_000, "row 1: not JSON"),
        ("digits.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "line 1: not JSON"),
        ("half.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', "row 2: not a text, it has half a character"),
        ("null.jsonl", b'{"text": null}\n', "holds no text"),
        ("later.jsonl", b'{"text": null}\n{"text": ["a"]}\n', "line 2, message 1 of 'text': it needs"),
        ("ids.jsonl", b'{"prompt_id": "abc", "n": 3}\n', "no column named 'text' .* it has 'prompt_id'"),
        (
            "chats.jsonl",
            b'{"id": "a", "conversations": [{"from": "human"}]}\n',
            "line 1, message 1 of 'conversations': it needs a text as 'role' and one as 'content'",
        ),
        ("chats2.jsonl", b'{"title": "a", "messages": [{"role": "user"}]}\n', "message 1 of 'messages': it needs"),
        ("both.jsonl", b'{"text": "a"}\n{"text": [{"from": "gpt", "value": "b"}]}\n', "texts in some rows and chats"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        data.load_text(str(tmp_path / name), "calibration")


def test_an_empty_row_may_come_first(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null, "title": "x"}\n{"text": "words", "title": "y"}\n')
    assert data.load_text(str(tmp_path / "a.jsonl"), "calibration").rows == ["", "words"]


def test_a_text_is_read_as_far_as_stated_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_TEXT", 2 << 20)
    monkeypatch.setattr(sources, "MOST_DOCUMENTS", 5 << 20)
    whole = "é" * (1 << 20)  # of two bytes each
    rows = [whole, "more", whole + "more", whole]
    for path in (
        jsonl(tmp_path / "a.jsonl.gz", rows),
        parquet(tmp_path / "b.parquet", rows),
    ):
        with pytest.warns(Notice, match="only the first 2 MB are used"):
            assert "".join(data.load_text(str(path), "evaluation").rows) == whole
        with pytest.warns(Notice) as notices:
            found = data.load_text(f"c4:{path}", "calibration").rows
        assert [len(row) for row in found] == [1 << 20, 4, 1 << 20, (1 << 19) - 4]
        assert "the first 2 MB of row 3" in str(notices[0].message)
        assert "only the first 5 MB are used" in str(notices[1].message)
    (tmp_path / "c.txt").write_text(whole + "x", encoding="utf-8")
    with pytest.warns(Notice, match="first 2 MB"):
        assert data.load_text(str(tmp_path / "c.txt"), "calibration").joined == whole
    (tmp_path / "d.txt").write_text(whole, encoding="utf-8")
    assert data.load_text(str(tmp_path / "d.txt"), "calibration").joined == whole


def test_a_line_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MOST_LINE", 1000)
    path = jsonl(tmp_path / "a.jsonl.gz", ["x" * 10_000])
    with pytest.raises(InputError, match="line 1: longer than 1,000 characters"):
        data.load_text(str(path), "calibration")
    monkeypatch.setattr(readers, "_CHUNK", 100)
    (tmp_path / "b.json").write_text('[{"text": "short"}, {"text": "' + "x" * 10_000)
    with pytest.raises(InputError, match="row 2: longer than 1,000 characters"):
        data.load_text(str(tmp_path / "b.json"), "calibration")


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_a_list_is_as_good_as_lines(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    expected = [*ROWS, 'a "quote", a bracket ] and a brace }']
    rows = [{"text": row, "more": {"n": [number, []]}} for number, row in enumerate(expected)]
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent) + "\n")
        assert data.load_text(str(tmp_path / "a.json"), "calibration").rows == expected


def test_a_column_that_is_named_is_read(tmp_path):
    lines = "".join(json.dumps({"text": "no", "answer": row, "more": "x"}) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    text = data.load_text(str(tmp_path / "a.jsonl"), "calibration", column="answer")
    assert (text.rows, text.column) == (ROWS, "answer")
    with pytest.raises(InputError, match="line 1: no text in 'reply': the columns are 'text', 'answer', 'more'"):
        data.load_text(str(tmp_path / "a.jsonl"), "calibration", column="reply")
    with pytest.raises(InputError, match="no column 'reply' of text or chats: it has 'text'"):
        data.load_text(str(parquet(tmp_path / "b.parquet", ROWS)), "calibration", column="reply")


def test_a_column_or_a_split_where_there_is_none_is_refused():
    data.check_choice(["c4", "ptb:a.jsonl"], "sentence", None)
    data.check_choice(["demo", "org/name/config"], "answer", "dev")
    data.check_choice(["self"], None, None)
    for without in (["c4"], ["demo", "a.txt", "c4:a.txt.gz"], ["self"]):
        with pytest.raises(InputError, match="has no columns to choose from"):
            data.check_choice(without, "text", None)
    with pytest.raises(InputError, match="has no splits to choose from"):
        data.check_choice(["a.jsonl", "wikitext2"], None, "test")


def test_c4_as_it_is_distributed_is_read_as_json(tmp_path):
    path = jsonl(tmp_path / "c4-train.00000-of-01024.json.gz", ROWS)
    assert data.load_text(f"c4:{path}", "calibration").rows == ROWS


def test_ids_that_the_model_does_not_know_are_refused():
    data.check_ids(torch.tensor([[0, 255]]), 256, "t")
    with pytest.raises(InputError, match="makes the id 256 of t, and the model's vocabulary has 256"):
        data.check_ids(torch.tensor([[0, 256]]), 256, "t")


@pytest.mark.parametrize("name", ["missing.txt", "c4:missing.jsonl"])
def test_missing_files_are_refused(name):
    with pytest.raises(InputError, match="there is no file missing"):
        data.load_text(name, "calibration")


def test_what_is_no_source_is_refused():
    with pytest.raises(InputError, match="not text to read"):
        data.load_text("thesis.docx", "calibration")


@pytest.mark.parametrize("name", ["c4", "wikitext2", "ptb"])
def test_an_unreachable_hub_says_what_to_do(monkeypatch, name):
    def download(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(InputError, match=rf"{name}.*no network.*give a local file"):
        data.load_text(name, "calibration")


def test_any_hub_dataset_with_a_text_column(monkeypatch):
    pytest.importorskip("datasets")
    rows = [{"content": "words " * 10, "id": i} for i in range(100)]
    monkeypatch.setattr("datasets.load_dataset", lambda *name, streaming: {"train": rows})
    assert len(data.load_text("some/corpus", "calibration").rows) == 100
    assert len(data.load_text("some/corpus/config", "calibration", need=15).rows) == 4  # 60 characters each

    monkeypatch.setattr("datasets.load_dataset", lambda *name, streaming: {"first": rows, "second": rows})
    with pytest.raises(InputError, match="some/corpus has no split train to read: it has first, second"):
        data.load_text("some/corpus", "calibration")

    assert len(data.load_text("some/corpus", "evaluation", split="second", column="content").rows) == 100
    with pytest.raises(InputError, match="no split third to read: it has first, second"):
        data.load_text("some/corpus", "calibration", split="third")

    def unreachable(*name, streaming):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(InputError, match="some/corpus could not be had"):
        data.load_text("some/corpus", "calibration")


def test_parquet_whose_text_is_no_utf8_is_refused(tmp_path):
    rows = pyarrow.array([b"fine", b"\xb0"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        data.load_text(str(tmp_path / "a.parquet"), "evaluation")
