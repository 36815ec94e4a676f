"""Where text comes from.

A source is named by one string:

- ``c4``, ``wikitext2``, ``ptb``: the corpora of the literature, from the hub, each with its own protocol;
- ``c4:FILE``, ``wikitext2:FILE``, ``ptb:FILE``: the same protocol on a local copy of the rows;
- a ``.txt``, ``.jsonl`` or ``.parquet`` file (the first two also gzipped);
- ``ORG/NAME`` or ``ORG/NAME/CONFIG``: any hub dataset with a text column;
- ``demo``: the demo's news (to calibrate on) and Wikipedia pages (to evaluate on).
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from secateur.data import demo
from secateur.data.readers import READERS, read_jsonl, read_parquet, read_rows, read_txt, suffix, text_column
from secateur.errors import InputError

Purpose = Literal["calibration", "evaluation"]


@dataclass(frozen=True)
class Text:
    """Rows of text and how a protocol makes one text of them.

    Attributes:
        source: the name that the user gave.
        rows: the rows in order.
        separator: what joins them.
        by_document: draw each calibration sample from inside one row (as the literature does for C4)
            rather than from the joined text.
        windows: evaluate on at most the tokens of this many windows, laid end to end; None for all.
    """

    source: str
    rows: Sequence[str]
    separator: str = "\n\n"
    by_document: bool = False
    windows: int | None = None

    @property
    def joined(self) -> str:
        """The whole text."""
        return self.separator.join(self.rows)


@dataclass(frozen=True)
class _Corpus:
    """Where a corpus of the literature lies on the hub: the dataset, a file per purpose, the column."""

    dataset: str
    calibration: str
    evaluation: str
    column: str = "text"
    revision: str | None = None


_CORPORA = {
    "wikitext2": _Corpus(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1/train-00000-of-00001.parquet",
        "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    ),
    "ptb": _Corpus(
        "ptb-text-only/ptb_text_only",
        "penn_treebank/train/0000.parquet",
        "penn_treebank/test/0000.parquet",
        column="sentence",
        revision="refs/convert/parquet",  # the dataset itself is a script, which nothing runs any more
    ),
    "c4": _Corpus(
        "allenai/c4",
        "en/c4-train.00000-of-01024.json.gz",
        "en/c4-validation.00000-of-00008.json.gz",
    ),
}


def load_text(source: str, purpose: Purpose, need: int | None = None) -> Text:
    """Find the text that ``source`` names.

    Args:
        need: how many tokens are wanted at most, if known: an arbitrary hub dataset may be endless.
    Raises:
        InputError: when there is no such file or dataset, it cannot be reached or read, or holds no text.
    """
    name, _, file = source.partition(":")
    if name in _CORPORA:
        rows = _local_copy(name, Path(file)) if file else _from_corpus(name, purpose)
        text = _by_protocol(name, source, rows, purpose)
    elif source == "demo":
        text = Text("demo", demo.news() if purpose == "calibration" else demo.wikipedia())
    elif suffix(Path(source)) in READERS:
        text = Text(source, read_rows(Path(source)))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists():
        text = Text(source, _from_hub(source, purpose, need))
    else:
        raise InputError(
            f"{source} is not text to read: give {', '.join(_CORPORA)}, demo, a {', '.join(READERS)} file, "
            "or a hub dataset as ORG/NAME"
        )
    if not any(row.strip() for row in text.rows):
        raise InputError(f"{source} holds no text")
    return text


def _by_protocol(name: str, source: str, rows: Sequence[str], purpose: Purpose) -> Text:
    """Apply the protocol of SparseGPT, Wanda and RIA, whose data loaders agree, to the rows of a corpus."""
    match name, purpose:
        case "wikitext2", "evaluation":
            return Text(source, rows, "\n\n")
        case "c4", "calibration":
            return Text(source, rows, by_document=True)
        case "c4", "evaluation":
            return Text(source, rows[:1100], " ", windows=256)
        case _:
            return Text(source, rows, " ")


def _local_copy(name: str, path: Path) -> list[str]:
    """The rows of a local copy of a corpus; a plain file has a row per line."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if suffix(path) in (".jsonl", ".parquet"):
        return read_rows(path)
    lines = read_txt(path)[0].splitlines(keepends=True)
    if name == "wikitext2":  # on the hub a row is a line with its newline, and a blank line is empty
        return [line if line.strip() else "" for line in lines]
    return [line.strip() for line in lines]


def _from_corpus(name: str, purpose: Purpose) -> list[str]:
    """The rows of a corpus of the literature, from the hub or its local cache."""
    from huggingface_hub import hf_hub_download

    corpus = _CORPORA[name]
    file = corpus.calibration if purpose == "calibration" else corpus.evaluation
    try:
        path = Path(hf_hub_download(corpus.dataset, file, repo_type="dataset", revision=corpus.revision))
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise _unreachable(f"{name} ({corpus.dataset}, {file})", error) from error
    return read_parquet(path, corpus.column) if path.suffix == ".parquet" else read_jsonl(path, corpus.column)


def _from_hub(source: str, purpose: Purpose, need: int | None) -> list[str]:
    """The first rows of any hub dataset."""
    from datasets import load_dataset

    organisation, name, *config = source.split("/")
    splits = ["train"] if purpose == "calibration" else ["test", "validation", "train"]
    try:
        dataset = load_dataset(f"{organisation}/{name}", *config, streaming=True)
        rows = iter(dataset[next(split for split in splits if split in dataset)])
        first = next(rows)
    except Exception as error:  # as above
        raise _unreachable(source, error) from error
    column = text_column(source, [key for key, value in first.items() if isinstance(value, str)])
    # About four characters make a token: read enough for four times the tokens that are needed.
    return list(_until((row[column] or "" for row in itertools.chain([first], rows)), 16 * need if need else None))


def _until(rows: Iterable[str], characters: int | None) -> Iterator[str]:
    """The first rows that together hold ``characters``."""
    total = 0
    for row in rows:
        yield row
        total += len(row)
        if characters is not None and total >= characters:
            return


def _unreachable(name: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"{name} could not be had from the hub ({reason}); check the name and the connection, "
        "or give a local file: wikitext2:FILE, c4:FILE, ptb:FILE, or a .txt, .jsonl or .parquet file"
    )
