"""How fast a model is, or could be."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from secateur.benchmark.measuring import Benchmark
from secateur.benchmark.timing import OVERALL, Measurement, Spread
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


def choices_table(choices: Sequence[Choice]) -> Table:
    """What multiplies with pruned linears on a GPU, by number of tokens, with its speed and memory against dense."""
    table = Table(title="pruned linears: what multiplies how many tokens, and its speed against dense")
    for column in ("shape", "pattern", "number", *(f"{tokens:,}" for tokens in BUCKETS), "memory"):
        table.add_column(column, justify="right")
    for choice in choices:
        times = choice.measured.times
        cells = [
            form if form == DENSE else f"{form} {times[tokens][DENSE] / times[tokens][form]:.2f}×"
            for tokens, form in choice.forms.items()
        ]
        table.add_row(_shape(choice), choice.pattern, str(choice.layers), *cells, f"{choice.memory:.2f}×")
    refused = {f"not used: {name}: {why}": None for x in choices for name, why in x.measured.refused.items()}
    table.caption = Text("\n".join(refused)) if refused else None
    return table


def _shape(choice: Choice) -> str:
    return "×".join(map(str, choice.shape)) + (" + bias" if choice.bias else "")


def modules_table(result: Benchmark) -> Table:
    """Times of linears by role: a section per workload, a row per role."""
    table = _speed_table(f"{result.linears} linears of {result.model}, all blocks, in ms", result)
    seen = None
    for row in result.modules:
        if row.workload != seen:
            table.add_row(f"[bold]{row.workload}[/]")
            seen = row.workload
        table.add_row(_labelled(row.part, row), *_times(row), end_section=row.part == OVERALL)
    return table


def model_table(result: Benchmark) -> Table:
    """Times of the whole model: prefill in milliseconds, decoding in tokens per second, by batch × length."""
    phases = [name for name, is_one in (("prefill", result.prefill_graph), ("decode", result.graph)) if is_one]
    graphs = f", {' and '.join(phases)} in CUDA graphs" if phases else ""
    table = _speed_table(f"end to end, {result.tokens} tokens decoded after each prompt{graphs}", result)
    _add_end_to_end(table, result.end_to_end)
    return table


def structured_table(result: Benchmark) -> Table:
    """The same for a smaller dense model against the dense one."""
    half = "a dense model of half the width (structured 50 %)"
    table = Table("", title=escape(f"{result.shrunk or half} beside {result.model}, end to end"))
    for column in ("dense bfloat16", "shrunk" if result.shrunk else "half the width", "times as fast"):
        table.add_column(column, justify="right")
    _add_end_to_end(table, result.structured)
    return table


def _add_end_to_end(table: Table, rows: Sequence[Measurement]) -> None:
    seen = None
    for row in rows:
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


def _speed_table(title: str, result: Benchmark) -> Table:
    table = Table("", title=escape(title))
    for column in ("dense bfloat16", f"{result.form} {result.values}", "times as fast"):
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
    """Where sparse weights were slower, or the same as dense ones, and what one must know to read the tables."""
    if not result.linears:
        return [f"{result.machine}; medians of {result.rounds} rounds, quartiles in brackets"]
    slower: dict[str, list[str]] = {}
    for row in result.slower:
        slower.setdefault(str(row.workload), []).append(f"{row.part} {row.speedup.median:.2f}×")
    notes = [f"slower than dense in {work}: {', '.join(rows)}" for work, rows in slower.items()]
    if not slower:
        notes.append(f"{result.form} weights were nowhere slower than dense ones")
    notes += _dense_in_both(result)
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
