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

from secateur.benchmark.plan import Plan
from secateur.benchmark.running import Benchmark
from secateur.benchmark.timing import OVERALL, Measurement, Spread
from secateur.evaluate.comparison import Comparison, compare
from secateur.evaluate.evaluation import Evaluation
from secateur.evaluate.perplexity import Perplexity
from secateur.evaluate.zero_shot import TaskScore
from secateur.formats.packing import Packing
from secateur.inspection import Inspection
from secateur.layers import FEWEST_TOKENS
from secateur.progress import Progress
from secateur.runtime.choosing import BUCKETS, DENSE, Choice
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
        found = [[value(layer) for layer in layers if value(layer) is not None] for value in columns.values()]
        means = [f"{fmean(values):.3f}" if values else "" for values in found]
        table.add_row(kind, str(len(layers)), shape, *means, end_section=kind == list(kinds)[-1])
    return table


def pruning_notes(manifest: dict[str, Any]) -> list[str]:
    """What a reader of the table should know besides: what the guard kept, and layers that saw too little."""
    layers, notes = manifest["layers"], []
    for step in dict.fromkeys(trial["step"] for trial in manifest["guard"]):
        trials = [trial for trial in manifest["guard"] if trial["step"] == step]
        change = fmean(trial["after"] / trial["before"] - 1 for trial in trials if trial["before"])
        kept = sum(trial["kept"] for trial in trials)
        notes.append(
            f"{step}: kept for {kept} of {len(trials)} reader groups; tried, it changes the error of the block's "
            f"output on {manifest['calibration']['held_out']} held-out samples by {change:+.1%} on average"
        )
    if short := [layer for layer in layers if layer["tokens"] is not None and layer["tokens"] < layer["shape"][1]]:
        notes.append(f"{len(short)} linears have more input channels than calibration tokens: take more samples")
    if blind := [layer for layer in layers if layer["score"] != manifest["recipe"]["score"]]:
        notes.append(
            f"{len(blind)} linears saw fewer than {FEWEST_TOKENS} calibration tokens, and were pruned by their weights "
            f"alone (ri): {', '.join(layer['name'] for layer in blind[:3])}{' …' if len(blind) > 3 else ''}"
        )
    if dead := [layer for layer in layers if layer["dead_channels"]]:
        channels = sum(layer["dead_channels"] for layer in dead)
        notes.append(f"{len(dead)} linears have input channels that were zero at every token, {channels} in all")
    return notes


def evaluation_table(results: Sequence[Evaluation]) -> Table:
    """Models side by side, the first of them the dense one: a column per text and task.

    Below each perplexity is its 95 % interval, then the rise against the dense model and the interval of that, then
    the share of the second model's rise that was prevented. Of each task the first metric is shown, with its standard
    error.
    """
    first = results[0]
    tasks = _shown(first.tasks)
    table = Table(show_lines=any(result.texts for result in results))
    table.add_column("model", overflow="fold")
    for text in first.texts:
        stride = f" every {text.stride}" if text.stride < text.window else ""
        table.add_column(f"perplexity on {text.data}\n{text.windows} × {text.window}{stride}", justify="right")
    for task in tasks:
        table.add_column(f"{task.task}\n{task.metric}, %", justify="right")
    if len(tasks) > 1:
        table.add_column("mean", justify="right")
    for result, row in zip(results, compare(results), strict=True):
        texts = [_perplexity(*each) for each in zip(result.texts, row, strict=True)]
        scores = _shown(result.tasks)
        mean = [f"{100 * fmean(task.score for task in scores):.1f}"] if len(scores) > 1 else []
        table.add_row(result.model, *texts, *map(_score, scores), *mean)
    return table


