"""What the manifest of a written folder records of the other files there, and which of them are no longer so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from secateur.checkpoint.layout import ADAPTERS, CARD, COMPANIONS, INDEX, MANIFEST, TEMPLATES
from secateur.digests import file_digest
from secateur.errors import InputError
from secateur.files import MOST_BYTES_OF_LISTS, member, read_as, read_object

# What whoever loads a model looks for by name.
_READ = {*COMPANIONS, *ADAPTERS, TEMPLATES, INDEX}


class _Recorded(msgspec.Struct, frozen=True):
    files: dict[str, str] | None = None


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a model folder, as plain data; empty where there is none."""
    path = member(folder, MANIFEST)
    return read_object(path, MOST_BYTES_OF_LISTS) if path else {}


def changed_files(folder: Path, digests: Mapping[str, str], weights: bool = False) -> list[str]:
    """The names of files that are not as they were written, are gone, or were added and are read by loaders.

    Args:
        folder: the model folder.
        digests: SHA-256 by name, of every file that was written but the manifest.
        weights: whether those of weights count, and their index; else only that none was added.

    Raises:
        InputError: when one of them is no regular file.
    """
    names = [name for name in digests if weights or not _holds_weights(name)]
    paths = {name: member(folder, Path(name).name) for name in names}
    changed = [name for name, path in paths.items() if path is None or file_digest(path) != digests[name]]
    return changed + [name for name in unlisted_files(folder, digests) if name in _READ or _holds_weights(name)]


def unlisted_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """The names of what lies in ``folder`` besides the manifest, the files that it lists, and the card."""
    return sorted(path.name for path in folder.iterdir() if path.name not in {*digests, MANIFEST, CARD})


def check_unchanged(folder: Path, weights: bool = False) -> None:
    """Raise :class:`InputError` if a file is not as the manifest records it, where there is one that does.

    Args:
        folder: the model folder.
        weights: as :func:`changed_files` has it.
    """
    path = member(folder, MANIFEST)
    digests = read_as(_Recorded, path).files if path else None
    if digests is not None and (changed := changed_files(folder, digests, weights)):
        raise InputError(
            f"{folder / changed[0]} is no longer as it was written; put it right, or delete {path}, which would "
            "vouch for it"
        )


def _holds_weights(name: str) -> bool:
    return name.endswith(".safetensors") or name == INDEX
