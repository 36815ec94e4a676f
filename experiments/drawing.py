"""Plots of the figures: panels one above the other, black and at most three colours, labels at the ends of lines."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.common import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people who see few colours (Okabe and Ito); further lines are dashed.
INK, FAINT = "#1a1a1a", "#9a9a9a"
COLOURS = (INK, "#0072b2", "#d55e00", "#009e73")
WIDTH, SMALL = 4.6, 8  # inches; points
_APART = 0.1  # of labels, as a share of a panel's height


def named(plot: str, model: str, setting: Setting) -> str:
    """What a plot is filed as: with its model's name, where there are several."""
    return plot if len(setting.models) == 1 else f"{plot}-{model}"


def panels(titles: Sequence[str], height: float = 1.9) -> "tuple[Figure, list[Axes]]":
    """A panel for each title, each ``height`` inches high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height * len(titles) + 0.2), layout="constrained")
    found = list(figure.subplots(len(titles), 1, squeeze=False)[:, 0])
    for panel, title in zip(found, titles, strict=True):
        panel.set_title(title, loc="left", fontsize=SMALL + 1)
        panel.tick_params(labelsize=SMALL, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    return figure, found


def lines(
    panel: "Axes",
    found: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    log: bool = False,
    marker: str | None = None,
) -> None:
    """A line for each label, which stands at its right end.

    Args:
        panel: where to draw.
        found: by label, the places across and the values. Values that are not finite leave a gap.
        log: a logarithmic scale upwards.
        marker: of each point, where there are few.
    """
    from matplotlib.ticker import LogLocator

    panel.margins(x=0.01)
    if log:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:,g}")
        panel.minorticks_off()
    for number, (x, y) in enumerate(found.values()):
        dash = "-" if number < len(COLOURS) else "--"
        values = [value if math.isfinite(value) else math.nan for value in y]
        panel.plot(x, values, dash, color=_colour(number), linewidth=1.3, marker=marker, markersize=3.5)
    _label(panel, [(label, y[-1], _colour(number)) for number, (label, (_, y)) in enumerate(found.items()) if y])


def across(panel: "Axes", label: str) -> None:
    """Say what is across."""
    panel.set_xlabel(label, fontsize=SMALL)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _label(panel: "Axes", ends: Sequence[tuple[str, float, str]]) -> None:
    """Labels beside the right edge, as near to the ends of their lines as they can be without touching."""
    scale, (low, high) = panel.transScale, panel.get_ylim()
    bottom, top, *heights = (scale.transform((1, y))[1] for y in (low, high, *(y for _, y, _ in ends)))
    wanted = [(height - bottom) / (top - bottom) if math.isfinite(height) else 1.0 for height in heights]
    for (label, _, colour), place in zip(ends, apart(wanted, _APART), strict=True):
        panel.annotate(
            label,
            (1, place),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=colour,
        )


def apart(wanted: Sequence[float], distance: float) -> list[float]:
    """Places in the order of ``wanted``, at least ``distance`` apart, those that are crowded about their middle."""
    runs: list[list[int]] = []  # which are crowded together, from the lowest
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])

    def start(run: Sequence[int]) -> float:
        return sum(wanted[place] for place in run) / len(run) - distance * (len(run) - 1) / 2

    for place in order:
        runs.append([place])
        while len(runs) > 1 and start(runs[-1]) < start(runs[-2]) + distance * len(runs[-2]):
            runs[-2:] = [runs[-2] + runs[-1]]
    found = {place: start(run) + distance * number for run in runs for number, place in enumerate(run)}
    return [found[place] for place in range(len(wanted))]
