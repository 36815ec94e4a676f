"""Prove, from the files alone, that a shrunk model is what its manifest says, and a part of the dense one."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from math import isclose
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from secateur.checkpoint import MANIFEST, ORDERS, Source, changed_files, local_folder, opened, read_orders
from secateur.digests import bytes_digest, file_digest
from secateur.errors import InputError
from secateur.files import member, read_as
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.fold import select_block, zero_block
from secateur.models.spaces import Family
from secateur.shrinkage import Shrinkage
from secateur.shrinking.choice import BLOCKS, EXPERTS, HEADS, Kept, of_block, selection
from secateur.shrinking.experts import experts_of, select_experts
from secateur.shrinking.target import matrices_of
from secateur.shrinking.widths import Shapes, Widths
from secateur.verification.manifest import Rounded
from secateur.verification.verdict import Verdict


class _Manifest(msgspec.Struct, frozen=True):
    """What is checked of it; see :func:`secateur.shrink`."""

    shrinkage: dict[str, Any]
    sparsity: float
    weights: dict[str, int]
    tensors_sha256: dict[str, str]
    files: dict[str, str]
    rounded: Rounded | None = None


def is_shrunk(folder: Path) -> bool:
    """Whether :func:`secateur.shrink` wrote ``folder``, as its manifest has it, and nobody has quantized it since."""
    path = member(folder, MANIFEST) if folder.is_dir() else None
    keys = read_as(dict[str, msgspec.Raw], path).keys() if path else ()
    return "shrinkage" in keys and "quantization" not in keys


def verify_shrunk(folder: Path, dense: str | Path | None = None) -> Verdict:
    """Check a folder that :func:`secateur.shrink` wrote.

    ``bytes``: all tensors are as they were written. ``weights``: there are as many in the blocks' linears as the
    manifest says, in the shapes that follow from the record of what stayed; where experts went, in all matrices of the
    blocks. ``zeros``: in place, all that went is zero. ``files``: config, tokenizer, index and record are as they were
    written.

    Given the dense model, ``dense``: every tensor is, bit for bit, the recorded selection from its own.

    Raises:
        InputError: when a model cannot be read, or manifest or record are damaged.
    """
    manifest = read_as(_Manifest, folder / MANIFEST)
    options = Shrinkage.from_dict(manifest.shrinkage, str(folder / MANIFEST))
    source, kept = opened(folder), read_orders(folder, whole=False)
    rounded = manifest.rounded.sha256 if manifest.rounded else {}
    if rounded and dense is not None:
        raise InputError(f"{folder} holds weights that packing has rounded: --dense is for the folder of before")
    model = source.skeleton(torch.float32)
    family = family_of(model)
    blocks = blocks_of(model, family)
    failures: dict[str, list[str]] = {"files": changed_files(folder, manifest.files), "weights": []}
    record = member(folder, ORDERS)
    if (file_digest(record) if record else None) != manifest.files.get(ORDERS):
        failures["files"].append(ORDERS)
    if not set(manifest.weights) >= {"kept", "dense"} or not manifest.weights["dense"]:
        raise InputError(f"{folder / MANIFEST} is damaged: its weights lack kept or dense")
    stay = manifest.weights["kept"]
    if not isclose(manifest.sparsity, 1 - stay / manifest.weights["dense"]):
        failures["weights"].append(f"{manifest.sparsity:.2%} is not what its numbers of weights come to")
    where = "matrices" if options.experts is not None else "linears"
    if options.experts is not None:
        found = matrices_of(blocks)
    else:
        found = sum(_weights(block, family, of_block(kept, block.prefix), folder, options.in_place) for block in blocks)
    if found != stay:
        failures["weights"].append(f"{found:,} in its blocks' {where}, not {stay:,}")
    with ExitStack() as stack:
        beside = None
        if dense is not None:
            original = Source(stack.enter_context(local_folder(str(dense))))
            beside = _Beside(original, kept, options, folder, blocks)
        failures |= _pass(source, blocks, family, kept, manifest.tensors_sha256 | rounded, options.in_place, beside)
    checked = [
        f"{len(manifest.tensors_sha256)} tensors are those that were written",
        f"{stay:,} of {manifest.weights['dense']:,} weights of the blocks' {where} stay ({manifest.sparsity:.2%} went)",
        "the config, the tokenizer and the record of what stayed are as they were written",
    ]
    unchecked = []
    if dense is None:
        unchecked.append("whether the weights are the dense model's (--dense)")
    else:
        checked.append("all tensors are, bit for bit, the recorded selection from the dense model's")
    return Verdict(str(folder), checked, {check: where for check, where in failures.items() if where}, None, unchecked)


def _weights(block: Block, family: Family, kept: Kept, folder: Path, in_place: bool) -> int:
    """The weights of a block's linears that stay, by their shapes, which have to be those that the record says."""
    shapes = Shapes([block], family)
    whole = shapes.whole
    if not kept:
        return shapes.weights(whole)
    queries, keys, _ = family.heads
    channels = {len(numbers) for space, numbers in kept.items() if space != HEADS} or {whole.channels}
    heads = kept.get(HEADS, torch.arange(queries))
    if in_place:
        _check_record(kept, whole, folder)
        groups = len((heads // (queries // keys)).unique())
        return shapes.weights(Widths(len(heads), groups, max(channels)))
    if channels != {whole.channels} or len(heads) != queries:
        raise InputError(f"{folder / ORDERS} is damaged: {block.prefix[:-1]} has other widths than it records")
    return shapes.weights(whole)


def _check_record(kept: Kept, whole: Widths, folder: Path) -> None:
    for space, numbers in kept.items():
        most = whole.queries if space == HEADS else whole.channels
        if len(numbers) and int(numbers.max()) >= most:
            raise InputError(f"{folder / ORDERS} is damaged: of {space} it names number {int(numbers.max())} of {most}")


class _Beside:
    """The dense model, out of which the tensors of the shrunk one are made again."""

    def __init__(
        self, source: Source, kept: Mapping[str, Tensor], options: Shrinkage, folder: Path, blocks: Sequence[Block]
    ) -> None:
        self._source, self._kept, self._in_place, self._folder = source, kept, options.in_place, folder
        model = source.skeleton(torch.float32)
        self._family = family_of(model)
        self._blocks = blocks_of(model, self._family)
        self._numbers = kept[BLOCKS].tolist() if BLOCKS in kept else list(range(len(self._blocks)))
        if self._numbers and max(self._numbers) >= len(self._blocks):
            raise InputError(f"{folder / ORDERS} names block {max(self._numbers)}, and the dense model has fewer")
        self._experts = experts_of(self._blocks, blocks) if options.experts is not None else {}
        for index, block in enumerate(self._blocks):
            numbers, experts = kept.get(block.prefix + EXPERTS, torch.empty(0)), self._experts.get(index)
            stay, count = (experts.stay, experts.count) if experts else (0, 0)
            if len(numbers) != stay or (stay and int(numbers.max()) >= count):
                raise InputError(f"{folder / ORDERS} does not name {stay} of {count} experts of block {index}")

    def outer(self) -> dict[str, Tensor]:
        """What lies outside the blocks."""
        return self._source.read(self._source.names_outside([block.prefix for block in self._blocks]))

    def block(self, index: int, now: str) -> dict[str, Tensor]:
        """What the shrunk model's block ``index``, of prefix ``now``, is to hold; nothing where the dense has none."""
        if index >= len(self._numbers):
            return {}
        block = self._blocks[self._numbers[index]]
        tensors = self._source.read(self._source.names(block.prefix))
        if index in self._experts:
            select_experts(tensors, block.prefix, self._experts[index], self._kept[block.prefix + EXPERTS])
        elif kept := of_block(self._kept, block.prefix):
            _check_record(kept, Shapes([block], self._family).whole, self._folder)
            change = zero_block if self._in_place else select_block
            change(tensors, block.prefix, self._family, *selection(kept, self._family))
        return {now + name.removeprefix(block.prefix): tensor for name, tensor in tensors.items()}


@torch.no_grad()
def _pass(
    source: Source,
    blocks: Sequence[Block],
    family: Family,
    kept: Mapping[str, Tensor],
    digests: Mapping[str, str],
    in_place: bool,
    beside: _Beside | None,
) -> dict[str, list[str]]:
    """Read the model once, one block in memory; the names of tensors that fail a check, by the check."""
    wrong: dict[str, list[str]] = {"bytes": [], "zeros": [], "dense": []}
    seen = set()

    def look(tensors: Mapping[str, Tensor], dense: Mapping[str, Tensor] | None) -> None:
        for name, tensor in tensors.items():
            seen.add(name)
            if bytes_digest(tensor) != digests.get(name):
                wrong["bytes"].append(name)
        if dense is not None:
            same = {name for name in tensors.keys() & dense.keys() if _same(tensors[name], dense[name])}
            wrong["dense"] += sorted((tensors.keys() | dense.keys()) - same)

    look(source.read(source.names_outside([block.prefix for block in blocks])), beside.outer() if beside else None)
    for index, block in enumerate(blocks):
        tensors = source.read(source.names(block.prefix))
        look(tensors, beside.block(index, block.prefix) if beside else None)
        if in_place and (some := of_block(kept, block.prefix)):
            zeroed = {name: tensor.clone() for name, tensor in tensors.items()}
            zero_block(zeroed, block.prefix, family, *selection(some, family))
            wrong["zeros"] += [name for name in tensors if not torch.equal(tensors[name], zeroed[name])]
    wrong["bytes"] += [f"{name} is gone" for name in sorted(digests.keys() - seen)]
    return wrong


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
