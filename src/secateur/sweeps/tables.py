"""Tables for people, in Markdown and LaTeX; and a sweep's summaries as one, and as CSV."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.sweeps.results import DIVERGENCE, Mean, Results, Summary, TextSummary

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "–": "--", "∞": r"$\infty$", "−": "$-$",
}  # fmt: skip


# A column is of one part or several, which a terminal stacks.
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells as people read them.

    Attributes:
        columns: the names of the columns and of their parts.
        rows: their cells, each of as many parts.
        words: the number of columns, from the left, that hold words; the others hold numbers.
    """

    columns: tuple[Parts, ...]
    rows: tuple[tuple[Parts, ...], ...]
    words: int

    @classmethod
    def plain(cls, headings: Sequence[str], rows: Iterable[Sequence[str | float | None]], words: int = 1) -> "Table":
        """A table of columns of one part; of numbers about four digits are shown, and None is an empty cell."""
        cells = tuple(tuple((_plain(cell),) for cell in row) for row in rows)
        return cls(tuple((heading,) for heading in headings), cells, words)


def table(results: Results) -> Table:
    """A row for each model and variant of a sweep. What no row has is left out.

    Of each text the perplexity, with its sample standard deviation over seeds where there are several, its 95 %
    interval, the rise against the dense model, the share of the baseline's rise that is prevented, the KL divergence
    from the dense model and the top-1 agreement with it; of each task the first metric and its standard error over the
    items, in percent. A star is at what is better than the dense model's beyond chance, by paired differences.
    """
    words = 1 + len(results.axes)
    texts = [
        (f"perplexity {name}", "95 %", "rise", "prevented", "KL, nats", "top-1")
        for name in _short([text.data for text in _first(results, "texts")])
    ]
    tasks = [(f"{task.task} {task.metric}, %", "error") for task in _first(results, "tasks")]
    columns = [*(("model",), *((axis,) for axis in results.axes)), *texts, *tasks]
    columns += [("zeros",), ("retained",), ("gone",), ("bits",), ("seeds",), ("seconds",), ("failed",)]
    rows = [_cells(summary, columns[words:]) for summary in results.summaries]
    filled = [
        [part for part in range(len(names)) if place < words or any(row[place][part] for row in rows)]
        for place, names in enumerate(columns)
    ]

    def shown(cells: Sequence[Parts]) -> tuple[Parts, ...]:
        chosen = (tuple(cell[part] for part in parts) for cell, parts in zip(cells, filled, strict=True))
        return tuple(cell for cell in chosen if cell)

    return Table(shown(columns), tuple(map(shown, rows)), words)


def _first(results: Results, what: str) -> Sequence:  # type: ignore[type-arg]
    """The texts or tasks of the first summary that has any: all have the same."""
    return next((found for summary in results.summaries if (found := getattr(summary, what))), ())


def _cells(summary: Summary, numbers: Sequence[Parts]) -> list[Parts]:
    """The cells of a row, of which all but the first are those of the columns ``numbers``."""
    found: list[Parts] = [_text(text) for text in summary.texts]
    for task in summary.tasks:
        deviation = f" ± {100 * task.score.deviation:.1f}" if task.score.deviation is not None else ""
        error = f"{100 * task.standard_error:.1f}" if task.standard_error is not None else ""
        found.append((f"{100 * task.score.value:.1f}{deviation}{'*' * task.better}", error))
    last = (
        _share(summary.sparsity, ".1%"),
        _share(summary.retained, ".1%"),
        _share(summary.gone, ".1%"),
        f"{summary.bits:.2f}" if summary.bits is not None else "",
        str(summary.rows or ""),
        f"{summary.seconds:,.{0 if summary.seconds >= 10 else 1}f}" if summary.seconds is not None else "",
        "; ".join(dict.fromkeys(summary.failures)),
    )
    absent = [("",) * len(names) for names in numbers[len(found) : -len(last)]]  # of a row that failed
    return [(word,) for word in (summary.model, *summary.labels)] + found + absent + [(cell,) for cell in last]


def _text(text: TextSummary) -> Parts:
    between = _interval(text.low, text.high)
    return (
        _perplexity(text.perplexity) + "*" * text.better,
        between,
        _share(text.rise, "+,.1%"),
        _share(text.prevented, ",.0%"),
        _plain(text.kl),
        _share(text.top1, ".1%"),
    )


