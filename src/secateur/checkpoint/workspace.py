"""The hidden folder in which a model folder is made, so that ``out`` is always the old model or the new one, whole.

    .OUT.partial/
        secateur.lock   held by the process that works here
        journal.json    what has been finished: the SHA-256 of every file, and whose work it is
        model/          the folder to come
        old/            the one before, while it gives way on a system that cannot exchange folders in one step

A file is written aside, flushed to the disk and renamed before the journal names it, and the journal is replaced in the
same way: whatever stops the process, all that the journal names is there. The manifest is the last file of the model,
so that a journal which names it is that of a finished model; then ``model`` and ``out`` are exchanged in one step
(``renameat2``), and the folder is removed, journal first. What a killed process leaves is therefore one of

- no journal, or one of work that cannot be resumed: removed by whoever comes next, with a notice (a journal that was
  damaged since is refused instead: what it named may be there);
- a journal of work that can be resumed: kept until a run resumes it, or its user deletes it;
- a finished model that is not at ``out``: the same, and to resume is to put it there, unless ``out`` had stepped aside
  already, when it is put there at once;
- a finished model that is at ``out``: what remains is removed.
"""

import os
import shlex
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from secateur.checkpoint.destination import check_apart, check_destination
from secateur.checkpoint.durable import exchange, lock, replacing, sync
from secateur.checkpoint.layout import MANIFEST
from secateur.digests import file_digest
from secateur.errors import InputError, Notice, reason

LOCK, JOURNAL, MODEL, OLD = "secateur.lock", "journal.json", "model", "old"


class Journal(msgspec.Struct):
    """What a workspace says of itself.

    Attributes:
        command: the words of the command that resumes the work; empty if it cannot be resumed.
        run: whose work it is, as plain data: a run of another kind cannot resume it.
        files: SHA-256 of each finished file, by its path in the workspace.
    """

    command: list[str]
    run: dict[str, Any]
    files: dict[str, str]


