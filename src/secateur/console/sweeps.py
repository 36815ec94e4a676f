"""A sweep in the terminal."""

from secateur.console.tables import Grid
from secateur.sweeps.results import Results
from secateur.sweeps.tables import Table


def table_grid(found: Table) -> Grid:
    """A table for the terminal."""
    grid = Grid("", found.columns, words=found.words)
    for row in found.rows:
        grid.add(*row)
    return grid


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
