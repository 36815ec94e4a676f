"""Pack the pruned or quantized weights of a model folder, and unpack them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.checkpoint import (
    Source,
    Workspace,
    Writer,
    check_apart,
    check_unchanged,
    local_folder,
    manifest_of,
    opened,
    read_orders,
)
from secateur.checkpoint.layout import PACKED_TYPE
from secateur.checkpoint.packed import as_tensors
from secateur.checkpoint.sparse import BITS, SparseWeight, pack_int4, pack_int8, pack_quantized
from secateur.checkpoint.sparse import pack as pack_bits
from secateur.digests import bytes_digest
from secateur.errors import InputError
from secateur.files import read_object
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.progress import Progress


@dataclass(frozen=True)
class Packing:
    """What packing came to, in bytes.

    Attributes:
        model: the model, as it was named.
        int8: whether the weights were rounded to int8.
        int4: whether they were rounded to 4 bits.
        linears: the number of linears that were packed.
        dense_bytes: what they take dense.
        packed_bytes: what they take now.
        total_dense_bytes: what all tensors take with these dense.
        total_packed_bytes: what all tensors take now.
    """

    model: str
    int8: bool
    int4: bool
    linears: int
    dense_bytes: int
    packed_bytes: int
    total_dense_bytes: int
    total_packed_bytes: int


def pack(
    model: str | Path,
    out: str | Path,
    *,
    int8: bool = False,
    int4: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Packing:
    """Write a copy of a pruned or quantized model whose linears are packed: a mask, and the weights that it keeps.

    Those linears in its blocks are packed that take fewer bytes so. :func:`unpack` gives back every bit, unless the
    values are rounded here. Quantized weights are taken over as they are.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file. It need not come from Secateur; unless it is quantized or its
            weights are rounded here, it has to be pruned.
        out: the folder to write; plain transformers refuses it, :func:`secateur.load` runs it.
        int8: round the weights to int8, with a scale for each row and 128 columns. What has too few zeros for a mask to
            pay goes without one.
        int4: round them to 4 bits, likewise.
        force: replace a model folder that Secateur wrote.
        progress: is told how far it is.

    Raises:
        InputError: when something given cannot be used, or nothing would get smaller; nothing is written then.
    """
    bits = bits_of(int8, int4)
    progress = progress or Progress()
    with progress, Workspace(out, model, force=force) as work, local_folder(str(model), work.folder) as folder:
        check_apart(work.out, folder)
        check_unchanged(folder)
        work.begin()
        source = Source(folder)
        if source.packed:
            raise InputError(f"{model} is packed already")
        if bits and source.quantized:
            raise InputError(f"{model} is quantized: pack takes its weights as they are, without --int{bits}")
        skeleton = source.skeleton(torch.float32)
        blocks = blocks_of(skeleton, family_of(skeleton))
        progress.start("pack", len(blocks), "blocks")
        writer = Writer(work, 1 + len(blocks))
        inside = tuple(block.prefix for block in blocks)
        outer = source.read([name for name in source.names() if not name.startswith(inside)])
        _add(writer, source.stacks.split(outer), {}, {})
        total, before = _bytes(outer), 0
        rounded: dict[str, str] = {}
        packed: dict[str, int] = {}
        for block in blocks:
            held = {part for x in block.linears for part in source.stacks.parts(block.prefix + x.tensor)}
            tensors = source.stacks.split(source.read(source.names(block.prefix)))
            total += _bytes(tensors)
            weights, layers = {}, dict[str, int]()
            for name in tensors.keys() & held:
                takes_over = name in source.quantized and tensors[name].dtype in BITS
                weight = pack_quantized(source.read_quantized(name)) if takes_over else None
                if (weight := weight or pack_if_smaller(_matrix(tensors[name]), bits, name)) is not None:
                    dense = tensors.pop(name)
                    before += dense.nbytes
                    weights[name] = weight
                    layers |= {name: len(dense)} if dense.ndim == 3 else {}
            if bits:
                rounded |= _digests_of_rounded(source, block, tensors, weights)
            _add(writer, tensors, dict(sorted(weights.items())), layers)
            packed |= {name: weight.nbytes for name, weight in weights.items()}
            progress.advance(1)
        if not packed:
            types = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in BITS))
            raise InputError(
                f"no linear in the blocks of {model} would get smaller: they have too few zeros "
                f"(a zero with a minus sign counts as a weight), or their type is none of {types}"
            )
        config = {"model_type": PACKED_TYPE, "base": _unquantized(read_object(folder / "config.json"))}
        manifest = manifest_of(folder)
        if rounded:  # what proves the values from here on
            manifest["rounded"] = {"bits": bits, "sha256": manifest.get("rounded", {}).get("sha256", {}) | rounded}
        writer.finish(model, folder, manifest, read_orders(folder, whole=False), config=config)
    after = sum(packed.values())
    return Packing(str(model), int8, int4, len(packed), before, after, total, total - before + after)


def unpack(model: str | Path, out: str | Path, *, force: bool = False, progress: Progress | None = None) -> None:
    """Write a packed folder as a plain Hugging Face folder again, its weights bit for bit those that were packed.

    Weights whose values were rounded come back rounded, in their former type.

    Args:
        model: a folder that :func:`pack` wrote.
        out: the folder to write.
        force: replace a model folder that Secateur wrote.
        progress: is told how far it is.

    Raises:
        InputError: when the folder is not a packed one, or is damaged; nothing is written then.
    """
    folder, progress = Path(model), progress or Progress()
    with progress, Workspace(out, folder, force=force) as work:
        source = opened(folder)
        if not source.packed:
            raise InputError(f"{folder} is not packed")
        check_unchanged(folder, weights=True)
        shards: dict[Path, list[str]] = {}
        for name in source.names():
            shards.setdefault(source.held[source.stacks.parts(name)[0]].file, []).append(name)
        progress.start("unpack", len(shards), "files")
        work.begin()
        writer = Writer(work, len(shards))
        for _, names in sorted(shards.items()):
            writer.add(source.stacks.split(source.read(names)))
            progress.advance(1)
        config = read_object(folder / "config.json")["base"]
        writer.finish(model, folder, manifest_of(folder), read_orders(folder, whole=False), config=config)


def bits_of(int8: bool, int4: bool) -> int | None:
    """The bits that values are to be rounded to, if they are; raises :class:`InputError` where both are asked for."""
    if int8 and int4:
        raise InputError("give --int8 or --int4, not both")
    return 8 if int8 else 4 if int4 else None


def pack_if_smaller(weight: Tensor, bits: int | None, name: str) -> SparseWeight | None:
    """``weight`` (O, I) packed, rounded to ``bits`` if these are given, or None where that would not make it smaller.

    Raises:
        InputError: about ``name``, when a weight that is not finite is to be rounded.
    """
    if weight.dtype not in BITS:
        return None
    try:
        packed = (pack_int4 if bits == 4 else pack_int8 if bits else pack_bits)(weight)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return packed if packed.nbytes < weight.nbytes else None


def _digests_of_rounded(
    source: Source, block: Block, plain: Mapping[str, Tensor], weights: Mapping[str, SparseWeight]
) -> dict[str, str]:
    """By the name that the model has for it, SHA-256 of the bytes of each tensor of which ``weights`` are parts."""
    found = {}
    for name in sorted({block.prefix + linear.tensor for linear in block.linears}):
        parts = source.stacks.parts(name)
        if any(part in weights for part in parts):
            values = {part: weights[part].dense() if part in weights else plain[part] for part in parts}
            values = {part: value.view(source.held[part].shape) for part, value in values.items()}
            found[name] = bytes_digest(source.stacks.join(name, values))
    return found


def _matrix(weight: Tensor) -> Tensor:
    """A weight ``(O, I)`` as it is; the layers of a stack one above the other."""
    return weight.flatten(0, -2)


def _add(
    writer: Writer, tensors: dict[str, Tensor], weights: dict[str, SparseWeight], layers: Mapping[str, int]
) -> None:
    parts, metadata = as_tensors(weights, layers)
    writer.add(tensors | parts, metadata)


def _unquantized(config: dict[str, Any]) -> dict[str, Any]:
    """A config, and those that it wraps, without what they say of quantized weights."""
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    return kept | ({"base": _unquantized(kept["base"])} if isinstance(kept.get("base"), dict) else {})


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
