"""A mask as a safetensors file (``docs/masks.md``): of each linear that was pruned, one bit for each weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from secateur.checkpoint.durable import replacing
from secateur.checkpoint.shards import reading
from secateur.checkpoint.sparse import mask_bytes, unpack_mask
from secateur.digests import file_digest
from secateur.errors import InputError, reason
from secateur.recipe import Recipe

VERSION = 1
KEY = "secateur-mask"  # of the metadata of the file


class MaskEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says of one linear: its shape ``(O, I)``, and the pattern that its mask obeys, for people."""

    shape: tuple[int, int]
    pattern: str


class MaskHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says of itself.

    Attributes:
        version: of the format.
        model_type: as the config of the model has it that was pruned.
        config_sha256: see :func:`~secateur.masking.config_digest`.
        origin: what the manifest of the pruned folder said of how the mask was found: ``model``, ``recipe``,
            ``calibration`` and ``computed_in``.
        weights: by the full names of the linears.
    """

    version: int
    model_type: str
    config_sha256: str
    origin: dict[str, Any]
    weights: dict[str, MaskEntry]


@dataclass(frozen=True)
class MaskFile:
    """A mask that is read one linear at a time.

    Attributes:
        path: the file.
        header: what it says of itself.
        recipe: by which the mask was found.
    """

    path: Path
    header: MaskHeader
    recipe: Recipe

    @property
    def sha256(self) -> str:
        """Of the file."""
        return file_digest(self.path)

    def read(self, name: str) -> Tensor:
        """The mask of the linear of this full name, bool ``(O, I)``, true where a weight is kept.

        Raises:
            InputError: when it is damaged.
        """
        with reading(self.path) as file:
            mask = unpack_mask(file.get_tensor(name))
        columns = self.header.weights[name].shape[1]
        if mask[:, columns:].any():
            raise InputError(f"{self.path} is damaged: {name} keeps columns beyond its last")
        return mask[:, :columns]


def write_mask(path: Path, header: MaskHeader, masks: Mapping[str, Tensor]) -> None:
    """Write a mask, in one step: of each linear that ``header`` names, what ``pack_mask`` makes of it."""
    with replacing(path) as aside:
        try:
            save_file(dict(masks), aside, metadata={KEY: msgspec.json.encode(header).decode()})
        except SafetensorError as error:  # which hides what the system said
            raise OSError(f"{path} cannot be written: {error}") from error


def open_mask(path: Path) -> MaskFile:
    """A mask, of which nothing is read but what the file says of itself; shapes and types are compared with that.

    Raises:
        InputError: when it is none, is damaged, or of another version.
    """
    if not path.is_file():
        raise InputError(f"there is no mask {path}: secateur mask DIR --out {path} takes one of a pruned folder")
    with reading(path) as file:
        text = (file.metadata() or {}).get(KEY)
        held = {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in _views(file)}
    if text is None:
        raise InputError(f"{path} is no mask that secateur mask wrote: its metadata has no {KEY!r}")
    try:
        header = msgspec.json.decode(text, type=MaskHeader)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its metadata {KEY!r} cannot be read ({reason(error)})") from None
    if header.version != VERSION:
        raise InputError(f"{path} is of version {header.version} of masks; this Secateur reads {VERSION}")
    declared = {name: ("U8", (rows, mask_bytes(columns))) for name, (rows, columns) in _shapes(header).items()}
    if odd := sorted(name for name, _ in held.items() ^ declared.items()):
        raise InputError(f"{path} is damaged: what it declares of {odd[0]} is not what it holds")
    return MaskFile(path, header, Recipe.from_dict(header.origin.get("recipe"), f"{path}: its recipe"))


def _views(file: Any) -> list[tuple[str, Any]]:
    return [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 (it is no mapping)


def _shapes(header: MaskHeader) -> dict[str, tuple[int, int]]:
    return {name: entry.shape for name, entry in header.weights.items()}
