"""What is checked of the manifest of a written folder."""

from math import prod
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


class QuantizedLayer(msgspec.Struct, frozen=True):
    """What it says of a linear that was quantized; see :class:`~secateur.pruning.result.QuantizedLayer`."""

    name: str
    shape: tuple[int, int]
    zeros_before: int
    zeros: int
    nonzeros_sha256: str
    weight_sha256: str
    relative_error: float | None = None
    tokens: int | None = None
    nbytes: int = 0

    @property
    def written(self) -> Layer:
        """What is checked of its weights as they decode."""
        sparsity = self.zeros / max(1, prod(self.shape))
        return Layer(self.name, self.shape, sparsity, self.nonzeros_sha256, self.weight_sha256)


class _Method(msgspec.Struct, frozen=True):
    method: str


class Quantization(msgspec.Struct, frozen=True):
    """What is checked of ``quantization``; see :func:`secateur.quantize`."""

    recipe: _Method
    layers: list[QuantizedLayer]


class Rounded(msgspec.Struct, frozen=True):
    """What it says of the tensors that packing has rounded, after all else; see :func:`secateur.pack`."""

    bits: int
    sha256: dict[str, str]


class Manifest(msgspec.Struct, frozen=True):
    """What is checked of it; see :func:`secateur.prune` and :class:`~secateur.pruning.result.LayerResult`."""

    recipe: dict[str, Any]
    sparsity: float
    layers: list[Layer]
    tuned: list[str] = []
    unpruned_sha256: dict[str, str] | None = None
    files: dict[str, str] | None = None
    quantization: Quantization | None = None
    rounded: Rounded | None = None


class _NeverPruned(msgspec.Struct, frozen=True):
    unpruned_sha256: dict[str, str] | None = None
    files: dict[str, str] | None = None
    quantization: Quantization | None = None
    rounded: Rounded | None = None


def read_manifest(folder: Path) -> tuple[Manifest, Recipe | None]:
    """The manifest of a folder that was pruned, quantized or rounded, and the recipe that it was pruned by, if it was.

    Raises:
        InputError: when there is none, or it is damaged; it names the field that is missing or wrong.
    """
    if not folder.is_dir() or (path := member(folder, MANIFEST)) is None:
        raise InputError(f"{folder} was not written by secateur: it has no {MANIFEST}")
    keys = read_as(dict[str, msgspec.Raw], path).keys()
    if keys == {"files"}:
        raise InputError(
            f"{folder} was not pruned by secateur, only packed or unpacked: {MANIFEST} has no recipe and no layers to "
            "verify it by"
        )
    if keys & {"quantization", "rounded"} and not keys & {"recipe", "layers"}:
        found = read_as(_NeverPruned, path)
        known = (found.unpruned_sha256, found.files, found.quantization, found.rounded)
        return Manifest({}, 0.0, [], [], *known), None
    manifest = read_as(Manifest, path)
    return manifest, Recipe.from_dict(manifest.recipe, str(path))
