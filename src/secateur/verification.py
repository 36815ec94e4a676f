"""Prove, from the files alone, that a written model is what its manifest says."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from secateur.checkpoint import MANIFEST, ORDERS, Source, local_folder
from secateur.devices import full_precision
from secateur.digests import bytes_digest, nonzeros_digest
from secateur.errors import InputError
from secateur.masks import obeys
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
    """

    model: str
    checked: list[str]
    failures: dict[str, list[str]] = field(default_factory=dict)
    logit_difference: float | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def verify(model: str | Path, dense: str | Path | None = None) -> Verdict:
    """Check a folder that :func:`secateur.prune` wrote.

    ``pattern``: every pruned linear obeys the pattern as it is stored. ``zeros`` and ``bytes``: its zeros are
    where the mask put them, and its bytes those that were written. Given the dense model, ``weights``: every
    tensor is the dense one, masked and in the recorded order of channels, bit for bit (pruned weights that
    were reconstructed excepted); and ``logits``: the model computes the same as with all channels in the
    dense model's order.

    Args:
        model: the folder that was written.
        dense: the model that was pruned: a hub name, a folder, or a ``.gguf`` file.

    Raises:
        InputError: when the folder was not written by Secateur, or a model cannot be read.
    """
    folder = Path(model)
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} was not written by secateur: it has no {MANIFEST}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = [layer["name"] for layer in manifest["layers"]]
        recipe = Recipe.from_dict(manifest["recipe"], MANIFEST)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged: {error!r}") from error
    source = Source(folder)
    if any(entry.group for entry in source.sparse.values()):
        raise InputError(f"{folder} holds weights rounded to int8: verify the folder that it was packed from")
    task = prepare(source.skeleton(torch.float32), recipe)
    linears = _linears(source, task.blocks)
    if absent := [name for name in listed if name not in linears]:
        raise InputError(f"{folder} lacks {', '.join(absent[:3])}, which {MANIFEST} lists")
    failures: dict[str, list[str]] = {}
    for layer in manifest["layers"]:
        block, linear = linears[layer["name"]]
        weight = block.stored(linear, source.read([block.prefix + linear.tensor]))
        if not obeys(weight, task.patterns[layer["name"]]):
            failures.setdefault("pattern", []).append(layer["name"])
        if nonzeros_digest(weight) != layer["nonzeros_sha256"]:
            failures.setdefault("zeros", []).append(layer["name"])
        if bytes_digest(weight) != layer["weight_sha256"]:
            failures.setdefault("bytes", []).append(layer["name"])
    patterns = " and ".join(dict.fromkeys(str(task.patterns[name]) for name in listed))
    checked = [f"{len(listed)} linears obey {patterns} as stored", "their zeros and bytes are those that were written"]
    difference = None
    if dense is not None:
        with local_folder(str(dense)) as unpruned:
            unfolded = _unfolded(source, task)
            wrong = _compare(
                unfolded, Source(unpruned), [linears[name] for name in listed], recipe.reconstruct != "none"
            )
            difference = _logit_difference(folder, Source(unpruned), unfolded)
        if wrong:
            failures["weights"] = wrong
        if not difference <= LOGIT_TOLERANCE:
            failures["logits"] = [f"differ by {difference:.2g} of the largest"]
        checked += [
            "all tensors but these, which were reconstructed, are the dense model's in the recorded order"
            if recipe.reconstruct != "none"
            else "all tensors are the dense model's, masked and in the recorded order",
            "the logits are those of the same weights in the dense model's order",
        ]
    return Verdict(str(model), checked, failures, difference)


def _linears(source: Source, blocks: Sequence[Block]) -> dict[str, tuple[Block, Linear]]:
    """Every linear that is pruned and whose weight the folder has, by its full name."""
    present = set(source.names())
    return {
        block.full_name(linear): (block, linear)
        for block in blocks
        for linear in block.linears
        if block.prefix + linear.tensor in present
    }


def _unfolded(source: Source, task: Task) -> dict[str, Tensor]:
    """All tensors with their channels back in the order of the dense model."""
    tensors = source.read([name for name in source.names() if not name.endswith(ORDER)])
    path = source.folder / ORDERS
    orders = load_file(path) if path.is_file() else {}
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
