"""What is said when a command fails: one message, and a traceback only for what nobody but us can mend."""

import errno
import os
import re
import sys
import traceback
from contextlib import suppress

from secateur.errors import InputError, RankError, reason

BAD_INPUT, BUG = 2, 70
MOST_CHARACTERS = 4000  # names in files can be as long as the files

_LESS_MEMORY = (
    "there is not enough memory. Less is needed with fewer or shorter samples (--samples, --length), shorter windows "
    "(--window), smaller batches (--batch), or --dtype bfloat16"
)
_SINGULAR = (
    "a matrix of input statistics cannot be factorized: its calibration inputs are too large, too few or too much "
    "alike. Take more text (--samples), go without --reconstruct, or compute in float32 (--dtype float32) if that was "
    "another precision"
)
_NO_MEMORY = re.compile(r"out of memory|not enough memory|(can't|cannot) allocate", re.IGNORECASE)
_ADVICE = {
    errno.ENOSPC: "free some space, or give another --out",
    errno.EDQUOT: "free some space, or give another --out",
    errno.EFBIG: "the system allows no larger files here (ulimit -f)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


def explain(error: BaseException) -> str | None:
    """What a user should know of ``error``; None if it is not theirs to mend."""
    names = {kind.__name__ for kind in type(error).__mro__}  # those of torch and safetensors, without loading these
    if isinstance(error, InputError | RankError):
        return str(error)
    if isinstance(error, MemoryError) or ("RuntimeError" in names and _NO_MEMORY.search(str(error))):
        return _LESS_MEMORY
    if isinstance(error, OSError):
        where = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        said = ": ".join(part for part in (where, error.strerror or str(error)) if part)
        advice = _ADVICE.get(error.errno or 0)
        return f"{said}; {advice}" if advice else said
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "the name of a file holds a null byte"
    if "SafetensorError" in names:  # it hides which error of the system there was
        return f"a file of weights cannot be read or written: {reason(error)}"
    return _SINGULAR if names & {"LinAlgError", "_LinAlgError"} else None


def report(error: Exception) -> int:
    """Say what is wrong on standard error; the exit code."""
    if isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_INPUT
    text = explain(error)
    if text is None:
        say("this is a bug in Secateur.", "Please report it to the project, with this text:")
        say("", "".join(traceback.format_exception(error)))
        return BUG
    short = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
    say("error:", "\n".join([short, *getattr(error, "__notes__", ())]))
    return BAD_INPUT


def say(title: str, text: str) -> None:
    """A message on standard error; nothing where the terminal has been closed."""
    from secateur.console.terminal import err

    with suppress(OSError):
        err.print(f"[bold red]{title}[/]", end=" ")
        err.print(text, markup=False, highlight=False, soft_wrap=True)
