"""Rows of text out of local files, one after the other: whoever asks takes as many as it needs.

Nothing is read further than that, and no row is longer than :data:`MOST_LINE`: a compressed file of a few kilobytes may
hold one line of gigabytes.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from secateur.errors import InputError, reason

# Characters. A line of JSON is a document, and hardly any is longer than a book of a megabyte.
MOST_LINE = 16 << 20
# Names of columns that hold strings, but no text.
_NO_TEXT = re.compile(r"(.*[_-])?(id|uuid|url|hash)", re.IGNORECASE)


def suffix(path: Path) -> str:
    """The kind of a file: its suffix, or the one before ``.gz``."""
    return (path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix).lower()


@contextmanager
def _text_of(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file, gzipped or not, open; raises :class:`InputError` when it turns out to be something else."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix.lower() == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            yield file
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as text: {reason(error)}") from None


def read_txt(path: Path, most: int) -> str:
    """The first ``most`` characters of a plain file, and one more if there are more."""
    with _text_of(path) as file:
        return file.read(most + 1)


def _txt_rows(path: Path, most: int) -> Iterator[str]:
    """A plain file is one row."""
    yield read_txt(path, most)


def read_jsonl(path: Path, column: str | None = None) -> Iterator[str]:
    """One row per line: the text in ``column`` of its JSON object; none where it is null."""
    with _text_of(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), ""), 1):
            where = f"{path}, line {number}"
            if len(line) == MOST_LINE:
                raise InputError(f"{where}: longer than {MOST_LINE:,} characters, and so no document")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # which may also be a number of too many digits
                raise InputError(f"{where}: not JSON ({reason(error)})") from None
            if not isinstance(record, dict):
                raise InputError(f"{where}: not a JSON object with a text in it; one object a line is wanted")
            column = column or column_of(str(path), record)
            if column not in record or not isinstance(record[column], str | None):
                raise InputError(f"{where}: no text in {column!r}")
            yield record[column] or ""


def read_parquet(path: Path, column: str | None = None) -> Iterator[str]:
    """The rows of ``column``."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        values = {f.name: f.type.value_type if arrow.types.is_dictionary(f.type) else f.type for f in schema}
        texts = [name for name, kind in values.items() if str(kind) in ("string", "large_string", "string_view")]
        lists = [f.name for f in schema if arrow.types.is_list(f.type) and arrow.types.is_struct(f.type.value_type)]
        column = column or text_column(str(path), texts, lists)
        if column not in texts:
            raise InputError(f"{path} has no column {column!r} of text")
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            yield from (row or "" for row in batch.column(0).to_pylist())
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as parquet: {reason(error)}") from None


# By the kind of a file, what reads it: called with the path, and how many characters are wanted at most.
READERS: dict[str, Callable[[Path, int], Iterable[str]]] = {
    ".txt": _txt_rows,
    ".jsonl": lambda path, most: read_jsonl(path),
    ".json": lambda path, most: read_jsonl(path),
    ".parquet": lambda path, most: read_parquet(path),
}


def column_of(where: str, record: Mapping[str, Any]) -> str:
    """The column that holds the text, by the first row of a data set; see :func:`text_column`."""
    if "text" in record:
        return "text"  # it may be null in this row
    texts = [key for key, value in record.items() if isinstance(value, str)]
    lists = [key for key, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return text_column(where, texts, lists)


def text_column(where: str, texts: Sequence[str], lists: Sequence[str]) -> str:
    """The column that holds the text: ``text``, or else the only one that holds strings.

    Args:
        where: what an error names.
        texts: the columns that hold strings.
        lists: the columns that hold lists of objects, as chats are.

    Raises:
        InputError: when that cannot be told, or the rows are chats.
    """
    if "text" in texts:
        return "text"
    if lists:
        raise InputError(
            f"{where} holds chats or other lists ({', '.join(map(repr, lists))}), and no column 'text': write what the "
            "model's chat template makes of each (tokenizer.apply_chat_template) into one"
        )
    likely = [name for name in texts if not _NO_TEXT.fullmatch(name)]
    if len(likely) == 1:
        return likely[0]
    held = f"several or none that may be it: {', '.join(map(repr, texts))}" if texts else "none that holds strings"
    raise InputError(f"{where} has no column named 'text', and {held}")


def read_rows(path: Path, most: int) -> Iterable[str]:
    """The rows of a local file of any kind that :data:`READERS` knows, as they are asked for.

    Args:
        path: the file.
        most: so many characters are wanted.

    Raises:
        InputError: when it is not there, cannot be read, or has no column of text.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return READERS[suffix(path)](path, most)
