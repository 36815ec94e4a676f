"""Tables of sweeps as the paper has them: perplexities and scores of every method, beside what was published."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from experiments.common import Report, Setting
from experiments.published import published, sources
from secateur.sweeps.results import Results, Summary, TextSummary
from secateur.sweeps.tables import Table, table

# As in the paper, and two more for which there are free copies of the questions.
TASKS = ("hellaswag", "boolq", "arc_challenge", "mnli", "rte")
MORE_TASKS = ("arc_easy", "piqa")
# Of no interest here, or said in the caption.
LEFT_OUT = ("seconds", "failed")


def sweep_report(results: Results, caption: str = "", notes: Sequence[str] = (), **plots: Any) -> Report:
    """A report with one table of all summaries of a sweep, and their averages over models where there are several."""
    found = without(table(results), *LEFT_OUT, *(["model"] if len({x.model for x in results.summaries}) == 1 else []))
    found, credits = _with_published(_named(found), results)
    tables = [(caption or _models(results), found)]
    if averages := averages_over_models(results):
        tables.append(("Averages over models of the share of the baseline's loss that is prevented.", averages))
    return Report(tables, notes=[*notes, *credits], plots=plots, data=results.to_dict())


def _models(results: Results) -> str:
    models = dict.fromkeys(summary.model for summary in results.summaries)
    return f"{', '.join(models)}." if len(models) == 1 else ""


def _with_published(found: Table, results: Results) -> tuple[Table, list[str]]:
    """The table with a column of what was published for the same models, where anything was; notes on the sources."""
    steps = {(entry.row.model, entry.row.variant.labels): entry.row.steps for entry in results.entries}
    numbers = [published(x.model, steps[x.model, x.labels], "wikitext2") for x in results.summaries]
    if not any(numbers):
        return found, []
    said = dict.fromkeys(one[1] for one in numbers if one)
    note = f"Published, on WikiText-2: {'; '.join(sources()[name] for name in said)}."
    return add_column(found, "published", [f"{one[0]:,.2f}" if one else "" for one in numbers]), [note]


def add_column(found: Table, heading: str, cells: Sequence[str]) -> Table:
    """A table with one more column of numbers, its last."""
    rows = tuple((*row, (cell,)) for row, cell in zip(found.rows, cells, strict=True))
    return replace(found, columns=(*found.columns, (heading,)), rows=rows)


def _named(found: Table) -> Table:
    """A table whose texts are called by their corpora, and not by the files that hold copies of them."""
    columns = tuple(tuple(re.sub(r"-test\.\w+$", "", name) for name in names) for names in found.columns)
    return replace(found, columns=columns)


def without(found: Table, *headings: str) -> Table:
    """A table without the columns of these names."""
    kept = [place for place, names in enumerate(found.columns) if names[0] not in headings]
    return replace(
        found,
        columns=tuple(found.columns[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in found.rows),
        words=sum(place < found.words for place in kept),
    )


def averages_over_models(results: Results) -> Table | None:
    """Appendix J: the mean over models of the prevented share, by variant; None of a single model."""
    rows: dict[tuple[str, ...], list[Summary]] = {}
    for summary in results.summaries:
        if any(text.prevented is not None for text in summary.texts):
            rows.setdefault(summary.labels, []).append(summary)
    if not any(len(found) > 1 for found in rows.values()):
        return None
    texts = [text.data.partition(":")[0] for text in next(iter(rows.values()))[0].texts]
    cells: list[list[str | float | None]] = [
        [*labels, *(_mean_prevented([one.texts[place] for one in found]) for place in range(len(texts))), len(found)]
        for labels, found in rows.items()
    ]
    headings = [*results.axes, *(f"prevented {text}" for text in texts), "models"]
    return Table.plain(headings, cells, words=len(results.axes))


def _mean_prevented(texts: Sequence[TextSummary]) -> str:
    return f"{100 * fmean(text.prevented for text in texts if text.prevented is not None):.0f} %"


def tasks_report(setting: Setting, methods: Mapping[str, Any], **grid: Any) -> Report:
    """A report on the paper's tasks, and those beside them, as far as their questions are here."""
    tasks, missing = setting.tasks(TASKS, MORE_TASKS)
    notes = [
        f"Not here: {', '.join(missing)}. `--local FOLDER` with their questions in `FOLDER/tasks` fills the columns "
        "([how](../evaluation.md))."
    ] * bool(missing)
    if not tasks:
        return Report([], notes=notes)
    return sweep_report(setting.sweep(methods, data=(), tasks=tasks, **grid), notes=notes)
