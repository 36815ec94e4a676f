"""The command that makes a whole table: sweep."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import secateur
from secateur.cli.checks import FAILED_CHECK
from secateur.cli.common import Json, Quiet, app, print_json, progress_for


@app.command
def sweep(
    grid: str,
    /,
    *,
    out: Path,
    jobs: int | None = None,
    ray: str | None = None,
    keep_models: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prune, quantize or shrink and measure every row of GRID, a YAML file of models, recipes and seeds, in one table.

    What is finished is kept: the same command goes on where it was stopped, and a grid that has changed computes only
    the rows that are new. A row that fails is named in the table, and the exit code is then 1.

    Parameters
    ----------
    grid
        The file; docs/sweep.md says what is in it.
    out
        The folder for the rows, and for results.json, .csv, .md and .tex.
    jobs
        Rows at once on this machine; by default one for each GPU, or one. Fewer where memory is short.
    ray
        Instead, the address of a Ray cluster that sees the same files; auto for the one this machine is in, or local.
    keep_models
        Keep the models of rows, in OUT/models; by default each is deleted when no row needs it any more.
    """
    from secateur.console.sweeps import sweep_notes, table_grid
    from secateur.console.terminal import show
    from secateur.sweeps.tables import table

    results = secateur.sweep(grid, out, jobs=jobs, ray=ray, keep_models=keep_models, progress=progress_for(quiet))
    if json:
        print_json(results.to_dict())
    else:
        shown = table_grid(table(results))
        show(shown, *sweep_notes(results), f"written to {out}/results.json, .csv, .md, .tex")
    if results.failed:
        sys.exit(FAILED_CHECK)
