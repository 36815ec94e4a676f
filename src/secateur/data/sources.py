"""Where text comes from.

A source is named by one string:

- ``c4``, ``wikitext2``, ``ptb``: the corpora of the literature, from the hub, each with its own protocol;
- ``c4:FILE``, ``wikitext2:FILE``, ``ptb:FILE``: the same protocol on a local copy of the rows;
- a ``.txt``, ``.json``, ``.jsonl`` or ``.parquet`` file (but for the last also gzipped);
- ``ORG/NAME`` or ``ORG/NAME/CONFIG``: any hub dataset;
- ``demo``: the demo's news (to calibrate on) and Wikipedia pages (to evaluate on).

Rows of files and of hub datasets are texts or chats. The column that holds them may be named, and the split of a hub
dataset.

To calibrate, ``self`` is one more, which is no text, and several may be mixed: see :mod:`secateur.data.mixtures`.
"""

import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from secateur.data import demo
from secateur.data.chats import Chat, Row, Templated, characters, render, row_of
from secateur.data.mixtures import SELF
from secateur.data.readers import (
    IN_COLUMNS,
    READERS,
    column_of,
    read_json,
    read_parquet,
    read_rows,
    read_txt,
    suffix,
)
from secateur.errors import InputError, Notice, reason

# Bytes of UTF-8. A text is tokenized as a whole, which takes some 250 bytes of memory for each of its own;
# WikiText-2, the longest that the literature treats so, has 11 MB.
MOST_TEXT = 12 << 20
# Of documents only those are tokenized that are drawn. The part of C4 that the literature draws from has 0.8 GB.
MOST_DOCUMENTS = 1 << 30

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
        chats: in place of rows, which a tokenizer makes of them.
        templated: whether that has been done, so that special tokens stand in the text already.
        column: the column that the user named, where the source has columns.
        split: the split, where it has splits.
    """

    source: str
    rows: Sequence[str]
    separator: str = "\n\n"
    by_document: bool = False
    windows: int | None = None
    chats: Sequence[Chat] = ()
    templated: bool = False
    column: str | None = None
    split: str | None = None

    @property
    def joined(self) -> str:
        """The whole text."""
        return self.separator.join(self.rows)

    def rendered(self, tokenizer: Templated) -> "Text":
        """The same with what the template of ``tokenizer`` makes of each chat as a row; itself where there are none.

        Raises:
            InputError: when there is no template, or it refuses a chat.
        """
        if not self.chats:
            return self
        rows = render(self.chats, tokenizer, self.source)
        return replace(self, rows=rows, separator="", chats=(), templated=True)  # a template ends what it writes


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


def load_text(
    source: str, purpose: Purpose, need: int | None = None, *, column: str | None = None, split: str | None = None
) -> Text:
    """Find the text that ``source`` names.

    Args:
        need: how many tokens are wanted at most, if known: an arbitrary hub dataset may be endless.
        column: of the text or the chats, where the source has columns; see :func:`check_choice`.
        split: of hub datasets.
    Raises:
        InputError: when there is no such file or dataset, it cannot be reached or read, or holds no text.
    """
    name, path = source.partition(":")[0], local_file(source)
    rows: Iterable[Row]
    column, split = column if _has_columns(source) else None, split if _has_splits(source) else None
    if name in _CORPORA:
        most = MOST_DOCUMENTS if (name, purpose) == ("c4", "calibration") else MOST_TEXT
        rows = _local_copy(name, path, column) if path else _from_corpus(name, purpose)
        if (name, purpose) == ("c4", "evaluation"):
            rows = itertools.islice(rows, 1100)
        text = _by_protocol(name, source, purpose)
    else:
        most, text = MOST_TEXT, Text(source, ())
        if source == "demo":
            rows = demo.news() if purpose == "calibration" else demo.wikipedia()
        elif path:
            rows = read_rows(path, MOST_TEXT, column)
        else:
            rows = _from_hub(source, purpose, need, column, split)
    taken = _first(rows, most, source)
    texts, chats = [row for row in taken if isinstance(row, str)], [row for row in taken if not isinstance(row, str)]
    if any(row.strip() for row in texts):
        if chats:
            raise InputError(f"{source} has texts in some rows and chats in others: only one of them can be used")
    elif not chats:
        raise InputError(f"{source} holds no text")
    return replace(text, rows=() if chats else texts, chats=chats, column=column, split=split)


def check_choice(sources: Iterable[str], column: str | None, split: str | None) -> None:
    """Raise :class:`InputError` if a column or a split is named, and none of ``sources`` has any."""
    named = [*sources]
    if column is not None and not any(map(_has_columns, named)):
        raise InputError(
            f"{', '.join(named)} has no columns to choose from (--column {column}): files of {', '.join(IN_COLUMNS)} "
            "have some, and hub datasets"
        )
    if split is not None and not any(map(_has_splits, named)):
        raise InputError(f"{', '.join(named)} has no splits to choose from (--split {split}): hub datasets have some")


def _has_columns(source: str) -> bool:
    """Whether its rows have columns of which one may be named: those of the literature's corpora are known."""
    name, _, file = source.partition(":")
    return _has_splits(source) or suffix(Path(file if name in _CORPORA else source)) in IN_COLUMNS


def _has_splits(source: str) -> bool:
    return source not in _CORPORA and hub_dataset(source) is not None


