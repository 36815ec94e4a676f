"""What all commands share: the app, common options, and how results leave it."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

import secateur
from secateur.progress import Progress, speaks

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

app = App(
    name="secateur",
    help="Prune large language models after training.",
    version=lambda: secateur.__version__,
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(add_to_startup=False)

Json = Annotated[bool, Parameter(help="Print the result as one JSON document instead of a table.", negative=())]
Quiet = Annotated[bool, Parameter(help="Draw no progress bars.", negative=())]
Force = Annotated[bool, Parameter(help="Replace a model folder that Secateur wrote.", negative=())]


def progress_for(quiet: bool) -> Progress:
    """Bars in the terminal, unless ``quiet``."""
    from secateur.console.terminal import TerminalProgress

    return Progress() if quiet else TerminalProgress()


def print_json(result: Any) -> None:
    """``result`` as one document on standard output."""
    if speaks():
        sys.stdout.write(json.dumps(result, indent=2) + "\n")


def print_tables(tables: "Sequence[Table | Text]", notes: Sequence[str]) -> None:
    """Tables, and what one must know to read them, on standard output."""
    from secateur.console.terminal import out

    for table in tables:
        out.print(table)
    for note in notes:
        out.print(note, markup=False, highlight=False)
