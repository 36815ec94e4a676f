"""The command line: a thin skin over the Python API.

Exit codes: 0 success, 1 a failed check, 2 bad input, 70 a bug, 128 + n stopped by signal n (130 is Ctrl-C). Results go
to standard output, progress and errors to standard error. Modules here import torch, transformers and tables of results
only inside of commands: help, completion and the answer to a typo take a fraction of a second.
"""

import io
import itertools
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cyclopts

from secateur.cli import checks, models, planning, running, serving, sweeps  # noqa: F401 (their commands join the app)
from secateur.cli.common import app
from secateur.cli.failures import report, say
from secateur.errors import Notice, RankError
from secateur.progress import speaks
from secateur.recipe import Recipe

SIGNALLED = 128
# Seconds in which the first of several processes says what has failed.
SPEAKING = 3


def _value_of(option: str, tokens: Sequence[str]) -> str | None:
    """The value of ``option`` among the words of the command line, or None if it is not there."""
    for token, following in itertools.zip_longest(tokens, tokens[1:], fillvalue=""):
        name, equals, value = token.partition("=")
        if name == option:
            return value if equals else following
    return None


def _defaults(tokens: Sequence[str]) -> list[cyclopts.config.Dict]:
    """What ``--recipe FILE`` says, as the defaults of the options of prune and plan: those given on the line win."""
    file = _value_of("--recipe", tokens)
    if not file:
        return []
    given = {key: value for key, value in Recipe.load(file).to_dict().items() if value is not None}
    for option, other in (("--sparsity", "pattern"), ("--pattern", "sparsity")):
        if _value_of(option, tokens) is not None:
            given.pop(other, None)  # they are two ways to say one thing
    return [cyclopts.config.Dict({"prune": given, "plan": given}, source=file)]


class _Stopped(KeyboardInterrupt):
    """A signal that asks the process to end: whatever cleans up after Ctrl-C does so after this as well."""


def _stop(number: int, _: object) -> None:
    raise _Stopped(number)


@contextmanager
def _signals() -> Iterator[None]:
    """Let signals that would end the process at once end it as Ctrl-C does; not those that it is to ignore (nohup)."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names if signal.getsignal(getattr(signal, name)) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is _stop:  # not if they are ignored until it is said what has failed
                signal.signal(number, signal.SIG_DFL)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    from secateur.console.terminal import err

    if issubclass(category, Notice):
        err.print(f"note: {message}", markup=False, highlight=False, soft_wrap=True)
    elif speaks() and sys.warnoptions:  # what other libraries warn of is for who asks Python for warnings (-W)
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        _run(tokens)
    except SystemExit as end:
        if end.code and not speaks():  # torchrun stops all when one ends, and the first has yet to say why
            time.sleep(SPEAKING)
        raise


def _run(tokens: Sequence[str] | None) -> None:
    from secateur.console.terminal import err, out

    err.quiet = out.quiet = not speaks()
    tokens = sys.argv[1:] if tokens is None else tokens
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    logging.disable(logging.WARNING)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):  # bars of transformers, datasets, lm-eval and others
        os.environ.setdefault(name, "1")
    # Let torch ask for huge pages: a tensor of a block is new memory each time, and mapping that in pages of 4 KB took
    # as long as what was computed in it (RIA at LLaMA-7B's width: 101 s before, 55 s now).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        with _signals(), warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            warnings.simplefilter("always", Notice)
            app.config = _defaults(tokens)
            app(tokens, error_console=err)
    except Exception as error:
        err.quiet &= not isinstance(error, RankError)  # whoever was to speak is gone
        sys.exit(report(error))
    except KeyboardInterrupt as stop:
        number = stop.args[0] if isinstance(stop, _Stopped) else signal.SIGINT
        say(f"stopped by {signal.Signals(number).name}", "\n".join(getattr(stop, "__notes__", ())))
        sys.exit(SIGNALLED + number)
