"""Prove, from the files alone, that a written model is what its manifest says."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.checkpoint import (
    MANIFEST,
    Source,
    changed_files,
    local_folder,
    opened,
    read_orders,
    unlisted_files,
)
from secateur.devices import full_precision
from secateur.digests import bytes_digest, nonzeros_digest
from secateur.errors import InputError
from secateur.files import member, read_as
from secateur.masks import obeys, sparsity_of
from secateur.models.blocks import Block
from secateur.models.fold import fold_block, fold_outer, spread_to_queries
from secateur.models.gather import ORDER
from secateur.models.spaces import Family, Linear
from secateur.permute.orders import inverse
from secateur.pruning.prepare import Task, prepare
from secateur.recipe import Recipe
from secateur.runtime.loading import load

# In float32 the logits of a folded model may differ from the unfolded one's by this share of the largest logit.
LOGIT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verdict:
    """What :func:`verify` found.

    Attributes:
        model: the folder.
        checked: what was checked, in words.
        failures: per check that failed, the tensors that it failed on (or what was wrong).
        logit_difference: largest difference of a logit between the folded model and the unfolded masked
            dense one, as a share of the largest logit; None when no dense model was given.
        unchecked: what was not checked, in words.
    """

    model: str
    checked: list[str]
    failures: dict[str, list[str]] = field(default_factory=dict)
    logit_difference: float | None = None
    unchecked: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def verify(model: str | Path, dense: str | Path | None = None) -> Verdict:
    """Check a folder that :func:`secateur.prune` wrote.

    ``layers``: the linears that the manifest lists are all that its recipe prunes. ``pattern``: each obeys the pattern
    as it is stored. ``zeros`` and ``bytes``: its zeros are where the mask put them, and its bytes those that were
    written. ``shape``, ``sparsity``: the figures in the manifest are those of the files. ``unpruned``: all other
    tensors are as they were written. ``files``: so are the config, the tokenizer and what else lies beside them, and
    nothing was added that is read when the model is loaded.

    Given the dense model, ``weights``: every tensor is the dense one, masked and in the recorded order of channels, bit
    for bit (pruned weights that were reconstructed excepted); and ``logits``: the model computes the same as with all
    channels in the dense model's order.

    Args:
        model: the folder that was written.
        dense: the model that was pruned: a hub name, a folder, or a ``.gguf`` file.

    Raises:
        InputError: when the folder was not written by Secateur, or a model cannot be read.
    """
    folder = Path(model)
    manifest, recipe = _read_manifest(folder)
    source = opened(folder)
    if any(entry.group for entry in source.sparse.values()):
        raise InputError(f"{folder} holds weights rounded to int8: verify the folder that it was packed from")
    task = prepare(source.skeleton(torch.float32), recipe)
    linears = {block.full_name(linear): (block, linear) for block in task.blocks for linear in block.linears}
    failures = {"layers": _amiss([layer.name for layer in manifest.layers], linears)}
    known = {layer.name: layer for layer in manifest.layers if layer.name in linears}
    failures |= _check_linears(source, task, linears, known, manifest.sparsity)
    patterns = " and ".join(dict.fromkeys(str(task.patterns[name]) for name in linears))
    checked = [
        f"{len(linears)} linears obey {patterns} as stored, and there are no others that the recipe prunes",
        "their zeros and bytes are those that were written",
    ]
    unchecked = []
    if manifest.unpruned_sha256 is None:
        unchecked.append(f"all other tensors: {MANIFEST} has no digests of them")
    else:
        failures["unpruned"] = _check_unpruned(source, task.blocks, manifest.unpruned_sha256)
        checked.append(f"so are {len(manifest.unpruned_sha256)} other tensors")
    if manifest.files is None:
        unchecked.append(f"the config and the tokenizer, but for sizes and ids: {MANIFEST} has no digests of them")
    else:
        failures["files"] = changed_files(folder, manifest.files)
        added = [name for name in unlisted_files(folder, manifest.files) if name not in failures["files"]]
        unchecked += [f"{name}, which was added" for name in added]
        checked.append("and the config, the tokenizer and what else lies beside the weights")
    difference = None
    if dense is None:
        unchecked.append("whether the weights and logits are the dense model's (--dense)")
    else:
        wrong, difference = _compare_with(dense, source, task, [linears[name] for name in known])
        failures |= {"weights": wrong}
        if not difference <= LOGIT_TOLERANCE:
            failures["logits"] = [f"differ by {difference:.2g} of the largest"]
        checked += [
            "all tensors but these, which were reconstructed, are the dense model's in the recorded order"
            if recipe.reconstruct != "none"
            else "all tensors are the dense model's, masked and in the recorded order",
            "the logits are those of the same weights in the dense model's order",
        ]
    found = {check: where for check, where in failures.items() if where}
    return Verdict(str(model), checked, found, difference, unchecked)


class _Layer(msgspec.Struct, frozen=True):
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


class _Manifest(msgspec.Struct, frozen=True):
    """What is checked of the manifest; see :func:`secateur.prune` and :class:`~secateur.pruning.result.LayerResult`."""

    recipe: dict[str, Any]
    sparsity: float
    layers: list[_Layer]
    unpruned_sha256: dict[str, str] | None = None
    files: dict[str, str] | None = None


def _read_manifest(folder: Path) -> tuple[_Manifest, Recipe]:
    if not folder.is_dir() or (path := member(folder, MANIFEST)) is None:
        raise InputError(f"{folder} was not written by secateur: it has no {MANIFEST}")
    manifest = read_as(_Manifest, path)
    return manifest, Recipe.from_dict(manifest.recipe, str(path))


def _amiss(listed: Sequence[str], linears: Collection[str]) -> list[str]:
    """What the manifest leaves out of the linears that the recipe prunes, and what it lists besides, or twice."""
    more = list((Counter(listed) - Counter([*linears])).elements())
    return [f"{name} is not in {MANIFEST}" for name in linears if name not in listed] + [
        f"{name} is in {MANIFEST}, but not among the linears that its recipe prunes, or twice" for name in more
    ]


def _check_linears(
    source: Source,
    task: Task,
    linears: Mapping[str, tuple[Block, Linear]],
    known: Mapping[str, _Layer],
    sparsity: float,
) -> dict[str, list[str]]:
    """The names of pruned linears that are not as the recipe and the manifest have them, by what is wrong."""
    failures: dict[str, list[str]] = {check: [] for check in ("pattern", "shape", "zeros", "bytes", "sparsity")}
    zeros = numbers = 0
    for name, (block, linear) in linears.items():
        weight = block.stored(linear, source.read([block.prefix + linear.tensor]))
        zeros, numbers = zeros + weight.numel() - int(weight.count_nonzero()), numbers + weight.numel()
        if not obeys(weight, task.patterns[name]):
            failures["pattern"].append(name)
        if name not in known:
            continue
        if (shape := tuple(weight.shape)) != known[name].shape:
            failures["shape"].append(f"{name} is {shape}, not {known[name].shape}")
        if nonzeros_digest(weight) != known[name].nonzeros_sha256:
            failures["zeros"].append(name)
        elif not isclose(sparsity_of(weight), known[name].sparsity):
            failures["sparsity"].append(f"{name} has {sparsity_of(weight):.2%} zeros, not {known[name].sparsity:.2%}")
        if bytes_digest(weight) != known[name].weight_sha256:
            failures["bytes"].append(name)
    if not failures["zeros"] and not isclose(zeros / numbers, sparsity):
        failures["sparsity"].append(f"{zeros / numbers:.2%} of all weights are zero, not {sparsity:.2%}")
    return failures


def _check_unpruned(source: Source, blocks: Sequence[Block], digests: Mapping[str, str]) -> list[str]:
    """The names of tensors that are not pruned and differ from what was written, or that were not there then."""
    pruned = {name for block in blocks for name in block.pruned}
    others = [name for name in source.names() if name not in pruned]
    changed = [name for name in others if bytes_digest(source.read([name])[name]) != digests.get(name)]
    return changed + [f"{name} is gone" for name in digests.keys() - set(others)]


# ---------------------------------------------------------------- against the dense model


def _compare_with(
    dense: str | Path, source: Source, task: Task, pruned: list[tuple[Block, Linear]]
) -> tuple[list[str], float]:
    """The names of tensors that are not those of the dense model, and how far logits differ, as a share."""
    with local_folder(str(dense)) as unpruned:
        original = Source(unpruned)
        ours = {name: source.shape(name) for name in source.names() if not name.endswith(ORDER)}
        theirs = {name: original.shape(name) for name in original.names()}
        if ours != theirs:
            names = sorted(name for name, _ in ours.items() ^ theirs.items())
            raise InputError(f"{dense} is another model than {source.folder}: they differ in {', '.join(names[:3])}")
        unfolded = _unfolded(source, task)
        wrong = _compare(unfolded, original, pruned, task.recipe.reconstruct != "none")
        return wrong, _logit_difference(source.folder, original, unfolded)


def _unfolded(source: Source, task: Task) -> dict[str, Tensor]:
    """All tensors with their channels back in the order of the dense model."""
    tensors = source.read([name for name in source.names() if not name.endswith(ORDER)])
    orders = read_orders(source.folder)
    if task.recipe.fold == "none" or not orders:
        return tensors
    for space, rule in task.family.rules.items():
        if rule == "model" and space in orders:
            fold_outer(tensors, task.family, space, inverse(orders[space]))
    for block in task.blocks:
        _unfold_block(tensors, block, task.family, orders)
    return tensors


def _unfold_block(tensors: dict[str, Tensor], block: Block, family: Family, orders: dict[str, Tensor]) -> None:
    for linear in family.linears:  # readers that were not pruned had to follow as well
        order = orders.get(block.prefix + linear.norm) if linear.norm else None
        if order is not None and block.prefix + linear.tensor in tensors:
            weight = block.stored(linear, tensors)
            weight.copy_(weight[:, inverse(order)])
    for space, rule in family.rules.items():
        order = orders.get(space if rule == "model" else block.prefix + space)
        if order is not None:
            written = inverse(order)
            read = spread_to_queries(written, family.heads) if rule == "heads" else written
            fold_block(tensors, block.prefix, family, space, written, read)


def _compare(
    unfolded: dict[str, Tensor], dense: Source, pruned: list[tuple[Block, Linear]], reconstructed: bool
) -> list[str]:
    """The names of tensors that are not those of the dense model, masked where they were pruned.

    Of a pruned weight that was reconstructed only the shape can be compared.
    """
    wrong, present = [], set(dense.names())
    views: dict[str, list[Linear]] = {}  # by the tensor that they are views of
    for block, linear in pruned:
        views.setdefault(block.prefix + linear.tensor, []).append(linear)
    for name in sorted(present | set(unfolded)):
        if name not in unfolded or name not in present:
            wrong.append(name)
            continue
        ours, theirs = unfolded[name], dense.read([name])[name]
        if ours.shape == theirs.shape:
            for linear in views.get(name, []):
                kept, weight = linear.view(ours), linear.view(theirs)
                weight.copy_(kept if reconstructed else weight.where(kept != 0, 0))
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            wrong.append(name)
    return wrong


@torch.no_grad()
@full_precision()
def _logit_difference(folder: Path, dense: Source, unfolded: dict[str, Tensor]) -> float:
    """The largest difference of a logit on some tokens, computed in float32, as a share of the largest logit."""
    folded = load(folder, torch.float32)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(folded.get_input_embeddings().num_embeddings, (2, 64), generator=generator)
    ours = folded(tokens).logits
    plain = _with_weights(load(dense.folder, torch.float32), unfolded)
    theirs = plain(tokens).logits
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _with_weights(model: PreTrainedModel, tensors: dict[str, Tensor]) -> PreTrainedModel:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name in parameters:
            parameters[name].copy_(tensor)
    return model
