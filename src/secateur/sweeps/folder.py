"""The folder of a sweep: what is finished lies there, by what it is.

    OUT/
        sweep.lock      held by the process that sweeps, and by those that compute for it
        rows/ID.json    what became of a finished row
        models/ID/      what steps have made of a model, while rows need it or because it is kept
        kept/ID         says that it is
        steps/ID.json   what the last of these steps did
        tokens/         token ids of texts
        results.json, results.csv, results.md, results.tex

An ID is a digest of all that a row depends on, so that a grid that has changed finds the rows that are still its own.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from secateur.checkpoint.durable import lock, replacing
from secateur.digests import digest
from secateur.errors import InputError
from secateur.files import read_object
from secateur.sweeps.results import Results
from secateur.sweeps.tables import comma_separated, latex, markdown, table
from secateur.sweeps.work import Outcome, decode_outcome

LOCK = "sweep.lock"


@dataclass(frozen=True)
class Folder:
    """A sweep's folder, which this process holds.

    Attributes:
        path: where it is.
        lock: the descriptor of its lock.
    """

    path: Path
    lock: int

    def outcome(self, row: str) -> Outcome | None:
        """What is filed under the ID ``row``; None if nothing is."""
        path = self.path / "rows" / f"{row}.json"
        if not path.exists():
            return None
        try:
            return msgspec.convert(read_object(path)["outcome"], Outcome)
        except (InputError, KeyError, msgspec.ValidationError) as error:
            raise InputError(f"{path} is damaged ({error}): delete it, and the row is computed again") from None

    def model(self, id: str) -> Path:
        """Where the model of the ID lies, if it is there."""
        return self.path / "models" / id

    def keep_model(self, id: str) -> None:
        """Say that the model of the ID, which is there, is to stay."""
        mark = self.path / "kept" / id
        mark.parent.mkdir(exist_ok=True)
        mark.touch()

    def kept_models(self) -> set[str]:
        """The models that are to stay; one that somebody has deleted is none of them any more."""
        marks = list((self.path / "kept").glob("*"))
        for mark in marks:
            if not self.model(mark.name).exists():
                mark.unlink()
        return {mark.name for mark in marks if mark.exists()}

    def keep(self, row: str, identity: Mapping[str, Any], outcome: str) -> Outcome:
        """File what became of a row; one that failed is only known of now, and tried again the next time."""
        found = decode_outcome(outcome)
        if not found.failure:
            rows = self.path / "rows"
            rows.mkdir(exist_ok=True)
            with replacing(rows / f"{row}.json") as path:
                path.write_text(json.dumps({"row": identity, "outcome": json.loads(outcome)}, indent=1), "utf-8")
        return found

    def write(self, results: Results) -> None:
        """Write the results in every form."""
        found = table(results)
        forms = {
            "json": json.dumps(results.to_dict(), indent=1) + "\n",
            "csv": comma_separated(results),
            "md": markdown(found),
            "tex": latex(found),
        }
        for kind, text in forms.items():
            with replacing(self.path / f"results.{kind}") as path:
                path.write_text(text, "utf-8")


@contextmanager
def claimed(path: Path) -> Iterator[Folder]:
    """The folder ``path``, made if need be, for this process alone as long as the context is open.

    Raises:
        InputError: when it is no sweep's, or another process has it.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} exists and is not a folder")
    if path.exists() and any(path.iterdir()) and not (path / LOCK).exists():
        raise InputError(f"{path} holds other things than a sweep: give another --out")
    if (held := lock(path / LOCK)) is None:
        raise InputError(f"another process is sweeping in {path}: wait for it, or give another --out")
    with held:
        yield Folder(path, held.fileno())


def identifier(identity: Mapping[str, Any]) -> str:
    """A digest of plain data, as the name of a file."""
    return digest(json.dumps(identity, sort_keys=True))[:24]
