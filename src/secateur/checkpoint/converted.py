"""GGUF files as folders of safetensors: each is converted once, and kept for the next command in the user's cache.

They lie in ``secateur/gguf`` of the cache folder, under the SHA-256 of the file and the versions of what converted it:
a file is known by its content, wherever it lies. The hub's own cache is left alone, since it has a layout, and tools
that list, check and delete what is in there. A folder is used under a lock that is shared, made and removed under one
that is not, and gets its name when it is whole. All of it is safe to delete while nothing runs.
"""

import errno
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import transformers
from safetensors import SafetensorError

from secateur.checkpoint.durable import lock, scratch_folder, sync
from secateur.digests import file_digest
from secateur.errors import Notice
from secateur.files import cache_folder

# To be raised whenever the same file becomes another folder.
VERSION = 1
# So many are kept, and no longer than so many days after they were last used.
KEPT, DAYS = 3, 14


@contextmanager
def converted(file: Path, size: int, make: Callable[[Path], None], scratch: Path | None = None) -> Iterator[Path]:
    """The folder that ``make`` makes of ``file``, for as long as the context is open: from the cache if it is there.

    Where the cache cannot be used, or has no room, the folder is a temporary one, and a notice says why.

    Args:
        file: a GGUF file.
        size: bytes that the folder takes at most.
        make: writes it into an empty folder.
        scratch: where a temporary folder goes.
    """
    try:
        folder, held = _cached(file, size, make)
    except OSError as error:
        said = error.strerror or str(error)
        warnings.warn(f"{file} is converted for this run alone, since it cannot be kept: {said}", Notice, stacklevel=4)
        with scratch_folder(scratch) as folder:
            make(folder)
            yield folder
        return
    with held:
        yield folder


def _cached(file: Path, size: int, make: Callable[[Path], None]) -> tuple[Path, BinaryIO]:
    """The folder in the cache, and the lock that keeps it there."""
    home = _home()
    folder = home / f"{file_digest(file)}-{VERSION}-{transformers.__version__}"
    key = home / f"{folder.name}.lock"
    while True:  # between the two locks another process may remove it
        held = _locked(key, shared=True)
        if folder.is_dir():
            os.utime(folder)
            return folder, held
        held.close()
        with _locked(key, shared=False):
            if not folder.is_dir():  # nor has another process made it meanwhile
                _remove_unused(home, key)
                _make(folder, file, size, make)


def _locked(key: Path, shared: bool) -> BinaryIO:
    if held := lock(key, shared=shared, wait=True):
        return held
    raise OSError(f"{key} cannot be locked")


def _home() -> Path:
    """The folder of them all; raises OSError where there can be none, or others could write to it."""
    try:
        home = cache_folder() / "gguf"
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from None
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.lstat()
    if home.is_symlink() or found.st_uid != getattr(os, "geteuid", int)() or found.st_mode & 0o022:
        raise OSError(f"{home} is a link, or not this user's alone to write to")
    return home


def _make(folder: Path, file: Path, size: int, make: Callable[[Path], None]) -> None:
    if size > (free := shutil.disk_usage(folder.parent).free):
        raise OSError(errno.ENOSPC, f"{folder.parent} has {free / 1e9:.1f} GB left, and it takes {size / 1e9:.1f}")
    warnings.warn(
        f"{file} is converted once, and kept in {folder.parent} until {DAYS} days after its last use",
        Notice,
        stacklevel=6,
    )
    with scratch_folder(folder.parent) as aside:
        model = aside / "model"
        model.mkdir()
        try:
            make(model)
        except SafetensorError as error:  # which hides what the system said
            raise OSError(f"{folder.parent}: {error}") from error
        for path in (*model.iterdir(), model):
            sync(path)
        model.rename(folder)
    sync(folder.parent)


def _remove_unused(home: Path, key: Path) -> None:
    """Remove what was last used long ago, and what is one too many beside that of ``key``, but nothing in use."""
    used = {path: _last_use(path.with_suffix("")) for path in home.glob("*.lock") if path != key}
    for number, path in enumerate(sorted(used, key=lambda path: used[path], reverse=True), 1):
        if (number >= KEPT or used[path] < time.time() - DAYS * 86400) and (held := lock(path)):
            with held, scratch_folder(home) as aside:
                if (folder := path.with_suffix("")).is_dir():
                    folder.rename(aside / "model")  # in one step, so that there is never half a folder
                path.unlink()


def _last_use(folder: Path) -> float:
    return folder.stat().st_mtime if folder.is_dir() else 0.0
