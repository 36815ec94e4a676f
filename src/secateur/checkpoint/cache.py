"""Folders in the user's cache for what can be made again, each under a key that says what it is made of.

They lie in ``secateur/KIND`` of the cache folder, where nobody else may write. One is used under a lock of its own, and
removed when it has not been used for long, or is one too many. All of it is safe to delete while nothing runs.
"""

import os
import time
from pathlib import Path
from typing import BinaryIO

from secateur.checkpoint.durable import lock, scratch_folder
from secateur.files import cache_folder

# None is kept for longer than so many days after its last use.
DAYS = 14


def cache_of(kind: str) -> Path:
    """The folder of all of one kind; raises OSError where there can be none, or others could write to it."""
    try:
        home = cache_folder() / kind
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from None
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.lstat()
    if home.is_symlink() or found.st_uid != getattr(os, "geteuid", int)() or found.st_mode & 0o022:
        raise OSError(f"{home} is a link, or not this user's alone to write to")
    return home


def locked(key: Path, *, shared: bool) -> BinaryIO:
    """Hold the lock file ``key``, whoever has to be waited for; raises OSError where it cannot be had."""
    if held := lock(key, shared=shared, wait=True):
        return held
    raise OSError(f"{key} cannot be locked")


def remove_unused(key: Path, kept: int) -> None:
    """Remove what was last used long ago, and all but the last ``kept``, that of ``key`` included; nothing in use."""
    home = key.parent
    used = {path: _last_use(path.with_suffix("")) for path in home.glob("*.lock") if path != key}
    for number, path in enumerate(sorted(used, key=lambda path: used[path], reverse=True), 1):
        if (number >= kept or used[path] < time.time() - DAYS * 86400) and (held := lock(path)):
            with held, scratch_folder(home) as aside:
                if (folder := path.with_suffix("")).is_dir():
                    folder.rename(aside / "removed")  # in one step, so that there is never half a folder
                path.unlink()


def _last_use(folder: Path) -> float:
    return folder.stat().st_mtime if folder.is_dir() else 0.0