def _perplexity(mean: Mean) -> str:
    digits = _digits(mean.value)
    spread = f" ± {mean.deviation:,.{digits}f}" if mean.deviation is not None else ""
    return _number(mean.value, digits) + spread


def _interval(low: float | None, high: float | None) -> str:
    return (
        f"{_number(low, _digits(low))} – {_number(high, _digits(high))}" if low is not None and high is not None else ""
    )


def _digits(value: float) -> int:
    """Those behind the point: about four that mean something in all."""
    size = abs(value)
    if not 0 < size < 1000:  # which is so of what is no number
        return 0
    return 1 if size >= 100 else 2 if size >= 1 else 2 - math.floor(math.log10(size))


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "∞"


def _plain(cell: str | float | None) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    return f"{cell:,}" if isinstance(cell, int) else _number(cell, _digits(cell))


def _share(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form).replace("%", " %") if math.isfinite(value) else "∞"


def _short(sources: Sequence[str]) -> list[str]:
    """Texts without their folders, where that tells them apart."""
    names = [name if file else Path(source).name for source in sources for name, _, file in [source.partition(":")]]
    return names if len(set(names)) == len(names) else list(sources)


def markdown(found: Table) -> str:
    """As a table of Markdown."""
    words, rows = _flat(found)
    rule = ["---"] * words + ["---:"] * (len(rows[0]) - words)
    lines = [[_in_markdown(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in (lines[0], rule, *lines[1:]))


def _flat(found: Table) -> tuple[int, list[list[str]]]:
    """The number of columns of words, and the head and the rows with each part in a column of its own."""
    return found.words, [[part for cell in row for part in cell] for row in (found.columns, *found.rows)]


def _in_markdown(cell: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", _line(cell))


def latex(found: Table) -> str:
    """As a ``tabular`` of the booktabs package, with a rule where the first of several columns of words changes."""
    words, cells = _flat(found)
    form = "l" * words + "r" * (len(cells[0]) - words)
    head, *rows = (" & ".join(map(_in_latex, row)) + r" \\" for row in cells)
    lines = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", head]
    groups = [(), *(row[0] if words > 1 else None for row in found.rows)]
    for row, before, group in zip(rows, groups, groups[1:], strict=False):
        lines += [row] if group == before else [r"\midrule", row]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _in_latex(cell: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in _line(cell))


def _line(cell: str) -> str:
    """On one line: names and reasons may be of several."""
    return " ".join(cell.split())


def comma_separated(results: Results) -> str:
    """As CSV: a line for each model and variant, with all digits, and a column for each number."""
    records = [_record(results, summary) for summary in results.summaries]
    columns = dict.fromkeys(name for record in records for name in record)
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _record(results: Results, summary: Summary) -> dict[str, str | float | None]:
    record: dict[str, str | float | None] = {"model": summary.model}
    record |= dict(zip(results.axes, summary.labels, strict=True))
    record |= {"rows": summary.rows, "failed": len(summary.failures), "zeros": summary.sparsity}
    record |= {"retained": summary.retained, "relative_error": summary.relative_error}
    record |= {"gone": summary.gone, "bits": summary.bits, "seconds": summary.seconds}
    for text in summary.texts:
        numbers = {
            "perplexity": text.perplexity.value,
            "deviation": text.perplexity.deviation,
            "low": text.low,
            "high": text.high,
            "rise": text.rise,
            "rise_low": text.rise_low,
            "rise_high": text.rise_high,
            "prevented": text.prevented,
            **{name: getattr(text, name) for name in DIVERGENCE},
        }
        record |= {f"{text.data} {name}": number for name, number in numbers.items()}
    for task in summary.tasks:
        record |= {
            f"{task.task} {task.metric}": task.score.value,
            f"{task.task} deviation": task.score.deviation,
            f"{task.task} standard_error": task.standard_error,
            f"{task.task} difference": task.difference,
            f"{task.task} difference_low": task.low,
            f"{task.task} difference_high": task.high,
            f"{task.task} p_value": task.p_value,
        }
    return record
