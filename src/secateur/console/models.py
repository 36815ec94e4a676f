"""A model after pruning, quantization, packing and verification, and what its linears are."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.text import Text

from secateur.budget import Compression
from secateur.checkpoint.maskfile import MaskHeader
from secateur.console.tables import Grid
from secateur.console.terminal import show_time
from secateur.inspection import Inspection, LayerView
from secateur.packing import Packing
from secateur.pruning.linear import FEWEST_TOKENS
from secateur.sizes import show_size
from secateur.verification.verdict import Verdict

# Ways to fold, the freest last.
_FOLDS = ("unordered", "exact", "gather", "none")


def pruning_table(manifest: dict[str, Any]) -> Grid:
    """The layers of a ``secateur.json``, one row per linear of a block, averaged over blocks.

    With ``compare_folds`` the score that every way to fold retains is given as a share of what unstructured sparsity
    retains, so that the price of each is visible.
    """
    folds = [fold for fold in _FOLDS if fold in manifest["layers"][0]["folds"]]
    columns: dict[str, Callable[[dict[str, Any]], float]] = {"score retained": lambda x: x["retained"]}
    if folds:
        columns["of unstructured"] = lambda x: x["retained"] / x["folds"]["unstructured"]
    columns |= {f"… {fold}": lambda x, fold=fold: x["folds"][fold] / x["folds"]["unstructured"] for fold in folds}  # type: ignore[misc]
    if manifest["calibration"]:
        columns["output error"] = lambda x: x["relative_error"]
    title = f"{manifest['method']}: {manifest['sparsity']:.1%} of the pruned weights are zero"
    return _averages(title, manifest["layers"], columns)


def _averages(
    title: str, layers: list[dict[str, Any]], columns: Mapping[str, Callable[[dict[str, Any]], float]]
) -> Grid:
    """One row per linear of a block, and one of all, with the means of some ``columns`` over the blocks."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        rows.setdefault(_in_block(layer["name"]), []).append(layer)
    table = Grid(title, ["layers", "number", "shape", *columns])
    for label, some in [*rows.items(), ("all", layers)]:
        shape = _span([layer["shape"] for layer in some]) if label != "all" else ""
        found = [[value(layer) for layer in some if value(layer) is not None] for value in columns.values()]
        means = [f"{fmean(values):.3f}" if values else "" for values in found]
        table.add(label, str(len(some)), shape, *means, ends=label == list(rows)[-1])
    return table


def _in_block(name: str) -> str:
    """What the linears of a kind have in common: the part of their names behind the number of the block, or expert."""
    return re.split(r"\.\d+\.", name)[-1]


def _span(shapes: Sequence[Sequence[int]]) -> str:
    """``576×1536``, or from where to where each size goes, as in ``576×1024–1536``."""
    return "×".join(_range(str(min(sizes)), str(max(sizes))) for sizes in zip(*shapes, strict=True))


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"


def pruning_notes(manifest: dict[str, Any]) -> list[str]:
    """What a reader of the table should know besides: what the guard kept, layers that saw too little, and, last, which
    share of the decoder stays dense.
    """
    layers, notes = manifest["layers"], []
    for step in dict.fromkeys(trial["step"] for trial in manifest["guard"]):
        trials = [trial for trial in manifest["guard"] if trial["step"] == step]
        before, after = (sum(trial[when] for trial in trials) for when in ("before", "after"))
        change = f"by {after / before - 1:+.1%}" if before else f"from zero to {after:.1g}" if after else "by nothing"
        kept = sum(trial["kept"] for trial in trials)
        judged = "blocks" if step == "tune" else "reader groups"
        notes.append(
            f"{step}: kept for {kept} of {len(trials)} {judged}; tried, it changes the error of the block's "
            f"output on {manifest['calibration']['held_out']} held-out samples {change} on average"
        )
    if far := manifest.get("held_out"):
        notes.append(
            f"on {far['tokens']:,} held-out tokens: KL divergence from the dense model {far['kl']:.3g} nats, the same "
            f"likeliest next token at {far['top1']:.1%}"
        )
    if short := [layer for layer in layers if layer["tokens"] is not None and layer["tokens"] < layer["shape"][1]]:
        notes.append(f"{len(short)} linears have more input channels than calibration tokens: take more samples")
    if blind := [layer for layer in layers if layer["score"] != manifest["recipe"]["score"]]:
        notes.append(
            f"{len(blind)} linears saw fewer than {FEWEST_TOKENS} calibration tokens, and were pruned by their weights "
            f"alone (ri): {', '.join(layer['name'] for layer in blind[:3])}{' …' if len(blind) > 3 else ''}"
        )
    if refused := [layer for layer in layers if layer.get("refused")]:
        notes.append(
            f"{len(refused)} linears could not take every step, whose weights their dtype cannot hold; they keep those "
            f"from before: {', '.join(layer['name'] for layer in refused[:3])}{' …' if len(refused) > 3 else ''}"
        )
    if dead := [layer for layer in layers if layer["dead_channels"]]:
        channels = sum(layer["dead_channels"] for layer in dead)
        notes.append(f"{len(dead)} linears have input channels that were zero at every token, {channels} in all")
    if left := manifest["left_dense"]:
        notes.append(
            f"{manifest['decoder_sparsity']:.1%} of the decoder's weights are zero: {_share(sum(left.values()))} of "
            f"them stay dense, in {', '.join(list(left)[:3])}{' …' if len(left) > 3 else ''}"
        )
    return notes


