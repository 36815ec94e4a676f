"""Small files that may come from anyone: opened only where they should lie, and read only as far as stated.

A model folder is data. A name in it may be a link, a pipe or a folder; a JSON text may be nested a hundred thousand
times, or hold a number of a million digits. Whatever reads such files goes through here, and gets what it asked for or
one :class:`InputError`.
"""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from secateur.errors import InputError, reason

# Texts that say how things are, such as configs and recipes, are kilobytes.
MOST_BYTES = 4 << 20
# Indices, vocabularies and manifests grow with the model: those of the largest have tens of megabytes.
MOST_BYTES_OF_LISTS = 256 << 20

T = TypeVar("T")


def member(folder: Path, name: str) -> Path | None:
    """The path of the file ``name`` of a model folder; None if there is nothing of that name.

    Links are followed inside the folder, and inside the hub's cache, whose snapshots are made of them.

    Raises:
        InputError: when it is no regular file, or a link that leads elsewhere or nowhere.
    """
    path = folder / name
    try:
        if not path.is_symlink() and not path.exists():
            return None
    except OSError:  # no file can have such a name
        return None
    try:
        real, home = path.resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError
        raise InputError(f"{path} is a link that leads nowhere") from None
    snapshot = home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--")
    homes = [home, *([home.parent.parent] if snapshot else [])]
    if not any(real.is_relative_to(place) for place in homes) and not real.is_relative_to(_hub_cache()):
        raise InputError(
            f"{path} is a link to {real}, outside of its folder; links are followed only inside of it, and in the "
            "hub's cache: put the file itself there"
        )
    if not real.is_file():
        raise InputError(f"{path} is not a file")
    return path


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).resolve()


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again: ``$XDG_CACHE_HOME/secateur`` or ``~/.cache/secateur``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file of at most ``most`` bytes.

    Raises:
        InputError: when it is no regular file (a pipe would never end), is longer, or is not UTF-8.
        OSError: when it cannot be opened.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} has more than {most >> 20} MB, and nothing of its kind is that large")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is not UTF-8 ({error})") from None


def read_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object that a file of at most ``most`` bytes holds; raises :class:`InputError` when it is none."""
    try:
        content = json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {reason(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it is not a JSON object")
    return content


def read_as(kind: type[T], path: Path, most: int = MOST_BYTES_OF_LISTS) -> T:
    """What a JSON file of at most ``most`` bytes holds, as ``kind``, a type that msgspec knows.

    Nothing is built of what does not fit the type.

    Raises:
        InputError: when it does not.
    """
    try:
        return msgspec.json.decode(read_text(path, most), type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {reason(error)}") from None
