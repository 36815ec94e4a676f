"""The command that predicts: plan."""

import dataclasses
from typing import Annotated

from cyclopts import Parameter

import secateur
from secateur.cli.common import Json, app, print_json
from secateur.recipe import Recipe


@app.command
def plan(
    model: str,
    /,
    *,
    options: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008 (frozen)
    recipe: str | None = None,
    ranks: int = 1,
    json: Json = False,
) -> None:
    """Say what pruning MODEL would take here, and what it would come to, from its config alone.

    Time, memory and disk of each stage, of the arithmetic what is for what, and what the model would take packed. This
    machine is measured for some seconds; nothing of the model is, and its weights are neither fetched nor read.

    Parameters
    ----------
    model
        A hub name, a folder that may hold nothing but its config, or a .gguf file.
    recipe
        paper, best, fast, or a YAML file with any of the options below; those given here win.
    ranks
        So many processes like this one share the calibration samples, each with a device of its own.
    """
    from secateur.console import planning
    from secateur.console.terminal import show

    result = secateur.plan(model, options, ranks=ranks)
    if json:
        print_json(dataclasses.asdict(result))
    else:
        show(*planning.plan_tables(result), *planning.plan_notes(result))
