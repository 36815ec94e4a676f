"""Perplexity along an axis of a sweep, as a table and as a plot: Figures 4 and 9."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.common import Setting
from experiments.drawing import FAINT, SMALL, across, lines, named, panels
from secateur.sweeps.results import Results
from secateur.sweeps.tables import Table
from secateur.sweeps.variants import DENSE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By model, text and line (the labels on the other axes), perplexities by label on the axis; of the dense model by "".
Curves = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]


def curves(results: Results, axis: str) -> Curves:
    """Perplexities along an ``axis``, in the order of the sweep."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for summary in results.summaries:
        labels = results.by_axis(summary.labels)
        place = labels.pop(axis)
        line = ", ".join(label for label in labels.values() if label)
        for text in summary.texts:
            texts = found.setdefault(summary.model, {}).setdefault(text.data.partition(":")[0], {})
            texts.setdefault(line, {})[place] = text.perplexity.value
    return found


def table(found: Curves, axis: str) -> Table:
    """A row for each model, text and line, and a column for each label on the axis."""
    rows = [
        (model, text, line, by)
        for model, texts in found.items()
        for text, of in texts.items()
        for line, by in of.items()
    ]
    labels = list(dict.fromkeys(label for *_, by in rows for label in by if label))
    cells = [[*words, *(by.get(label, by.get("")) for label in labels)] for *words, by in rows]
    return Table.plain(["model", "text", axis, *labels], cells, words=3)


def plots(
    found: Curves, name: str, places: Sequence[float], what: str, setting: Setting, *, doubling: bool = False
) -> "dict[str, Figure]":
    """A plot for each model, with a panel for each text.

    Args:
        found: with as many labels on the axis as there are ``places``.
        name: of the plot.
        places: where the labels are, across.
        what: is across.
        setting: that of the experiment.
        doubling: places are each twice the one before, or some such.
    """
    drawn = {}
    for model, texts in found.items():
        figure, axes = panels([f"perplexity, {text}" for text in texts])
        for panel, of in zip(axes, texts.values(), strict=True):
            if dense := of.get(DENSE):
                panel.axhline(dense[""], color=FAINT, linewidth=0.8)
                panel.annotate("dense", (places[0], dense[""]), va="bottom", fontsize=SMALL, color=FAINT)
            lines(
                panel,
                {line: (places, list(by.values())) for line, by in of.items() if line != DENSE},
                log=True,
                marker="o",
            )
            if doubling:
                panel.set_xscale("log", base=2)
                panel.set_xticks(places, [f"{place:g}" for place in places])
        across(axes[-1], what)
        drawn[named(name, model, setting)] = figure
    return drawn