def _share(share: float) -> str:
    """In percent, with two digits that count."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{share:.0%}"


def quantization_table(manifest: dict[str, Any]) -> Grid:
    """The quantized layers of a ``secateur.json``, one row per linear of a block, averaged over blocks."""
    said = manifest["quantization"]
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "zero before": lambda x: x["zeros_before"] / prod(x["shape"]),
        "zero after": lambda x: x["zeros"] / prod(x["shape"]),
    }
    if said["calibration"]:
        columns["output error"] = lambda x: x["relative_error"]
    return _averages(said["method"], said["layers"], columns)


def quantization_notes(manifest: dict[str, Any]) -> list[str]:
    """What was left as it is, and what the model takes now."""
    said = manifest["quantization"]
    notes = []
    if left := said["left_dense"]:
        linears = ", ".join(list(left)[:3])
        notes.append(
            f"{sum(left.values()):.1%} of the weights in the blocks stay as they are, since the format does not hold "
            f"them: {linears}{' …' if len(left) > 3 else ''}"
        )
    if said["skipped"]:
        notes.append(f"{len(said['skipped'])} linears were left as they are (--skip)")
    notes.append(
        f"{len(said['layers'])} linears at {said['bits_per_weight']:.3f} bits a weight, scales and zero-points "
        f"included: {_change(*said['bytes']['linears'])}; all tensors: {_change(*said['bytes']['all'])}"
    )
    return notes


def shrinking_text(manifest: dict[str, Any]) -> Text:
    """What was removed, and what the config says now."""
    options, weights = manifest["shrinkage"], manifest["weights"]
    experts = options["experts"]
    asked = f"{options['sparsity']:.2%}" if experts is None else f"{experts:.2%} of the experts"
    lines = [
        f"{manifest['method']}: {manifest['sparsity']:.2%} of the weights of the blocks' "
        f"{'linears' if experts is None else 'matrices'} are gone ({asked} were to go): "
        f"{weights['dense'] / 1e6:,.1f} → {weights['kept'] / 1e6:,.1f} million",
        *(f"{name}: {value}" for name, value in manifest["config"].items() if not isinstance(value, list)),
    ]
    return Text("\n".join(lines))


def mask_text(header: MaskHeader, path: Path) -> Text:
    """What a mask is of."""
    weights = sum(prod(entry.shape) for entry in header.weights.values())
    patterns = ", ".join(dict.fromkeys(entry.pattern for entry in header.weights.values()))
    return Text(f"{path}: the mask of {len(header.weights)} linears, {weights / 1e6:,.1f} million weights, {patterns}")


def applied_text(manifest: dict[str, Any]) -> Text:
    """What putting on a mask has changed."""
    layers = manifest["layers"]
    gone, weights = sum(layer["set_to_zero"] for layer in layers), sum(prod(layer["shape"]) for layer in layers)
    return Text(
        f"{manifest['method']}: {manifest['sparsity']:.2%} of the weights of {len(layers)} linears are zero; "
        f"{gone:,} of {weights:,} were not before"
    )


def verdict_text(verdict: Verdict) -> Text:
    """What was checked, or what failed."""
    if not verdict.passed:
        lines = [f"{check}: {len(where)} failed, {', '.join(where[:3])}" for check, where in verdict.failures.items()]
        return Text(f"{verdict.model} FAILED\n" + "\n".join(lines), style="bold red")
    measured = verdict.logit_difference
    lines = [*verdict.checked, *([f"largest difference of a logit: {measured:.1e} of the largest"] if measured else [])]
    unchecked = f"\nnot checked: {'; '.join(verdict.unchecked)}" if verdict.unchecked else ""
    return Text(f"{verdict.model}: {'; '.join(lines)}{unchecked}")


def kinds_table(found: Inspection) -> Grid:
    """The linears of a checkpoint by kind: how many, of which shapes, how sparse, and which N:M they obey."""
    kinds: dict[tuple[str, str, int | None], list[LayerView]] = {}
    for layer in found.layers:
        kinds.setdefault((_in_block(layer.name), layer.dtype, layer.bits), []).append(layer)
    table = Grid(_inspected(found), ["linears", "number", "shape", "dtype", "bits", "sparsity", "N:M"])
    for (kind, dtype, bits), layers in kinds.items():
        shape = _span([layer.shape for layer in layers])
        table.add(kind, str(len(layers)), shape, dtype, str(bits or ""), _sparsities(layers), _patterns(layers))
    return table


def _sparsities(layers: Sequence[LayerView]) -> str:
    """``50.0%``, or from where to where it goes."""
    shares = [layer.sparsity for layer in layers]
    return _range(f"{min(shares):.1%}", f"{max(shares):.1%}")


def _patterns(layers: Sequence[LayerView]) -> str:
    """``2:4``, or how many obey which, as in ``2:4 (28)``."""
    counts = Counter(layer.pattern for layer in layers if layer.pattern)
    return ", ".join(name if number == len(layers) else f"{name} ({number})" for name, number in counts.most_common())


def layers_table(found: Inspection) -> Grid:
    """Every linear of a checkpoint, with the spaces that it joins."""
    columns = ["layer", "shape", "dtype", "bits", "sparsity", "N:M", "reads", "writes"]
    table = Grid(_inspected(found), columns)
    for layer in found.layers:
        shape, spaces = "×".join(map(str, layer.shape)), (layer.reads or "", layer.writes or "")
        table.add(
            layer.name, shape, layer.dtype, str(layer.bits or ""), f"{layer.sparsity:.1%}", layer.pattern or "", *spaces
        )
    return table


def _inspected(found: Inspection) -> str:
    return f"{found.model}: {len(found.layers)} linears, family {found.family}"


def folder_notes(folder: Path, costs: Mapping[str, float], following: Sequence[Sequence[object]]) -> list[Text]:
    """What a command took that wrote a model folder, what this takes, and the words of the commands that come next."""
    lines = [
        f"took {show_time(costs['elapsed_seconds'])}",
        f"written to {folder}: {show_size(int(costs['bytes_on_disk']))} on disk",
        *(f"next: secateur {shlex.join(map(str, words))}" for words in following),
    ]
    return [Text(line, no_wrap=True) for line in lines]  # to be copied whole


def compression_table(result: Compression) -> Grid:
    """The ways to keep a budget, of which the first was taken."""
    taken, *others = result.ways
    table = Grid(f"{result.model}: {taken}, {_change(result.dense, result.size)}", ["way", "at most", "loss"])
    for way in (taken, *others):
        loss = "" if way.loss is None else f"{way.loss:.1%}"
        table.add(str(way), show_size(way.size), loss, ends=way is taken)
    return table


def packing_text(packing: Packing) -> Text:
    """What packing saved."""
    rounded = " as int8" if packing.int8 else " as int4" if packing.int4 else ""
    return Text(
        f"{packing.linears} linears{rounded}: {_change(packing.dense_bytes, packing.packed_bytes)}; "
        f"all tensors: {_change(packing.total_dense_bytes, packing.total_packed_bytes)}"
    )


def _change(before: int, after: int) -> str:
    return f"{before / 1e6:,.1f} MB → {after / 1e6:,.1f} MB ({after / before:.4f})"
