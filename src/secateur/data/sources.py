"""Where text comes from.

A source is named by one string:

- ``c4``, ``wikitext2``, ``ptb``: the corpora of the literature, from the hub, each with its own protocol;
- ``c4:FILE``, ``wikitext2:FILE``, ``ptb:FILE``: the same protocol on a local copy of the rows;
- a ``.txt``, ``.jsonl`` or ``.parquet`` file (the first two also gzipped);
- ``ORG/NAME`` or ``ORG/NAME/CONFIG``: any hub dataset with a text column;
- ``demo``: the demo's news (to calibrate on) and Wikipedia pages (to evaluate on).

To calibrate, ``self`` is one more, which is no text, and several may be mixed: see :mod:`secateur.data.mixtures`.
"""

import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.data import demo
from secateur.data.mixtures import SELF
from secateur.data.readers import READERS, column_of, read_jsonl, read_parquet, read_rows, read_txt, suffix
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
    name, path = source.partition(":")[0], local_file(source)
    if name in _CORPORA:
        most = MOST_DOCUMENTS if (name, purpose) == ("c4", "calibration") else MOST_TEXT
        rows = _local_copy(name, path) if path else _from_corpus(name, purpose)
        if (name, purpose) == ("c4", "evaluation"):
            rows = itertools.islice(rows, 1100)
        text = _by_protocol(name, source, _first(rows, most, source), purpose)
    elif source == "demo":
        text = Text("demo", demo.news() if purpose == "calibration" else demo.wikipedia())
    elif path:
        text = Text(source, _first(read_rows(path, MOST_TEXT), MOST_TEXT, source))
    else:
        text = Text(source, _first(_from_hub(source, purpose, need), MOST_TEXT, source))
    if not any(row.strip() for row in text.rows):
        raise InputError(f"{source} holds no text")
    return text


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


def _by_protocol(name: str, source: str, rows: Sequence[str], purpose: Purpose) -> Text:
    """Apply the protocol of SparseGPT, Wanda and RIA, whose data loaders agree, to the rows of a corpus."""
    match name, purpose:
        case "wikitext2", "evaluation":
            return Text(source, rows, "\n\n")
        case "c4", "calibration":
            return Text(source, rows, by_document=True)
        case "c4", "evaluation":
            return Text(source, rows, " ", windows=256)
        case _:
            return Text(source, rows, " ")


def _first(rows: Iterable[str], most: int, source: str) -> list[str]:
    """The rows that together have at most so many bytes; the last is cut there, and it is said."""
    taken: list[str] = []
    left = most
    for row in rows:
        try:
            content = row.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{source}, row {len(taken) + 1}: not a text, it has half a character ({error})") from None
        limit = min(left, MOST_TEXT)  # a single document is tokenized as a whole, as a text is
        taken.append(row if len(content) <= limit else content[:limit].decode(errors="ignore"))
        if len(content) > limit:
            what = f"the first {most >> 20} MB" if limit == left else f"the first {limit >> 20} MB of row {len(taken)}"
            warnings.warn(f"of {source} only {what} are used", Notice, stacklevel=3)
        left -= len(content)
        if left < 0:
            break
    return taken


def _local_copy(name: str, path: Path) -> Iterable[str]:
    """The rows of a local copy of a corpus; a plain file has a row per line."""
    if suffix(path) in (".json", ".jsonl", ".parquet"):
        return read_rows(path, MOST_TEXT)
    lines = read_txt(path, MOST_TEXT).splitlines(keepends=True)
    if name == "wikitext2":  # on the hub a row is a line with its newline, and a blank line is empty
        return [line if line.strip() else "" for line in lines]
    return [line.strip() for line in lines]


def _from_corpus(name: str, purpose: Purpose) -> Iterator[str]:
    """The rows of a corpus of the literature, from the hub or its local cache."""
    from huggingface_hub import hf_hub_download

    corpus = _CORPORA[name]
    file = corpus.calibration if purpose == "calibration" else corpus.evaluation
    try:
        path = Path(hf_hub_download(corpus.dataset, file, repo_type="dataset", revision=corpus.revision))
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise _unreachable(f"{name} ({corpus.dataset}, {file})", error) from error
    return read_parquet(path, corpus.column) if path.suffix == ".parquet" else read_jsonl(path, corpus.column)


def _from_hub(source: str, purpose: Purpose, need: int | None) -> Iterator[str]:
    """The first rows of any hub dataset."""
    from datasets import load_dataset

    organisation, name, *config = source.split("/")
    splits = ["train"] if purpose == "calibration" else ["test", "validation", "train"]
    try:
        dataset = load_dataset(f"{organisation}/{name}", *config, streaming=True)
        split = next((split for split in splits if split in dataset), None)
        rows = iter(dataset[split]) if split else iter(())
        first: Mapping[str, Any] = next(rows, {})
    except Exception as error:  # as above
        raise _unreachable(source, error) from error
    if not first:
        held = f"{split} is empty" if split else f"it has {', '.join(map(str, dataset)) or 'none at all'}"
        raise InputError(f"{source} has no split {' or '.join(splits)} to read: {held}")
    column = column_of(source, first)
    # About four characters make a token: read enough for four times the tokens that are needed.
    return _until(_column(source, itertools.chain([first], rows), column), 16 * need if need else None)


def _column(source: str, rows: Iterable[Mapping[str, Any]], column: str) -> Iterator[str]:
    """The texts in ``column`` of the rows of a hub dataset, which may fail at any of them."""
    try:
        for number, row in enumerate(rows, 1):
            if not isinstance(text := row.get(column) or "", str):
                raise InputError(f"{source}, row {number}: no text in {column!r}")
            yield text
    except InputError:
        raise
    except Exception as error:  # as above
        raise _unreachable(source, error) from error


def _until(rows: Iterable[str], characters: int | None) -> Iterator[str]:
    """The first rows that together hold ``characters``."""
    total = 0
    for row in rows:
        yield row
        total += len(row)
        if characters is not None and total >= characters:
            return


def _unreachable(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name} could not be had from the hub ({reason(error)}); check the name and the connection, "
        "or give a local file: wikitext2:FILE, c4:FILE, ptb:FILE, or a .txt, .jsonl or .parquet file"
    )