def _perplexity(text: Perplexity, against: Comparison | None) -> str:
    lines = [f"{text.perplexity:,.2f}"]
    if text.low is not None and text.high is not None:
        lines.append(f"{text.low:,.2f} – {text.high:,.2f}")
    if against:
        between = f" ({against.rise_low:,.0%} – {against.rise_high:,.0%})" if against.rise_low is not None else ""
        lines.append(f"{against.rise:+,.1%}{between}")
        if against.prevented is not None:
            lines.append(f"{against.prevented:,.0%} prevented")
    return "\n".join(lines)


def _shown(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """The first metric of each task that is not part of a group."""
    firsts: dict[str, TaskScore] = {}
    for score in scores:
        if score.part_of is None:
            firsts.setdefault(score.task, score)
    return list(firsts.values())


def _score(task: TaskScore) -> str:
    error = f" ± {100 * task.standard_error:.1f}" if task.standard_error is not None else ""
    return f"{100 * task.score:.1f}{error}"


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
    sparse = any(form != DENSE for choice in result.choices for form in choice.forms.values())
    means = f"packed weights, {result.kernels} kernels" if result.kernels else f"{'2:4' if sparse else 'dense'} weights"
    return Text(
        f"{rate} after {result.prefill_seconds:.2f} s for {result.prompt_tokens} tokens of prompt "
        f"({means}, {result.dtype}, {result.device})"
    )


def modules_table(result: Benchmark) -> Table:
    """Times of linears by kind: a section per workload, a row per kind."""
    table = _speed_table(f"{result.linears} linears of {result.model}, all blocks, in ms", result)
    seen = None
    for row in result.modules:
        if row.workload != seen:
            table.add_row(f"[bold]{row.workload}[/]")
            seen = row.workload
        table.add_row(_labelled(row.kind, row), *_times(row), end_section=row.kind == OVERALL)
    return table


def model_table(result: Benchmark) -> Table:
    """Times of the whole model: prefill in milliseconds, decoding in tokens per second, by batch × length."""
    table = _speed_table(f"end to end, {result.tokens} tokens decoded after each prompt", result)
    seen = None
    for row in result.end_to_end:
        work = row.workload
        if work.phase != seen:
            if seen:
                table.add_section()
            table.add_row("[bold]prefill, ms[/]" if work.phase == "prefill" else "[bold]decode, tokens/s[/]")
            seen = work.phase
        if work.phase == "prefill":
            cells = _times(row)
        else:
            cells = [
                *(_spread(_rate(work.tokens, seconds)) for seconds in (row.dense, row.sparse)),
                _spread(row.speedup),
            ]
        table.add_row(_labelled(work.size, row), *cells)
    return table


def _speed_table(title: str, result: Benchmark) -> Table:
    table = Table("", title=title)
    for column in ("dense bfloat16", f"packed {result.values}", "times as fast"):
        table.add_column(column, justify="right")
    return table


def _labelled(label: str, row: Measurement) -> str:
    return f"{label} [bold red]slower[/]" if row.is_slower else label


def _rate(tokens: int, seconds: Spread) -> Spread:
    return Spread(tokens / seconds.high, tokens / seconds.median, tokens / seconds.low)


def _times(row: Measurement) -> list[str]:
    spreads = (Spread(1e3 * x.low, 1e3 * x.median, 1e3 * x.high) for x in (row.dense, row.sparse))
    return [*map(_spread, spreads), _spread(row.speedup)]


def _spread(x: Spread) -> str:
    """The median, and quartiles in brackets, with three digits or all before the point."""

    def digits(value: float) -> str:
        return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"

    return f"{digits(x.median)} [dim]({digits(x.low)}–{digits(x.high)})[/]"


def benchmark_notes(result: Benchmark) -> list[str]:
    """Where packed weights were slower, and what one must know to read the tables."""
    slower: dict[str, list[str]] = {}
    for row in result.slower:
        slower.setdefault(str(row.workload), []).append(f"{row.kind} {row.speedup.median:.2f}×")
    notes = [f"slower than dense in {work}: {', '.join(rows)}" for work, rows in slower.items()]
    if not slower:
        notes.append("packed weights were nowhere slower than dense ones")
    if result.left_dense:
        notes.append(
            f"{result.left_dense} pruned linears ran dense on both sides, and only count end to end: "
            "experts and transposed weights are not run packed"
        )
    notes.append(
        f"the linears take {result.dense_bytes / 1e6:,.1f} MB dense, {result.packed_bytes / 1e6:,.1f} MB packed; "
        f"{result.kernels} kernels, {result.machine}; medians of {result.rounds} rounds, quartiles in brackets"
    )
    return notes


def plan_tables(result: Plan) -> list[Table]:
    """What a model would take, and how fast it could be."""
    sizes = Table(title=f"{result.model} at {result.pattern}, in MB")
    for column in ("linears", "number", "shapes", "bfloat16", "packed", "packed int8"):
        sizes.add_column(column, justify="left" if column in ("linears", "shapes") else "right")
    for row in result.kinds:
        shapes = "\n".join(f"{rows}×{columns}" for rows, columns in row.shapes)
        cells = _shrinking(row.size.dense, row.size.bfloat16, row.size.int8)
        sizes.add_row(row.kind, str(row.linears), shapes, *cells, end_section=row is result.kinds[-1])
    sizes.add_row("whole model", "", "", *_shrinking(*(bound.model_bytes for bound in result.bounds)))
    bounds = Table(title="generating text, one sequence at a time")
    for column in ("weights", "MB per token", "GB/s", "tokens/s at most", "times dense, by bytes"):
        bounds.add_column(column, justify="left" if column == "weights" else "right")
    for bound in result.bounds:
        name = {"dense": "bfloat16", "bfloat16": "packed", "int8": "packed int8"}[bound.weights]
        numbers = f"{bound.token_bytes / 1e6:,.1f}", f"{bound.read_rate / 1e9:.1f}", f"{bound.tokens_per_second:,.1f}"
        bounds.add_row(name, *numbers, f"{bound.by_bytes:.2f}")
    return [sizes, bounds]


def _shrinking(dense: int, *packed: int) -> list[str]:
    """Bytes in MB, and as shares of the dense ones."""
    return [f"{dense / 1e6:,.1f}", *(f"{part / 1e6:,.1f} ({part / dense:.4f})" for part in packed)]


def plan_notes(result: Plan) -> list[str]:
    """How the tables are meant."""
    notes = [
        "bytes depend on the share of weights that are kept, not on where they lie: 2:4, 16:32 and 50 % take the same",
        "tokens/s are bounds from above: the bytes of the weights over the rate at which so many are read here, as "
        f"measured ({result.machine}), without KV cache and arithmetic; "
        "where dense products stay below their bound, packing gains more than the bytes say",
    ]
    if result.dense_linears:
        notes.append(
            f"{result.dense_linears} linears, experts or transposed, are stored packed but run dense: "
            "MB per token count them so"
        )
    return notes


def choices_table(choices: Sequence[Choice]) -> Table:
    """What multiplies with 2:4 linears on a GPU, by number of tokens, with its speed and memory against dense."""
    table = Table(title="2:4 linears: what multiplies how many tokens, and its speed against dense")
    for column in ("shape", "number", *(f"{tokens:,}" for tokens in BUCKETS), "memory"):
        table.add_column(column, justify="right")
    for choice in choices:
        times = choice.measured.times
        cells = [
            form if form == DENSE else f"{form} {times[tokens][DENSE] / times[tokens][form]:.2f}×"
            for tokens, form in choice.forms.items()
        ]
        shape = "×".join(map(str, choice.shape)) + (" + bias" if choice.bias else "")
        table.add_row(shape, str(choice.layers), *cells, f"{choice.memory:.2f}×")
    refused = {f"not used: {name}: {why}": None for x in choices for name, why in x.measured.refused.items()}
    table.caption = Text("\n".join(refused)) if refused else None
    return table