class Workspace:
    """The place beside ``out`` where a model folder is made; a context.

    Attributes:
        out: where it goes, absolute.
        folder: the workspace.
        journal: what is finished; until :meth:`begin`, by an earlier run.
    """

    def __init__(self, out: str | Path, source: str | Path, *, force: bool = False, resume: bool = False) -> None:
        """Nothing is done yet.

        Args:
            source: the model that is read, which must lie elsewhere.
            force: a model folder that Secateur wrote may be replaced.
            resume: what an earlier run left unfinished may be continued; else it is refused, by name.

        Raises:
            InputError: when ``out`` is the root of the file system.
        """
        self.out = Path(os.path.normpath(Path(out).absolute()))
        if not self.out.name:
            raise InputError(f"{self.out} cannot be replaced: give a folder inside it as --out")
        self.folder = self.out.with_name(f".{self.out.name}.partial")
        self.journal = Journal([], {}, {})
        self._source, self._force, self._resume, self._resumed = Path(source), force, resume, False

    # ---------------------------------------------------------------- from entering to leaving

    def __enter__(self) -> "Workspace":
        """Check the destination, lock the workspace, and see to what an earlier run left there.

        Raises:
            InputError: when ``out`` cannot be written or replaced, another process writes to it, work that can be
                resumed is there and is not to be, or nobody can tell because the journal is damaged.
        """
        try:
            left = self.folder.is_symlink() or (self.folder.exists() and any(self.folder.iterdir()))
            if left and (self.folder.is_symlink() or not (self.folder / LOCK).exists()):
                raise InputError(f"{self.folder} was not made by Secateur, which needs that name: move it away")
            if not left:  # nothing is made, not even the workspace, when all is refused
                self._check()
            held = lock(self.folder / LOCK)
        except OSError as error:
            raise InputError(f"{self.out} cannot be written: {error.strerror} ({error.filename})") from None
        if held is None:
            raise InputError(f"another process is writing to {self.out}: wait for it, or give another --out")
        self._lock = held
        try:
            self.journal = self._read_journal()
        except InputError:
            self._leave(keep=True)
            raise
        try:
            if left:
                self._take_over()
                self._check()
            self._stamp = _stamp(self.out)
        except BaseException:
            self._leave(keep=self._can_be_resumed())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the workspace, unless it holds work that can be resumed: then the error gets a note that says how.

        What this run did by itself goes as well when its input proved bad.
        """
        try:
            keep = not self._settle() and error is not None and self._can_be_resumed()
            if isinstance(error, InputError) and not self._resumed and not self._finished:
                keep = False
            if error is not None and keep:
                error.add_note(self._remains())
        except BaseException:
            self._lock.close()
            raise
        self._leave(keep)

    def _leave(self, keep: bool) -> None:
        try:
            if not keep:
                self._clear()
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
        except OSError as error:  # no reason to let fail what has come so far
            warnings.warn(f"{self.folder} could not be removed ({error}): delete it", Notice, stacklevel=3)
        finally:
            self._lock.close()

    def _check(self) -> None:
        if self._source.exists():  # else it is the name of one on the hub
            check_apart(self.out, self._source)
        check_destination(self.out, self._force)

    def _read_journal(self) -> Journal:
        """The journal of an earlier run, if it left one. Damaged, it is no reason to remove what may be finished."""
        try:
            return msgspec.json.decode((self.folder / JOURNAL).read_bytes(), type=Journal)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if any(path.is_file() and path.name not in (LOCK, JOURNAL) for path in self.folder.rglob("*")):
                raise InputError(
                    f"the journal of {self.folder} is damaged ({reason(error)}), so that what a run to {self.out} had "
                    "finished there cannot be told: delete that folder to begin anew"
                ) from None
        return Journal([], {}, {})

    def _take_over(self) -> None:
        left = any(path.name != LOCK for path in self.folder.iterdir())
        self._resumed = not self._settle() and self._can_be_resumed()
        if self._resumed and not self._resume:
            raise InputError(f"a run to {self.out} was cut short: {self._remains()}")
        if left and not self._resumed:
            self._clear()
            warnings.warn(f"removed {self.folder}, which a run that was cut short had left", Notice, stacklevel=4)

    def _settle(self) -> bool:
        """Complete an exchange that had begun; whether the model that was made here is at ``out``."""
        if not self._finished:
            return False
        if not self.out.exists() and (self.folder / OLD).exists():
            (self.folder / MODEL).rename(self.out)
            sync(self.out.parent)
        return (self.out / MANIFEST).is_file() and file_digest(self.out / MANIFEST) == self._finished

    @property
    def _finished(self) -> str | None:
        """The digest of the manifest, once the model is finished."""
        return self.journal.files.get(f"{MODEL}/{MANIFEST}")

    def _remains(self) -> str:
        files = sum(name.startswith(f"{MODEL}/") for name in self.journal.files)
        return (
            f"{files} finished files of it are in {self.folder}; `{shlex.join(self.journal.command)} --resume` goes on "
            "with them, and to begin anew delete that folder"
        )

    def _can_be_resumed(self) -> bool:
        return bool(self.journal.command) and any(not name.startswith(f"{MODEL}/") for name in self.journal.files)

    def _clear(self) -> None:
        """Remove all but the lock; the journal first, so that nothing names what is no longer there."""
        (self.folder / JOURNAL).unlink(missing_ok=True)
        sync(self.folder)
        self.journal = Journal([], {}, {})
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    # ---------------------------------------------------------------- work

    def begin(self, run: Mapping[str, Any] | None = None, command: Sequence[str] = ()) -> None:
        """Say whose work it is. What an earlier run finished is there if it was the same; else there is nothing.

        Args:
            run: all that the bytes of the model depend on, as plain data.
            command: the words that resume it, ``--resume`` excepted; none if it cannot be resumed.

        Raises:
            InputError: when an earlier run that is to be resumed was another one.
        """
        before, now = self.journal.run, dict(run or {})
        if not self._resumed:
            self.journal = Journal(list(command), now, {})
        elif others := list(differences(before, now)):
            changed = " and ".join(key for key in before | now if before.get(key) != now.get(key))
            raise InputError(
                f"the run to resume differed in its {changed}, and so was another one: {'; '.join(others[:3])}"
            )
        (self.folder / MODEL).mkdir(exist_ok=True)
        for path in (*self.folder.iterdir(), *(self.folder / MODEL).iterdir()):
            if path.is_file() and str(path.relative_to(self.folder)) not in (*self.journal.files, LOCK):
                path.unlink()  # begun, and not finished
        self._write_journal()

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A file to write, which is finished, durable and in the journal under ``name`` when the context ends well."""
        with replacing(self.folder / name) as path:
            yield path
        self.journal.files[name] = file_digest(self.folder / name)
        self._write_journal()

    def intact(self, name: str) -> bool:
        """Whether the file ``name`` was finished and has the bytes that it had then."""
        path = self.folder / name
        return name in self.journal.files and path.is_file() and file_digest(path) == self.journal.files[name]

    def _write_journal(self) -> None:
        with replacing(self.folder / JOURNAL) as path:
            path.write_bytes(msgspec.json.format(msgspec.json.encode(self.journal), indent=1))

    def put_in_place(self) -> None:
        """Give the finished model its name; what was there is removed when the context is left.

        Raises:
            InputError: when something else has come to lie there since the work began.
        """
        model = self.folder / MODEL
        if self.out.exists() and _stamp(self.out) != self._stamp:
            raise InputError(f"{self.out} was changed while the new model was made: move it away")
        if not self._stamp or not self.out.exists():
            model.rename(self.out)
        elif not exchange(model, self.out):
            old = self.folder / OLD
            self.out.rename(old)
            try:
                model.rename(self.out)
            except OSError:
                old.rename(self.out)
                raise
        sync(self.out.parent)
        sync(self.folder)


def _stamp(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What tells that a folder has changed: number on the disk, size and time of each entry; none if there is none."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    stats = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Where two pieces of plain data differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from differences(before.get(key), now.get(key), f"{where} {key}".strip())
    elif before != now:
        yield f"{where} was {before}, and is {now}"
