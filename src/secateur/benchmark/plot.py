"""A benchmark as a picture: how many times as fast as dense, for each role of linears and each workload."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.benchmark.measuring import Benchmark
from secateur.benchmark.timing import END_TO_END, OVERALL, Measurement
from secateur.errors import InputError, install
from secateur.runtime.choosing import DENSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")
_LINE = 0.23  # inches
_INK, _FAINT = "#1a1a1a", "#9a9a9a"


def check_plot(file: Path) -> None:
    """Raise :class:`InputError` when no picture can be drawn into ``file``: to be asked before the long work."""
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{file} is not the name of a picture: end it with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    if not file.absolute().parent.is_dir():
        raise InputError(f"there is no folder {file.parent} to draw {file.name} into")
    if file.exists():
        raise InputError(f"{file} exists; give another --plot")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError(f"plots need matplotlib ({error}): {install('plot')}") from None


def draw(benchmark: Benchmark, file: Path) -> None:
    """Write the picture: decoding on the left, prefill on the right; a hollow dot is slower than dense.

    A dot is the median over rounds, the thick line through it goes from one quartile to the other.

    Raises:
        InputError: when ``file`` cannot be drawn into.
    """
    check_plot(file)
    from matplotlib.figure import Figure

    panels = [
        _lines([row for row in (*benchmark.modules, *benchmark.end_to_end) if row.workload.phase == phase])
        for phase in ("decode", "prefill")
    ]
    tallest = max(map(len, panels))
    figure = Figure(figsize=(10, _LINE * (tallest + 7)), layout="constrained")
    speedups = [row.speedup for row in (*benchmark.modules, *benchmark.end_to_end)]
    extent = min(0.9, *(x.low for x in speedups)), max(1.1, *(x.high for x in speedups))
    titles = ("decode: one token per sequence", "prefill: batch × length")
    for panel, title, lines in zip(figure.subplots(1, 2), titles, panels, strict=True):
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_ylim(tallest - 0.4, -1.2)
        _scale(panel, extent)
        for height, (_, row) in enumerate(lines):
            if row is not None:
                _dot(panel, height, row)
        panel.set_yticks(range(len(lines)), [label for label, _ in lines], fontsize=8)
        for tick, (_, row) in zip(panel.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("normal" if row else "bold")
    remarks = "; hollow: slower than dense" if benchmark.slower else ""
    if any(DENSE in choice.forms.values() for choice in benchmark.choices):
        remarks += "; for some numbers of tokens some linears are dense in both"
    figure.suptitle(
        f"{benchmark.model}: {benchmark.form} {benchmark.values} weights, times as fast as dense bfloat16\n"
        f"{benchmark.machine}, {benchmark.kernels} kernels\n"
        f"medians and quartiles of {benchmark.rounds} rounds{remarks}",
        fontsize=9,
    )
    try:
        figure.savefig(file, dpi=160)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise InputError(f"{file} cannot be written: {error}") from error


def _lines(rows: Sequence[Measurement]) -> list[tuple[str, Measurement | None]]:
    """Labels and what stands beside them: under a heading for each workload its roles, the whole model last."""
    lines: dict[str, list[tuple[str, Measurement | None]]] = {}
    for row in rows:
        whole = row.part == END_TO_END
        heading = END_TO_END if whole else row.workload.size
        lines.setdefault(heading, [(heading, None)]).append((row.workload.size if whole else row.part, row))
    return [line for section in lines.values() for line in section]


def _scale(panel: "Axes", extent: tuple[float, float]) -> None:
    """From the slowest to the fastest, so that twice and half as fast lie equally far from dense."""
    low, high = extent
    panel.set_xscale("log", base=2)
    panel.set_xlim(low / 1.25, high * 1.25)  # room for the numbers beside the dots
    panel.axvline(1, color=_INK, linewidth=0.8)
    place = panel.get_xaxis_transform()  # across by the data, upwards by the panel
    panel.annotate("dense", (1, 1), xytext=(3, 0), xycoords=place, textcoords="offset points", va="top", fontsize=7)
    ticks = [tick for tick in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8) if low / 1.25 <= tick <= high * 1.25]
    panel.set_xticks(ticks, [f"{tick:g}×" for tick in ticks], fontsize=8)
    panel.minorticks_off()
    panel.tick_params(axis="y", length=0)
    for edge in ("top", "right", "left"):
        panel.spines[edge].set_visible(False)


def _dot(panel: "Axes", height: int, row: Measurement) -> None:
    """A stem from dense to the median, the quartiles, and the number on the far side."""
    low, median, high = row.speedup.low, row.speedup.median, row.speedup.high
    panel.plot([1, median], [height, height], color=_FAINT, linewidth=0.8, zorder=1)
    panel.plot([low, high], [height, height], color=_INK, linewidth=2, zorder=2)
    inside = "white" if row.is_slower else _INK
    panel.plot(median, height, "o", color=_INK, markersize=5, markerfacecolor=inside, zorder=3)
    panel.annotate(
        f"{median:.2f}",
        (low if row.is_slower else high, height),
        xytext=(-5 if row.is_slower else 5, 0),
        textcoords="offset points",
        ha="right" if row.is_slower else "left",
        va="center",
        fontsize=8,
        fontweight="bold" if row.part == OVERALL else "normal",
    )
