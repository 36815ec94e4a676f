"""Masks as things of their own: taken of a pruned folder, and put again on weights that have changed since."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from secateur import __version__
from secateur.checkpoint import (
    MANIFEST,
    Source,
    Workspace,
    Writer,
    check_apart,
    check_finite,
    local_folder,
    manifest_of,
    opened,
)
from secateur.checkpoint.maskfile import VERSION, MaskEntry, MaskFile, MaskHeader, open_mask, write_mask
from secateur.checkpoint.sparse import pack_mask
from secateur.digests import bytes_digest, digest, nonzeros_digest
from secateur.errors import InputError, Notice
from secateur.masks import masked, obeys, sparsity_of
from secateur.models.blocks import Block
from secateur.models.spaces import Linear
from secateur.patterns import Pattern, in_rows
from secateur.progress import Clock, Progress
from secateur.pruning.prepare import Task, prepare
from secateur.pruning.store import unpruned_digests
from secateur.recipe import Recipe

# What saving and training change in a config, and no linear of a block depends on.
_PASSING = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip


class _Pruned(msgspec.Struct, frozen=True):
    """What is read of the manifest of a pruned folder."""

    model: str
    recipe: dict[str, Any]
    computed_in: str
    layers: list["_Layer"]
    calibration: dict[str, Any] | None = None


class _Layer(msgspec.Struct, frozen=True):
    name: str
    nonzeros_sha256: str


def mask(model: str | Path, out: str | Path, *, progress: Progress | None = None) -> MaskHeader:
    """Write the mask of a pruned folder to a file: which weights of its pruned linears are kept, one bit for each.

    Args:
        model: a folder that :func:`secateur.prune` wrote. Its zeros have to be those that the manifest has.
        out: the file to write, such as ``mask.safetensors``; docs/masks.md says what is in it.
        progress: is told how far it is.

    Returns:
        what the file says of itself.

    Raises:
        InputError: when the folder was not pruned by Secateur, or not so that plain transformers loads it, has other
            zeros by now, or ``out`` is there already.
        OSError: when the disk is full or fails.
    """
    folder, path, progress = Path(model), Path(out), progress or Progress()
    if path.exists() or not path.absolute().parent.is_dir():
        raise InputError(f"{path} exists, or its folder does not: give another --out")
    pruned = _pruned(folder)
    recipe = Recipe.from_dict(pruned.recipe, str(folder / MANIFEST))
    source = opened(folder)
    source.refuse_gathers("fine-tuned by others, whom its mask would be for")
    task = prepare(source.skeleton(torch.float32), recipe)
    zeros = {layer.name: layer.nonzeros_sha256 for layer in pruned.layers}
    masks, entries = dict[str, Tensor](), dict[str, MaskEntry]()
    with progress:
        progress.start("mask", len(task.blocks), "blocks")
        for block in task.blocks:
            tensors = source.read([block.prefix + name for name in dict.fromkeys(x.tensor for x in block.linears)])
            for linear in block.linears:
                name, weight = block.full_name(linear), block.stored(linear, tensors)
                if nonzeros_digest(weight) != zeros.get(name):
                    raise InputError(f"the zeros of {name} are not those that {folder / MANIFEST} has: it has changed")
                masks[name] = pack_mask(weight != 0)
                entries[name] = MaskEntry((weight.shape[0], weight.shape[1]), str(_obeyed(task, name)))
            progress.advance(1)
        config = source.config
        origin = {"model": pruned.model, "recipe": recipe.to_dict(), "calibration": pruned.calibration}
        origin["computed_in"] = pruned.computed_in
        header = MaskHeader(VERSION, config.model_type, config_digest(config), origin, entries)
        write_mask(path, header, masks)
    return header


def apply(
    model: str | Path, mask: str | Path, out: str | Path, *, force: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Write ``model`` with the weights zero that a mask does not keep; all else keeps its bits.

    The mask is in the order of channels of the folder that it was taken of: the model has to descend from that, by
    fine-tuning or by merging an adapter. One block is in memory at a time.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        mask: a file that :func:`mask` wrote.
        out: the folder to write; it appears only when it is complete.
        force: replace a model folder that Secateur wrote.
        progress: is told how far it is.

    Returns:
        the content of ``secateur.json``, which is part of what is written; :func:`secateur.verify` proves the folder by
        it.

    Raises:
        InputError: when the mask is damaged, or the model has not the linears that it is of, or not in their shapes;
            nothing is written then.
        OSError: when the disk is full or fails.
    """
    file, progress, clock = open_mask(Path(mask)), progress or Progress(), Clock()
    # Whatever has become of kept weights in the meantime is not what the recipe once made of them.
    recipe = replace(file.recipe, reconstruct="none", tune=False)
    with progress, Workspace(out, model, force=force) as work, local_folder(str(model), work.folder) as folder:
        check_apart(work.out, folder)
        source = Source(folder)
        source.refuse_gathers("masked")
        if source.scheme:
            raise InputError(f"{model} is quantized: mask the model that it was made of")
        task = _matching(source, file, recipe)
        work.begin()
        progress.start("apply", len(task.blocks), "blocks")
        writer = Writer(work, 1 + len(task.blocks))
        outer = source.read(source.names_outside([block.prefix for block in task.blocks]))
        check_finite(outer, folder)
        writer.add(source.stacks.split(outer))
        unpruned, layers = unpruned_digests(outer), list[dict[str, Any]]()
        for block in task.blocks:
            tensors = source.read(source.names(block.prefix))
            check_finite(tensors, folder)
            with clock("mask"):
                layers += [_masked(block, linear, tensors, file, task) for linear in block.linears]
            unpruned |= unpruned_digests(tensors, block.pruned)
            with clock("write"):
                writer.add(source.stacks.split(tensors))
            progress.advance(1)
        sizes = [layer["shape"][0] * layer["shape"][1] for layer in layers]
        zeros = sum(layer["sparsity"] * size for layer, size in zip(layers, sizes, strict=True))
        manifest = {
            "secateur": __version__,
            "model": str(model),
            "family": task.family.name,
            "method": f"mask of {recipe.summary()}",
            "mask": {"sha256": file.sha256, "of": str(file.header.origin.get("model"))},
            "recipe": recipe.to_dict(),
            "calibration": file.header.origin.get("calibration"),
            "computed_in": str(file.header.origin.get("computed_in")),
            "sparsity": zeros / max(1, sum(sizes)),
            "layers": layers,
            "unpruned_sha256": unpruned,
            "seconds": clock.seconds(),
        }
        writer.finish(model, folder, manifest, config=source.base if source.decodes else None)
        return manifest


