"""A sweep in the terminal."""

from rich.markup import escape
from rich.table import Table

from secateur.sweeps.results import Results
from secateur.sweeps.tables import table


def results_table(results: Results) -> Table:
    """A row for each model and variant."""
    found = table(results)
    shown = Table()
    for place, column in enumerate(found.columns):
        shown.add_column(escape(column), justify="left" if place < found.words else "right", overflow="fold")
    for row, following in zip(found.rows, [*found.rows[1:], None], strict=True):
        shown.add_row(*map(escape, row), end_section=following is not None and following[0] != row[0])
    return shown


def sweep_notes(results: Results) -> list[str]:
    """What is not in the table, and why."""
    notes = []
    if results.skipped:
        reasons: dict[str, list[str]] = {}
        for one in results.skipped:
            reasons.setdefault(one.reason, []).append(" ".join(filter(None, [one.model, *one.labels])))
        notes.append(f"{len(results.skipped)} combinations make no sense and were left out:")
        notes += [
            f"  {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
            for reason, names in reasons.items()
        ]
    if results.failed:
        notes.append(f"{len(results.failed)} rows failed; the same command tries them again")
    return notes
