"""Rows of text out of local files."""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from secateur.errors import InputError


def suffix(path: Path) -> str:
    """The kind of a file: its suffix, or the one before ``.gz``."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, gzipped or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from map(str, file)


def read_txt(path: Path) -> list[str]:
    """A plain file is one row."""
    return ["".join(lines_of(path))]


def read_jsonl(path: Path, column: str | None = None) -> list[str]:
    """One row per line: the text in ``column`` of its JSON object."""
    rows: list[str] = []
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: not a JSON object with a text in it")
        column = column or text_column(str(path), [key for key, value in record.items() if isinstance(value, str)])
        if not isinstance(record.get(column), str):
            raise InputError(f"{path}, line {number}: no text in {column!r}")
        rows.append(record[column])
    return rows


def read_parquet(path: Path, column: str | None = None) -> list[str]:
    """The rows of ``column``."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        schema = parquet.read_schema(path)
        texts = [f.name for f in schema if arrow.types.is_string(f.type) or arrow.types.is_large_string(f.type)]
        column = column or text_column(str(path), texts)
        return [row or "" for row in parquet.read_table(path, columns=[column]).column(0).to_pylist()]
    except arrow.ArrowException as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from None


READERS: dict[str, Callable[[Path], list[str]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def text_column(where: str, columns: Sequence[str]) -> str:
    """The column that holds the text: ``text``, or else the only one that holds strings."""
    if "text" in columns:
        return "text"
    if len(columns) == 1:
        return columns[0]
    raise InputError(f"{where} has no column named 'text', but {', '.join(map(repr, columns)) or 'none'} with strings")


def read_rows(path: Path) -> list[str]:
    """The rows of a local file of any kind that :data:`READERS` knows.

    Raises:
        InputError: when it is not there, cannot be read, or has no column of text.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        return READERS[suffix(path)](path)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None