def config_digest(config: PreTrainedConfig) -> str:
    """SHA-256 of what a config says, as JSON with sorted keys, but for what saving and training change."""
    said = {key: value for key, value in config.to_dict().items() if key not in _PASSING}
    return digest(json.dumps(said, sort_keys=True, default=str))


def _pruned(folder: Path) -> _Pruned:
    manifest: Mapping[str, Any] = manifest_of(folder) if folder.is_dir() else {}
    try:
        return msgspec.convert(manifest, _Pruned)
    except msgspec.ValidationError as error:
        raise InputError(f"{folder} is no folder that secateur prune wrote ({error}): there is no mask in it") from None


def _obeyed(task: Task, name: str) -> Pattern:
    """What the mask of a linear obeys where its weights are stored."""
    pattern = task.patterns[name]
    return in_rows(pattern) if task.recipe.orders_channels and task.recipe.fold == "none" else pattern


def _matching(source: Source, file: MaskFile, recipe: Recipe) -> Task:
    """The linears of the model in ``source`` that a mask is of, which have to be all that its recipe prunes."""
    header, config = file.header, source.config
    if config.model_type != header.model_type:
        raise InputError(f"{file.path} is of a {header.model_type} model, and {source.folder} is a {config.model_type}")
    task = prepare(source.skeleton(torch.float32), recipe)
    shapes = {block.full_name(x): tuple(block.weight(x).shape) for block in task.blocks for x in block.linears}
    masks = {name: entry.shape for name, entry in header.weights.items()}
    if odd := sorted(name for name, _ in shapes.items() ^ masks.items()):
        raise InputError(
            f"{file.path} is of another model than {source.folder}: {odd[0]} is {_size(masks.get(odd[0]))} in the one "
            f"and {_size(shapes.get(odd[0]))} in the other"
        )
    if config_digest(config) != header.config_sha256:
        warnings.warn(
            f"the config of {source.folder} is not that of the model whose mask this is, though its linears are alike",
            Notice,
            stacklevel=3,
        )
    return task


def _size(shape: tuple[int, ...] | None) -> str:
    return " × ".join(map(str, shape)) if shape else "absent"


def _masked(block: Block, linear: Linear, tensors: Mapping[str, Tensor], file: MaskFile, task: Task) -> dict[str, Any]:
    """Put its mask on one linear, in place; what the manifest says of it."""
    name, weight = block.full_name(linear), block.stored(linear, tensors)
    kept = file.read(name)
    if not obeys(kept, pattern := _obeyed(task, name)):
        raise InputError(f"{file.path} is damaged: the mask of {name} does not obey {pattern}")
    gone = int((weight != 0).logical_and_(~kept).sum())
    weight.copy_(masked(weight, kept))
    return {
        "name": name,
        "shape": list(weight.shape),
        "sparsity": sparsity_of(weight),
        "set_to_zero": gone,
        "nonzeros_sha256": nonzeros_digest(weight),
        "weight_sha256": bytes_digest(weight),
    }
