"""A model after pruning, quantization, packing and verification, and what its linears are."""

import re
from collections.abc import Callable, Mapping
from math import prod
from statistics import fmean
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from secateur.inspection import Inspection
from secateur.packing import Packing
from secateur.pruning.linear import FEWEST_TOKENS
from secateur.verification.verdict import Verdict

# A share of the weights below this, such as a convolution of a hybrid model, is not worth a note.
WORTH_SAYING = 0.005
# Ways to fold, the freest last.
_FOLDS = ("unordered", "exact", "gather", "none")


def pruning_table(manifest: dict[str, Any]) -> Table:
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
) -> Table:
    """One row per linear of a block, and one of all, with the means of some ``columns`` over the blocks."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        in_block = re.split(r"\.\d+\.", layer["name"])[-1]  # what follows the number of the block
        rows.setdefault(in_block, []).append(layer)
    table = Table(title=title)
    table.add_column("layers")
    for column in ("number", "shape", *columns):
        table.add_column(column, justify="right")
    for label, some in [*rows.items(), ("all", layers)]:
        shape = "×".join(map(str, some[0]["shape"])) if label != "all" else ""
        found = [[value(layer) for layer in some if value(layer) is not None] for value in columns.values()]
        means = [f"{fmean(values):.3f}" if values else "" for values in found]
        table.add_row(label, str(len(some)), shape, *means, end_section=label == list(rows)[-1])
    return table


def pruning_notes(manifest: dict[str, Any]) -> list[str]:
    """What a reader of the table should know besides: what the guard kept, and layers that saw too little."""
    layers, notes = manifest["layers"], []
    if (share := sum(manifest["left_dense"].values())) > WORTH_SAYING:
        linears = ", ".join(list(manifest["left_dense"])[:3])
        notes.append(
            f"{share:.0%} of the weights in the blocks stay dense, since they are no linears that Secateur finds in a "
            f"{manifest['family']} model: {linears}{' …' if len(manifest['left_dense']) > 3 else ''}"
        )
    for step in dict.fromkeys(trial["step"] for trial in manifest["guard"]):
        trials = [trial for trial in manifest["guard"] if trial["step"] == step]
        before, after = (sum(trial[when] for trial in trials) for when in ("before", "after"))
        change = f"by {after / before - 1:+.1%}" if before else f"from zero to {after:.1g}" if after else "by nothing"
        kept = sum(trial["kept"] for trial in trials)
        notes.append(
            f"{step}: kept for {kept} of {len(trials)} reader groups; tried, it changes the error of the block's "
            f"output on {manifest['calibration']['held_out']} held-out samples {change} on average"
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
    return notes


def quantization_table(manifest: dict[str, Any]) -> Table:
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
    asked, weights = manifest["shrinkage"]["sparsity"], manifest["weights"]
    lines = [
        f"{manifest['method']}: {manifest['sparsity']:.2%} of the weights of the blocks' linears are gone "
        f"({asked:.2%} were to go): {weights['dense'] / 1e6:,.1f} → {weights['kept'] / 1e6:,.1f} million",
        *(f"{name}: {value}" for name, value in manifest["config"].items() if not isinstance(value, list)),
    ]
    return Text("\n".join(lines))


def verdict_text(verdict: Verdict) -> Text:
    """What was checked, or what failed."""
    if not verdict.passed:
        lines = [f"{check}: {len(where)} failed, {', '.join(where[:3])}" for check, where in verdict.failures.items()]
        return Text(f"{verdict.model} FAILED\n" + "\n".join(lines), style="bold red")
    measured = verdict.logit_difference
    lines = [*verdict.checked, *([f"largest difference of a logit: {measured:.1e} of the largest"] if measured else [])]
    unchecked = f"\nnot checked: {'; '.join(verdict.unchecked)}" if verdict.unchecked else ""
    return Text(f"{verdict.model}: {'; '.join(lines)}{unchecked}")


def layers_table(found: Inspection) -> Table:
    """Every linear of a checkpoint."""
    table = Table(title=escape(f"{found.model}: {len(found.layers)} linears, family {found.family}"))
    numbers = ("shape", "bits", "sparsity", "N:M")
    quantized = any(layer.bits for layer in found.layers)
    for column in ("layer", "shape", "dtype", *(["bits"] * quantized), "sparsity", "N:M", "reads", "writes"):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for layer in found.layers:
        shape = "×".join(map(str, layer.shape))
        spaces = (layer.reads or "", layer.writes or "")
        bits = [str(layer.bits or "")] * quantized
        table.add_row(layer.name, shape, layer.dtype, *bits, f"{layer.sparsity:.1%}", layer.pattern or "", *spaces)
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
