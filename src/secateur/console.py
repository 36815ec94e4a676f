"""What people see in a terminal: progress bars on standard error, tables on standard output."""

import re
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.table import Table
from rich.text import Text

from secateur.evaluate.perplexity import Perplexity
from secateur.formats.packing import Packing
from secateur.inspection import Inspection
from secateur.progress import Progress
from secateur.runtime.generation import Generation
from secateur.verification import Verdict

# Ways to fold, the freest last.
_FOLDS = ("unordered", "exact", "gather", "none")

out = Console()
err = Console(stderr=True)


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, bar: Bar) -> Text:
        speed = bar.finished_speed or bar.speed
        return Text(f"{speed:,.0f} {bar.fields['unit']}/s" if speed else "", style="progress.data.speed")


class TerminalProgress(Progress):
    """A bar with block, layer, tokens per second and time left."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[where]}", style="dim"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._bar: TaskID | None = None

    def start(self, what: str, total: int, unit: str = "tokens") -> None:
        self._stop()
        self._bar = self._bars.add_task(what, total=total, unit=unit, where="")
        self._bars.start()

    def at(self, where: str) -> None:
        if self._bar is not None:
            self._bars.update(self._bar, where=where)

    def advance(self, amount: int) -> None:
        if self._bar is not None:
            self._bars.advance(self._bar, amount)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bars.stop()
            self._bars.remove_task(self._bar)
            self._bar = None

    def __exit__(self, *_: object) -> None:
        self._stop()


def pruning_table(manifest: dict[str, Any]) -> Table:
    """The layers of a ``secateur.json``, one row per kind, averaged over blocks.

    For an N:M pattern the retained score is also given as a share of what unstructured sparsity retains,
    and with ``compare_folds`` the same for every way to fold, so that the price of each is visible.
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for layer in manifest["layers"]:
        kind = re.split(r"\.\d+\.", layer["name"])[-1]  # what follows the number of the block
        kinds.setdefault(kind, []).append(layer)
    folds = sorted(manifest["layers"][0]["folds"], key=_FOLDS.index)
    columns: dict[str, Callable[[dict[str, Any]], float]] = {"score retained": lambda x: x["retained"]}
    if manifest["recipe"]["pattern"]:
        columns["of unstructured"] = lambda x: x["retained"] / x["unstructured"]
    columns |= {f"… {fold}": lambda x, fold=fold: x["folds"][fold] / x["unstructured"] for fold in folds}  # type: ignore[misc]
    if manifest["calibration"]:
        columns["output error"] = lambda x: x["relative_error"]
    table = Table(title=f"{manifest['method']}: {manifest['sparsity']:.1%} of the pruned weights are zero")
    table.add_column("layers")
    for column in ("number", "shape", *columns):
        table.add_column(column, justify="right")
    for kind, layers in [*kinds.items(), ("all", manifest["layers"])]:
        shape = "×".join(map(str, layers[0]["shape"])) if kind != "all" else ""
        means = [f"{fmean(value(layer) for layer in layers):.3f}" for value in columns.values()]
        table.add_row(kind, str(len(layers)), shape, *means, end_section=kind == list(kinds)[-1])
    return table


def perplexity_table(results: Sequence[Perplexity]) -> Table:
    """Models side by side, the first of them as the reference."""
    first = results[0]
    table = Table(title=f"perplexity on {first.data}, {first.windows} windows of {first.window} tokens")
    table.add_column("model")
    table.add_column("perplexity", justify="right")
    table.add_column("against the first", justify="right")
    for result in results:
        rise = "" if result is first else f"{result.perplexity / first.perplexity - 1:+.1%}"
        table.add_row(result.model, f"{result.perplexity:,.2f}", rise)
    return table


def verdict_text(verdict: Verdict) -> Text:
    """What was checked, or what failed."""
    if not verdict.passed:
        lines = [f"{check}: {len(where)} failed, {', '.join(where[:3])}" for check, where in verdict.failures.items()]
        return Text(f"{verdict.model} FAILED\n" + "\n".join(lines), style="bold red")
    measured = verdict.logit_difference
    lines = [*verdict.checked, *([f"largest difference of a logit: {measured:.1e} of the largest"] if measured else [])]
    return Text(f"{verdict.model}: " + "; ".join(lines))


def layers_table(found: Inspection) -> Table:
    """Every linear of a checkpoint."""
    table = Table(title=f"{found.model}: {len(found.layers)} linears, family {found.family}")
    for column in ("layer", "shape", "dtype", "sparsity", "N:M", "reads", "writes"):
        table.add_column(column, justify="right" if column in ("shape", "sparsity", "N:M") else "left", overflow="fold")
    for layer in found.layers:
        shape = "×".join(map(str, layer.shape))
        spaces = (layer.reads or "", layer.writes or "")
        table.add_row(layer.name, shape, layer.dtype, f"{layer.sparsity:.1%}", layer.pattern or "", *spaces)
    return table


def packing_text(packing: Packing) -> Text:
    """What packing saved."""

    def change(before: int, after: int) -> str:
        return f"{before / 1e6:,.1f} MB → {after / 1e6:,.1f} MB ({after / before:.4f})"

    return Text(
        f"{packing.linears} linears{' as int8' if packing.int8 else ''}: "
        f"{change(packing.dense_bytes, packing.packed_bytes)}; "
        f"all tensors: {change(packing.total_dense_bytes, packing.total_packed_bytes)}"
    )


def speed_text(result: Generation) -> Text:
    """How fast it was, and by what means."""
    rate = f"{result.tokens_per_second:,.1f} tokens/s" if result.tokens_per_second else "one token"
    means = f"packed weights, {result.kernels} kernels" if result.kernels else "dense weights"
    return Text(
        f"{rate} after {result.prefill_seconds:.2f} s for {result.prompt_tokens} tokens of prompt "
        f"({means}, {result.dtype})"
    )
