"""The command line: a thin skin over the Python API.

Exit codes: 0 success, 1 a failed check, 2 bad input, 130 interrupted. Results go to standard output,
progress and errors to standard error. Modules here import torch, transformers and tables of results only inside of
commands: help, completion and the answer to a typo take a fraction of a second.
"""

import itertools
import logging
import os
import sys
from collections.abc import Sequence

import cyclopts

from secateur.cli import checks, models, running  # noqa: F401 (their commands join the app)
from secateur.cli.common import app
from secateur.errors import InputError
from secateur.recipe import Recipe

BAD_INPUT, INTERRUPTED = 2, 130


def _value_of(option: str, tokens: Sequence[str]) -> str | None:
    """The value of ``option`` among the words of the command line, or None if it is not there."""
    for token, following in itertools.zip_longest(tokens, tokens[1:], fillvalue=""):
        name, equals, value = token.partition("=")
        if name == option:
            return value if equals else following
    return None


def _defaults(tokens: Sequence[str]) -> list[cyclopts.config.Dict]:
    """What ``--recipe FILE`` says, as the defaults of prune's options: those given on the line win."""
    file = _value_of("--recipe", tokens)
    if not file:
        return []
    given = {key: value for key, value in Recipe.load(file).to_dict().items() if value is not None}
    for option, other in (("--sparsity", "pattern"), ("--pattern", "sparsity")):
        if _value_of(option, tokens) is not None:
            given.pop(other, None)  # they are two ways to say one thing
    return [cyclopts.config.Dict({"prune": given}, source=file)]


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    from secateur.console.terminal import err

    tokens = sys.argv[1:] if tokens is None else tokens
    logging.disable(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers obeys it too, without being loaded yet
    try:
        app.config = _defaults(tokens)
        app(tokens, error_console=err)
    except InputError as error:
        err.print("[bold red]error:[/]", end=" ")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(INTERRUPTED)
