"""How fast a model is, or could be."""

from collections.abc import Sequence

from rich.text import Text

from secateur.benchmark.measuring import Benchmark
from secateur.benchmark.timing import OVERALL, Measurement, Spread
from secateur.console.tables import Grid
from secateur.runtime.choosing import BUCKETS, DENSE, Choice, nearest
from secateur.runtime.generation import Generation


def speed_text(result: Generation) -> Text:
    """How fast it was, and by what means."""
    rate = f"{result.tokens_per_second:,.1f} tokens/s" if result.tokens_per_second else "one token"
    forms = dict.fromkeys(form for choice in result.choices for form in choice.forms.values()) or [DENSE]
    means = f"packed weights, {result.kernels} kernels" if result.kernels else f"{' and '.join(forms)} weights"
    means += ", in a CUDA graph" if result.graph else ""
    return Text(
        f"{rate} after {result.prefill_seconds:.2f} s for {result.prompt_tokens} tokens of prompt "
        f"({means}, {result.dtype}, {result.device})"
    )


def choices_table(choices: Sequence[Choice]) -> Grid:
    """What multiplies with pruned linears on a GPU, by number of tokens, with its speed and memory against dense."""
    title = "pruned linears: what multiplies how many tokens, and its speed against dense"
    table = Grid(title, ["shape", "pattern", "number", *(f"{tokens:,}" for tokens in BUCKETS), "memory"], words=2)
    for choice in choices:
        times = choice.measured.times
        cells = [
            form if form == DENSE else f"{form} {times[tokens][DENSE] / times[tokens][form]:.2f}×"
            for tokens, form in choice.forms.items()
        ]
        table.add(_shape(choice), choice.pattern, str(choice.layers), *cells, f"{choice.memory:.2f}×")
    return table


def choices_notes(choices: Sequence[Choice]) -> list[str]:
    """Which forms could not be used, and why."""
    return list(dict.fromkeys(f"not used: {name}: {why}" for x in choices for name, why in x.measured.refused.items()))


def _shape(choice: Choice) -> str:
    return "×".join(map(str, choice.shape)) + (" + bias" if choice.bias else "")


def modules_table(result: Benchmark) -> Grid:
    """Times of linears by role: a group per workload, a row per role."""
    table = _speed_table(f"{result.linears} linears of {result.model}, all blocks, in ms", _form(result))
    for row in result.modules:
        _add(table, row.part, _times(row), row, str(row.workload), ends=row.part == OVERALL)
    return table


def model_table(result: Benchmark) -> Grid:
    """Times of the whole model: prefill in milliseconds, decoding in tokens per second, by batch × length."""
    phases = [name for name, is_one in (("prefill", result.prefill_graph), ("decode", result.graph)) if is_one]
    graphs = f", {' and '.join(phases)} in CUDA graphs" if phases else ""
    title = f"end to end, {result.tokens} tokens decoded after each prompt{graphs}"
    return _end_to_end(_speed_table(title, _form(result)), result.end_to_end)


def structured_table(result: Benchmark) -> Grid:
    """The same for a smaller dense model against the dense one."""
    half = "a dense model of half the width (structured 50 %)"
    title = f"{result.shrunk or half} beside {result.model}, end to end"
    return _end_to_end(_speed_table(title, "shrunk" if result.shrunk else "half the width"), result.structured)


def _end_to_end(table: Grid, rows: Sequence[Measurement]) -> Grid:
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        work = row.workload
        if work.phase == "prefill":
            group, cells = "prefill, ms", _times(row)
        else:
            rates = [_spread(_rate(work.tokens, seconds)) for seconds in (row.dense, row.sparse)]
            group, cells = "decode, tokens/s", [*rates, _spread(row.speedup)]
        ends = following is not None and following.workload.phase != work.phase
        _add(table, work.size, cells, row, group, ends)
    return table


def _speed_table(title: str, form: str) -> Grid:
    return Grid(title, ["", "dense bfloat16", form, "times as fast"], group="workload")


def _form(result: Benchmark) -> str:
    return f"{result.form} {result.values}"


def _add(table: Grid, label: str, cells: Sequence[str], row: Measurement, group: str, ends: bool) -> None:
    """A row of times, which says so where sparse weights are slower."""
    label, style = (f"{label} slower", "red") if row.is_slower else (label, "")
    table.add(label, *cells, group=group, ends=ends, style=style)


def _rate(tokens: int, seconds: Spread) -> Spread:
    return Spread(tokens / seconds.high, tokens / seconds.median, tokens / seconds.low)


def _times(row: Measurement) -> list[str]:
    spreads = (Spread(1e3 * x.low, 1e3 * x.median, 1e3 * x.high) for x in (row.dense, row.sparse))
    return [*map(_spread, spreads), _spread(row.speedup)]


def _spread(x: Spread) -> str:
    """The median, and quartiles in brackets, with three digits or all before the point."""

    def digits(value: float) -> str:
        return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"

    return f"{digits(x.median)} ({digits(x.low)}–{digits(x.high)})"


def benchmark_notes(result: Benchmark) -> list[str]:
    """Where sparse weights were slower, or the same as dense ones, and what one must know to read the tables."""
    if not result.linears:
        return [f"{result.machine}; medians of {result.rounds} rounds, quartiles in brackets"]
    slower: dict[str, list[str]] = {}
    for row in result.slower:
        slower.setdefault(str(row.workload), []).append(f"{row.part} {row.speedup.median:.2f}×")
    notes = [f"slower than dense in {work}: {', '.join(rows)}" for work, rows in slower.items()]
    if not slower:
        notes.append(f"{result.form} weights were nowhere slower than dense ones")
    notes += choices_notes(result.choices) + _dense_in_both(result)
    if result.left_dense:
        what = "transposed weights, experts among dense ones, and zeros with a minus sign are not run packed"
        if result.choices:
            what = "on a GPU neither experts nor transposed weights run sparse"
        notes.append(
            f"{result.left_dense} pruned linears ran dense in both variants, and only count end to end: {what}"
        )
    notes.append(
        f"the linears take {result.dense_bytes / 1e6:,.1f} MB dense, {result.packed_bytes / 1e6:,.1f} MB {result.form}"
        f"; {result.kernels} kernels, {result.machine}; medians of {result.rounds} rounds, quartiles in brackets"
    )
    return notes


def _dense_in_both(result: Benchmark) -> list[str]:
    """For which linears a GPU ran the dense form against itself, workload by workload."""
    notes = []
    for work in dict.fromkeys(row.workload for row in result.modules):
        same = [_shape(x) for x in result.choices if x.forms[nearest(tuple(x.forms), work.tokens)] == DENSE]
        if same:
            notes.append(f"dense in both variants in {work}, as chosen when the model was loaded: {', '.join(same)}")
    return notes
