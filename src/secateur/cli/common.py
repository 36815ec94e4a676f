"""What all commands share: the app, common options, and how results leave it."""

import json
import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

import secateur
from secateur.progress import Progress, speaks

app = App(
    name="secateur",
    help="Prune large language models after training.",
    version=lambda: secateur.__version__,
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(add_to_startup=False)

Json = Annotated[bool, Parameter(help="Print the result as one JSON document instead of a table.", negative=())]
Quiet = Annotated[bool, Parameter(help="Show no progress.", negative=())]
Force = Annotated[bool, Parameter(help="Replace a model folder that Secateur wrote.", negative=())]


def progress_for(quiet: bool) -> Progress:
    """Bars in the terminal, lines now and then elsewhere, nothing if ``quiet``."""
    from secateur.console import terminal

    return Progress() if quiet else terminal.progress()


def print_json(result: Any) -> None:
    """``result`` as one document on standard output."""
    if speaks():
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
