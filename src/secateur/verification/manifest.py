"""What is checked of the manifest of a written folder."""

from pathlib import Path
from typing import Any

import msgspec

from secateur.checkpoint import MANIFEST
from secateur.errors import InputError
from secateur.files import member, read_as
from secateur.recipe import Recipe


class Layer(msgspec.Struct, frozen=True):
    """What the manifest says of a linear: name to digests are checked, and the types of all."""

    name: str
    shape: tuple[int, int]
    sparsity: float
    nonzeros_sha256: str
    weight_sha256: str
    retained: float | None = None
    relative_error: float | None = None
    score: str | None = None
    tokens: int | None = None
    dead_channels: int | None = None
    refused: list[str] = []
    folds: dict[str, float] = {}


class Manifest(msgspec.Struct, frozen=True):
    """What is checked of it; see :func:`secateur.prune` and :class:`~secateur.pruning.result.LayerResult`."""

    recipe: dict[str, Any]
    sparsity: float
    layers: list[Layer]
    unpruned_sha256: dict[str, str] | None = None
    files: dict[str, str] | None = None


def read_manifest(folder: Path) -> tuple[Manifest, Recipe]:
    """The manifest of a folder that :func:`secateur.prune` wrote, and the recipe in it.

    Raises:
        InputError: when there is none, or it is damaged; it names the field that is missing or wrong.
    """
    if not folder.is_dir() or (path := member(folder, MANIFEST)) is None:
        raise InputError(f"{folder} was not written by secateur: it has no {MANIFEST}")
    if read_as(dict[str, msgspec.Raw], path).keys() == {"files"}:
        raise InputError(
            f"{folder} was not pruned by secateur, only packed or unpacked: {MANIFEST} has no recipe and no layers to "
            "verify it by"
        )
    manifest = read_as(Manifest, path)
    return manifest, Recipe.from_dict(manifest.recipe, str(path))
