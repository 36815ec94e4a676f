"""Files and folders that change in one step and stay changed without power; locks that end with their process."""

import ctypes
import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from secateur.errors import Notice

try:
    import fcntl
except ImportError:  # a system without it goes without locks
    fcntl = None  # type: ignore[assignment]

_SCRATCH = ".secateur-"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def sync(path: Path) -> None:
    """Wait until a file, or the list of what a folder holds, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that becomes ``path`` in one step when the context ends well, and else is gone."""
    aside = path.with_name(f".{path.name}.new")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def exchange(first: Path, second: Path) -> bool:
    """Let two folders change names in one step; false, and nothing done, where the system has no such step.

    Raises:
        OSError: when it has, and it failed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # an older kernel, or a file system without it
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def lock(path: Path, *, shared: bool = False, wait: bool = False) -> BinaryIO | None:
    """Hold the lock file ``path``, made if need be with its folder, until the result is closed; None if another does.

    The system lets go of it when the process ends, however it ends.

    Args:
        shared: others may hold it as well, if they share it too.
        wait: until no other does.
    """
    how = 0 if fcntl is None else (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("ab")
        except FileNotFoundError:  # whoever held it has just removed the folder
            continue
        try:
            if fcntl is not None:
                fcntl.flock(file, how)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except FileNotFoundError:  # removed as well: this file locks nothing any more
            file.close()
        except OSError:
            return file  # a file system without locks


@contextmanager
def scratch_folder(inside: Path | None) -> Iterator[Path]:
    """A new folder for as long as the context is open: in the folder ``inside``, or where temporary files go.

    Those of killed processes are removed from there, with a notice.
    """
    home = Path(tempfile.gettempdir()) if inside is None else inside
    for path in home.glob(f"{_SCRATCH}*"):
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            warnings.warn(f"removed {path}, which a process that was killed had left", Notice, stacklevel=5)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=home) as name:
        held = lock(Path(name) / "new")
        (Path(name) / "new").rename(Path(name) / "lock")  # so that whoever sees it cannot have it
        try:
            yield Path(name)
        finally:
            if held is not None:
                held.close()


def _is_abandoned(scratch: Path) -> bool:
    """Whether this user's process that made the folder is gone, as far as locks can tell."""
    try:
        own = scratch.lstat().st_uid == getattr(os, "geteuid", int)()
        if not own or scratch.is_symlink() or not (scratch / "lock").is_file():
            return False
        if (held := lock(scratch / "lock")) is None:
            return False
        with held:
            if (again := lock(scratch / "lock")) is None:
                return True
            again.close()  # locks lock nothing here
            return False
    except OSError:
        return False  # it is being removed just now
