"""Rows of text, or of chats, out of local files, one after the other: whoever asks takes as many as it needs.

Nothing is read further than that, and no row is longer than :data:`MOST_LINE`: a compressed file of a few kilobytes may
hold one line of gigabytes.
"""

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from secateur.data.chats import COLUMNS as CHATS
from secateur.data.chats import Row, row_of
from secateur.errors import InputError, reason

# Characters. A line of JSON is a document, and hardly any is longer than a book of a megabyte.
MOST_LINE = 16 << 20
_CHUNK = 1 << 16
_WANTED = "one object a line is wanted, or a list of them"
# What stands between the elements of a list.
_BETWEEN = re.compile(r"[\s,]*")
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


def read_json(path: Path, column: str | None = None) -> Iterator[Row]:
    """One row per JSON object, of which there is one a line, or one list of them: what is in ``column``."""
    for where, record in _records(path):
        if not isinstance(record, dict):
            raise InputError(f"{where}: not a JSON object with a text in it; {_WANTED}")
        column = column or column_of(str(path), record)
        yield row_of(where, record, column)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """The values in a file of JSON, each with the name of its place."""
    with _text_of(path) as file:
        begun = False
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), ""), 1):
            where = f"{path}, line {number}"
            if not begun and line.lstrip().startswith("["):
                yield from _elements(path, file, line.lstrip()[1:])
                return
            if len(line) == MOST_LINE:
                raise _too_long(where)
            if line.strip():
                begun = True
                with _decoding(where):
                    record = json.loads(line)
                yield where, record


def _elements(path: Path, file: TextIO, read: str) -> Iterator[tuple[str, Any]]:
    """The elements of one list in JSON, of which ``read`` has been read after the bracket that opens it."""
    decoder, place = json.JSONDecoder(), 0
    for number in itertools.count(1):
        where = f"{path}, row {number}"
        while True:
            place = _BETWEEN.match(read, place).end()  # type: ignore[union-attr]
            if read.startswith("]", place):
                return
            try:
                with _decoding(where):
                    record, place = decoder.raw_decode(read, place)
                break
            except InputError:  # or there is more of it
                read, place = read[place:], 0
                if len(read) >= MOST_LINE:
                    raise _too_long(where) from None
                if not (more := file.read(max(_CHUNK, len(read)))):
                    raise
                read += more
        yield where, record


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:  # which may also be a number of too many digits
        raise InputError(f"{where}: not JSON ({reason(error)}); {_WANTED}") from None


def _too_long(where: str) -> InputError:
    return InputError(f"{where}: longer than {MOST_LINE:,} characters, and so no document")


def read_parquet(path: Path, column: str | None = None) -> Iterator[Row]:
    """The rows of ``column``."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        kinds = {f.name: f.type.value_type if arrow.types.is_dictionary(f.type) else f.type for f in schema}
        texts = [name for name, kind in kinds.items() if str(kind) in ("string", "large_string", "string_view")]
        lists = [name for name, kind in kinds.items() if _is_list(kind) and arrow.types.is_struct(kind.value_type)]
        column = column or text_column(str(path), texts, lists)
        if column not in (*texts, *lists):
            raise InputError(f"{path} has no column {column!r} of text or chats: it has {_listed([*texts, *lists])}")
        batches = file.iter_batches(batch_size=256, columns=[column])
        values = itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
        for number, value in enumerate(values, 1):
            yield row_of(f"{path}, row {number}", {column: value}, column)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as parquet: {reason(error)}") from None


def _is_list(kind: Any) -> bool:
    import pyarrow as arrow

    return arrow.types.is_list(kind) or arrow.types.is_large_list(kind)


# By the kind of a file, what reads it: called with the path, how many characters are wanted at most, and the column.
READERS: dict[str, Callable[[Path, int, str | None], Iterable[Row]]] = {
    ".txt": lambda path, most, _: _txt_rows(path, most),
    ".jsonl": lambda path, _, column: read_json(path, column),
    ".json": lambda path, _, column: read_json(path, column),
    ".parquet": lambda path, _, column: read_parquet(path, column),
}
# Those of which each row has columns.
IN_COLUMNS = (".jsonl", ".json", ".parquet")


def column_of(where: str, record: Mapping[str, Any]) -> str:
    """The column that holds the text, by the first row of a data set; see :func:`text_column`."""
    if known := next((name for name in ("text", *CHATS) if name in record), None):
        return known  # it may be empty in this row
    texts = [key for key, value in record.items() if isinstance(value, str)]
    lists = [key for key, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return text_column(where, texts, lists)


def text_column(where: str, texts: Sequence[str], lists: Sequence[str]) -> str:
    """The column that holds the text: ``text``; or the chats; or else the only one that holds strings.

    Args:
        where: what an error names.
        texts: the columns that hold strings.
        lists: the columns that hold lists of objects, as chats are.

    Raises:
        InputError: when that cannot be told.
    """
    for known, columns in ((("text",), texts), (CHATS, lists)):
        if found := next((name for name in known if name in columns), None):
            return found
    likely = [name for name in texts if not _NO_TEXT.fullmatch(name)]
    if len(likely) == 1 and not lists:
        return likely[0]
    raise InputError(
        f"{where} has no column named 'text' nor {' or '.join(map(repr, CHATS))}, and it has "
        f"{_listed([*texts, *lists])}: say which it is (--column)"
    )


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "none that holds text or chats"


def read_rows(path: Path, most: int, column: str | None = None) -> Iterable[Row]:
    """The rows of a local file of any kind that :data:`READERS` knows, as they are asked for.

    Args:
        path: the file.
        most: so many characters are wanted.
        column: which one of those that it has; by default as :func:`text_column` has it.

    Raises:
        InputError: when it is not there, cannot be read, or has no column of text or chats.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return READERS[suffix(path)](path, most, column)
