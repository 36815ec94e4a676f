"""A sweep in the terminal."""

from rich.markup import escape
from rich.table import Table as TerminalTable

from secateur.sweeps.results import Results
from secateur.sweeps.tables import Table


def stacked(found: Table) -> TerminalTable:
    """The table for the terminal, where the parts of a column stand in one cell."""
    shown = TerminalTable(show_lines=any(len(parts) > 1 for parts in found.columns))
    for place, parts in enumerate(found.columns):
        words = place < found.words
        shown.add_column(
            escape("\n".join(parts)), justify="left" if words else "right", no_wrap=len(parts) > 1, overflow="fold"
        )
    for row in found.rows:
        shown.add_row(*(escape("\n".join(filter(None, parts))) for parts in row))
    return shown


def sweep_notes(results: Results) -> list[str]:
    """What is not in the table, and why."""
    notes = []
    if results.skipped:
        reasons: dict[str, list[str]] = {}
        for one in results.skipped:
            reasons.setdefault(one.reason, []).append(" ".join(filter(None, [one.model, *one.labels])))
        notes.append(f"{len(results.skipped)} combinations were left out, which make no sense or no difference:")
        notes += [
            f"  {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
            for reason, names in reasons.items()
        ]
    if results.failed:
        notes.append(f"{len(results.failed)} rows failed; the same command tries them again")
    return notes
