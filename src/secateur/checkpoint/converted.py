"""GGUF files as folders of safetensors: each is converted once, and kept for the next command in the user's cache.

They lie in :mod:`secateur.checkpoint.cache`, under the SHA-256 of the file and the versions of what converted it: a
file is known by its content, wherever it lies. The hub's own cache is left alone, since it has a layout, and tools that
list, check and delete what is in there. A folder is used under a lock that is shared, made and removed under one that
is not, and gets its name when it is whole.
"""

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import transformers
from safetensors import SafetensorError

from secateur.checkpoint.cache import DAYS, cache_of, locked, remove_unused
from secateur.checkpoint.durable import scratch_folder, sync
from secateur.digests import file_digest
from secateur.errors import Notice

# To be raised whenever the same file becomes another folder.
VERSION = 1
# So many are kept.
KEPT = 3


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
    home = cache_of("gguf")
    folder = home / f"{file_digest(file)}-{VERSION}-{transformers.__version__}"
    key = home / f"{folder.name}.lock"
    while True:  # between the two locks another process may remove it
        held = locked(key, shared=True)
        if folder.is_dir():
            os.utime(folder)
            return folder, held
        held.close()
        with locked(key, shared=False):
            if not folder.is_dir():  # nor has another process made it meanwhile
                remove_unused(key, KEPT)
                _make(folder, file, size, make)


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
