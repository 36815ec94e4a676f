"""Prove, from the files alone, that a written model is what its manifest says."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from transformers import PreTrainedModel

from secateur.checkpoint import MANIFEST, Source, changed_files, local_folder, opened, unlisted_files
from secateur.devices import full_precision
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.patterns import NM, in_rows, show_patterns
from secateur.pruning.prepare import Task, prepare
from secateur.quantization.methods import QUANTIZATIONS
from secateur.recipe import Recipe
from secateur.verification.dense import DenseComparison, check_same_tensors
from secateur.verification.manifest import Layer, Quantization, read_manifest
from secateur.verification.quantized import ZerosComparison
from secateur.verification.shrunk import is_shrunk, verify_shrunk
from secateur.verification.verdict import Verdict
from secateur.verification.written import WrittenChecks

# In float32 the logits of a folded model may differ from the unfolded one's by this share of the largest logit.
LOGIT_TOLERANCE = 1e-4


def verify(model: str | Path, dense: str | Path | None = None) -> Verdict:
    """Check a folder that :func:`secateur.prune`, :func:`secateur.quantize`, :func:`secateur.shrink` or
    :func:`secateur.apply` wrote.

    What is checked of a shrunk one, :func:`~secateur.verification.shrunk.verify_shrunk` says. Of the others:

    ``layers``: the linears that the manifest lists are all that its recipe prunes. ``pattern``: each obeys the pattern
    as it is stored; where masks were mapped back (``--fold none``), that it has as many zeros in every row. ``zeros``
    and ``bytes``: its zeros are where the mask put them, and its bytes those that were written. ``shape``,
    ``sparsity``: the figures in the manifest are those of the files. ``unpruned``: all other tensors are as they were
    written. ``files``: so are the config, the tokenizer and what else lies beside them, and nothing was added that is
    read when the model is loaded.

    Of a quantized folder the same is checked as its weights decode: those that were pruned have at least the zeros that
    they had, where the manifest has them, and decode to the bytes that were written. Given the model that was quantized
    as the dense one, ``weights``: every weight that is zero there is zero here, and what was not quantized is the same.

    Given the dense model, ``weights``: every tensor is the dense one, masked and in the recorded order of channels, bit
    for bit (excepted are pruned weights whose kept ones were changed, and norms and biases of which the manifest says
    that they were tuned); and ``logits``: the model computes the same as with all channels in the dense model's order.

    Args:
        model: the folder that was written.
        dense: the model that was pruned: a hub name, a folder, or a ``.gguf`` file.

    Raises:
        InputError: when the folder was not written by Secateur, or a model cannot be read.
    """
    folder = Path(model)
    if is_shrunk(folder):
        return verify_shrunk(folder, dense)
    manifest, recipe = read_manifest(folder)
    source = opened(folder)
    rounded = manifest.rounded.sha256 if manifest.rounded else {}
    if any(entry.group for entry in source.sparse.values()) and not (manifest.quantization or rounded):
        raise InputError(
            f"{folder} holds weights that packing has rounded, and {MANIFEST} has no digests of them: pack it again"
        )
    skeleton = source.skeleton(torch.float32)
    task = prepare(skeleton, recipe) if recipe else _nothing(skeleton)
    unchecked = []
    if recipe and recipe.orders_channels and recipe.fold == "none":  # each row then keeps as many weights, anywhere
        grouped = show_patterns(x for x in task.patterns.values() if isinstance(x, NM))
        unchecked.append(f"{grouped}: with --fold none it holds in the order that was searched, not as stored")
        task = replace(task, patterns={name: in_rows(pattern) for name, pattern in task.patterns.items()})
    linears = [block.full_name(linear) for block in task.blocks for linear in block.linears]
    known = {layer.name: layer for layer in manifest.layers if layer.name in {*linears}}
    failures = {"layers": _amiss([layer.name for layer in manifest.layers], linears)}
    if quantization := manifest.quantization:
        failures |= _quantized(quantization, source, known)
        known |= {layer.name: layer.written for layer in quantization.layers}
        task = _with(task, skeleton, {layer.name for layer in quantization.layers})
    written = WrittenChecks(task, known, manifest.unpruned_sha256, rounded)
    with ExitStack() as stack:
        comparison: DenseComparison | ZerosComparison | None = None
        if dense is not None:
            original = Source(stack.enter_context(local_folder(str(dense))))
            check_same_tensors(source, original, str(dense))
            if quantization or rounded:
                layers, scales = (quantization.layers, _scales(quantization, folder)) if quantization else ([], False)
                names = {f"{layer.name}.weight" for layer in layers} | {*rounded}
                comparison = ZerosComparison(original, names, scales)
            else:
                comparison = DenseComparison(source, original, skeleton, task, known, manifest.tuned)
        difference = _pass(source, task, written, comparison)
    written.end(None if quantization or rounded or not recipe else manifest.sparsity)
    for check, where in written.failures.items():
        failures[check] = [*failures.get(check, []), *where]
    patterns = show_patterns(task.patterns[name] for name in linears)
    checked = []
    if recipe:
        checked.append(
            f"{len(linears)} linears obey {patterns} as stored, and there are no others that the recipe prunes"
        )
    if quantization:
        number = len(quantization.layers)
        checked.append(f"{number} linears are quantized, and none of them has fewer zeros than before")
    if rounded:
        checked.append(
            f"{len(rounded)} tensors hold what packing has rounded them to, and no linear has fewer zeros than before"
        )
    elif linears or quantization:
        checked.append("their zeros and bytes are those that were written")
    if manifest.unpruned_sha256 is None:
        unchecked.append(f"all other tensors: {MANIFEST} has no digests of them")
    else:
        checked.append(f"so are {len(manifest.unpruned_sha256.keys() - rounded.keys())} other tensors")
    if manifest.files is None:
        unchecked.append(f"the config and the tokenizer, but for sizes and ids: {MANIFEST} has no digests of them")
    else:
        failures["files"] = changed_files(folder, manifest.files)
        added = [name for name in unlisted_files(folder, manifest.files) if name not in failures["files"]]
        unchecked += [f"{name}, which was added" for name in added]
        checked.append("and the config, the tokenizer and what else lies beside the weights")
    if comparison:
        failures |= {"weights": sorted(comparison.wrong)}
    if isinstance(comparison, ZerosComparison):
        done = "quantized" if quantization else "rounded"
        checked.append(f"what is zero in {dense} is zero here, and what was not {done} is the same")
    elif quantization or rounded:
        done = "quantized" if quantization else "packed"
        unchecked.append(f"whether each weight that was zero before still is (--dense, with the model that was {done})")
    elif comparison is None or difference is None:
        unchecked.append("whether the weights and logits are the dense model's (--dense)")
    else:
        if not difference <= LOGIT_TOLERANCE:
            failures["logits"] = [f"differ by {difference:.2g} of the largest"]
        besides = f", and {len(manifest.tuned)} norms and biases" if manifest.tuned else ""
        checked += [
            f"all tensors but these, whose weights were changed{besides}, are the dense model's in the recorded order"
            if recipe and recipe.changes_weights
            else "all tensors are the dense model's, masked and in the recorded order",
            "the logits are those of the same weights in the dense model's order",
        ]
    found = {check: where for check, where in failures.items() if where}
    return Verdict(str(model), checked, found, difference, unchecked)


@torch.no_grad()
@full_precision()
def _pass(
    source: Source, task: Task, written: WrittenChecks, comparison: DenseComparison | ZerosComparison | None
) -> float | None:
    """Read the written model once, one block in memory, and let the checks see it; how far logits differ."""
    outer = source.read(source.names_outside([block.prefix for block in task.blocks]))
    written.outer(outer)
    if comparison:
        comparison.outer(outer)
    del outer
    for index, block in enumerate(task.blocks):
        tensors = source.read(source.names(block.prefix))
        written.block(block, tensors)
        if comparison:
            comparison.block(index, tensors)
        del tensors  # before the next is read
    return comparison.logit_difference() if comparison else None


def _nothing(model: PreTrainedModel) -> Task:
    """The task of a model that was never pruned."""
    family = family_of(model)
    blocks = [replace(block, linears=()) for block in blocks_of(model, family)]
    return Task(Recipe(), family, blocks, [], {})


def _with(task: Task, model: PreTrainedModel, names: Collection[str]) -> Task:
    """The same task with the linears of these full names besides."""
    blocks = []
    for block, whole in zip(task.blocks, blocks_of(model, task.family), strict=True):
        linears = tuple(x for x in whole.linears if x in block.linears or block.full_name(x) in names)
        blocks.append(replace(block, linears=linears))
    return replace(task, blocks=blocks)


def _quantized(said: Quantization, source: Source, pruned: Mapping[str, Layer]) -> dict[str, list[str]]:
    """What the manifest says wrongly of the linears that are quantized, or of their zeros before."""
    names, held = [layer.name for layer in said.layers], [name.removesuffix(".weight") for name in source.quantized]
    zeros = []
    for layer in said.layers:
        if layer.zeros < layer.zeros_before:
            zeros.append(f"{layer.name} has {layer.zeros} zeros, and had {layer.zeros_before}")
        before = pruned.get(layer.name)
        if before and layer.zeros_before < round(before.sparsity * prod(before.shape)):
            zeros.append(f"{layer.name} had {before.sparsity:.2%} zeros when it was pruned, not {layer.zeros_before}")
    odd = (Counter(names) - Counter(held)) + (Counter(held) - Counter(names))
    amiss = [f"{name} is quantized, or in {MANIFEST} as quantized, and not both, or twice" for name in odd]
    return {"quantized": sorted(amiss) if source.scheme else [], "zeros": zeros}  # else packed, or unpacked


def _scales(said: Quantization, folder: Path) -> bool:
    if (method := QUANTIZATIONS.get(said.recipe.method)) is None:
        raise InputError(f"{folder / MANIFEST}: there is no method {said.recipe.method!r} to quantize by")
    return method.scales


def _amiss(listed: Sequence[str], linears: Collection[str]) -> list[str]:
    """What the manifest leaves out of the linears that the recipe prunes, and what it lists besides, or twice."""
    more = list((Counter(listed) - Counter([*linears])).elements())
    return [f"{name} is not in {MANIFEST}" for name in linears if name not in listed] + [
        f"{name} is in {MANIFEST}, but not among the linears that its recipe prunes, or twice" for name in more
    ]