def local_file(source: str) -> Path | None:
    """The file of this machine that ``source`` names; None where the text comes from the hub or a wheel.

    Raises:
        InputError: when there is no such file, or nothing of that name can be text.
    """
    name, _, file = source.partition(":")
    if name in _CORPORA or source == "demo":
        path = Path(file) if file else None
    elif suffix(Path(source)) in READERS:
        path = Path(source)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists():
        path = None
    else:
        raise InputError(
            f"{source} is not text to read: give {', '.join(_CORPORA)}, demo, a {', '.join(READERS)} file, "
            f"or a hub dataset as ORG/NAME (to calibrate, {SELF} as well, or several with shares: 'c4:0.5 {SELF}:0.5')"
        )
    if path is not None and not path.is_file():
        raise InputError(f"there is no file {path}")
    return path


def hub_dataset(source: str) -> str | None:
    """The hub's name of the data set that ``source`` names; None of a local file, a wheel's text, or no text."""
    if source in _CORPORA:
        return _CORPORA[source].dataset
    if ":" in source or source in ("demo", SELF) or suffix(Path(source)) in READERS:
        return None
    return "/".join(source.split("/")[:2])


def public_name(source: str) -> str:
    """What may be told of ``source`` to anyone: of a file on this machine its last name alone."""
    name, _, file = source.partition(":")
    if file and name in _CORPORA:
        return f"{name}, a local copy"
    return source if source in _CORPORA or hub_dataset(source) else Path(source).name


def _by_protocol(name: str, source: str, purpose: Purpose) -> Text:
    """The protocol of SparseGPT, Wanda and RIA, whose data loaders agree, for the rows of a corpus, still to come."""
    match name, purpose:
        case "wikitext2", "evaluation":
            return Text(source, (), "\n\n")
        case "c4", "calibration":
            return Text(source, (), by_document=True)
        case "c4", "evaluation":
            return Text(source, (), " ", windows=256)
        case _:
            return Text(source, (), " ")


def _first(rows: Iterable[Row], most: int, source: str) -> list[Row]:
    """The rows that together have at most so many bytes; the last is cut there, if it is no chat, and it is said."""
    taken: list[Row] = []
    left = most
    for number, row in enumerate(rows, 1):
        try:
            content = characters(row).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{source}, row {number}: not a text, it has half a character ({error})") from None
        limit = min(left, MOST_TEXT)  # a single document is tokenized as a whole, as a text is
        if len(content) <= limit:
            taken.append(row)
        elif isinstance(row, str):
            taken.append(content[:limit].decode(errors="ignore"))
        if len(content) > limit:
            what = f"the first {most >> 20} MB" if limit == left else f"the first {limit >> 20} MB of row {number}"
            warnings.warn(f"of {source} only {what} are used", Notice, stacklevel=3)
        left -= len(content)
        if left < 0:
            break
    return taken


def _local_copy(name: str, path: Path, column: str | None) -> Iterable[Row]:
    """The rows of a local copy of a corpus; a plain file has a row per line."""
    if suffix(path) in IN_COLUMNS:
        return read_rows(path, MOST_TEXT, column)
    lines = read_txt(path, MOST_TEXT).splitlines(keepends=True)
    if name == "wikitext2":  # on the hub a row is a line with its newline, and a blank line is empty
        return [line if line.strip() else "" for line in lines]
    return [line.strip() for line in lines]


def _from_corpus(name: str, purpose: Purpose) -> Iterator[Row]:
    """The rows of a corpus of the literature, from the hub or its local cache."""
    from huggingface_hub import hf_hub_download

    corpus = _CORPORA[name]
    file = corpus.calibration if purpose == "calibration" else corpus.evaluation
    try:
        path = Path(hf_hub_download(corpus.dataset, file, repo_type="dataset", revision=corpus.revision))
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise _unreachable(f"{name} ({corpus.dataset}, {file})", error) from error
    return read_parquet(path, corpus.column) if path.suffix == ".parquet" else read_json(path, corpus.column)


def _from_hub(source: str, purpose: Purpose, need: int | None, column: str | None, split: str | None) -> Iterator[Row]:
    """The first rows of any hub dataset."""
    from datasets import load_dataset

    organisation, name, *config = source.split("/")
    splits = [split] if split else ["train"] if purpose == "calibration" else ["test", "validation", "train"]
    try:
        dataset = load_dataset(f"{organisation}/{name}", *config, streaming=True)
        found = next((split for split in splits if split in dataset), None)
        rows = iter(dataset[found]) if found else iter(())
        first: Mapping[str, Any] = next(rows, {})
    except Exception as error:  # as above
        raise _unreachable(source, error) from error
    if not first:
        held = f"{found} is empty" if found else f"it has {', '.join(map(str, dataset)) or 'none at all'} (--split)"
        raise InputError(f"{source} has no split {' or '.join(splits)} to read: {held}")
    column = column or column_of(source, first)
    # About four characters make a token: read enough for four times the tokens that are needed.
    return _until(_column(source, itertools.chain([first], rows), column), 16 * need if need else None)


def _column(source: str, rows: Iterable[Mapping[str, Any]], column: str) -> Iterator[Row]:
    """What is in ``column`` of the rows of a hub dataset, which may fail at any of them."""
    try:
        for number, row in enumerate(rows, 1):
            yield row_of(f"{source}, row {number}", row, column)
    except InputError:
        raise
    except Exception as error:  # as above
        raise _unreachable(source, error) from error


def _until(rows: Iterable[Row], most: int | None) -> Iterator[Row]:
    """The first rows that together hold so many characters."""
    total = 0
    for row in rows:
        yield row
        total += len(characters(row))
        if most is not None and total >= most:
            return


def _unreachable(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name} could not be had from the hub ({reason(error)}); check the name (ORG/NAME/CONFIG where there are "
        "several configs) and the connection, or give a local file: wikitext2:FILE, c4:FILE, ptb:FILE, or a "
        f"{', '.join(READERS)} file"
    )
