"""Where a model folder may be written, and what may be replaced there: only what Secateur wrote, as it wrote it."""

import os
from pathlib import Path

import msgspec

from secateur.checkpoint.layout import CARD, MANIFEST
from secateur.digests import file_digest
from secateur.errors import InputError


class _Written(msgspec.Struct):
    files: dict[str, str]


def check_destination(out: Path, force: bool) -> None:
    """Raise :class:`InputError` when no folder can be put at ``out``, or one is there that may not be replaced.

    An empty folder may be replaced; with ``force`` also one that holds nothing but files that its manifest lists, with
    the bytes that it says, and a card.
    """
    if out.is_symlink():
        raise InputError(
            f"{out} is a link, and no folder is put in place of one: give what it leads to, or another --out"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} exists and is not a folder")
    if not out.exists():
        return
    if out.is_mount():
        raise InputError(f"{out} is where a file system begins, and cannot be replaced: give a folder inside it")
    if _holds(out, Path.cwd()):
        raise InputError(f"{out} holds the current folder, and cannot be replaced: give another --out")
    if not any(out.iterdir()):
        return
    if not force:
        raise InputError(f"{out} exists; give another --out, or --force to replace it")
    if (hasattr(os, "geteuid") and os.geteuid() not in (0, out.stat().st_uid)) or not os.access(out, os.W_OK):
        raise InputError(f"{out} is not yours to change, and cannot be replaced: give another --out")
    _check_written(out)


def _check_written(out: Path) -> None:
    """Raise :class:`InputError` unless all that lies in ``out`` is what Secateur wrote there."""
    remedy = "--force replaces only what Secateur wrote: move it away, or give another --out"
    manifest = out / MANIFEST
    if manifest.is_symlink() or not manifest.is_file():
        raise InputError(f"{out} has no {MANIFEST}, and {remedy}")
    try:
        listed = msgspec.json.decode(manifest.read_bytes(), type=_Written).files
    except (msgspec.DecodeError, RecursionError):
        raise InputError(f"{manifest} does not list the files of its folder, and {remedy}") from None
    for path in sorted(out.iterdir()):
        if path == manifest or (path.name == CARD and path.is_file() and not path.is_symlink()):
            continue
        if path.name not in listed:
            raise InputError(f"{out} holds {path.name}, which {MANIFEST} does not list, and {remedy}")
        if path.is_symlink() or not path.is_file() or file_digest(path) != listed[path.name]:
            raise InputError(f"{path} is no longer as it was written, and {remedy}")


def check_apart(out: Path, source: Path) -> None:
    """Raise :class:`InputError` when ``out`` is, holds or lies in the model's own folder (or file) ``source``.

    Its files may be links, as in the hub's cache: what they lead to counts as well.
    """
    inside = source.is_dir() and any(parent.exists() and parent.samefile(source) for parent in out.absolute().parents)
    files = [source, *(source.iterdir() if source.is_dir() else ())]
    if inside or (out.exists() and any(_holds(out, file) for file in files)):
        raise InputError(f"{out} {'lies in' if inside else 'holds'} the model itself ({source}): give another --out")


def _holds(folder: Path, path: Path) -> bool:
    """Whether ``folder`` is, or has somewhere inside it, what ``path`` leads to."""
    real = path.resolve()
    return any(parent.exists() and parent.samefile(folder) for parent in (real, *real.parents))
