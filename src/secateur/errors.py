"""What users are meant to see: the one exception, notices, and what others' exceptions come to in a few words."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires

MOST_CHARACTERS = 300


class InputError(ValueError):
    """What was asked for cannot be done with what was given.

    The message names what was wrong, where, and what to do about it. The command line prints it
    without a traceback and exits with code 2.
    """


class RankError(RuntimeError):
    """One of several processes that work together failed, or is gone, and so the others ended; see ``ranks.py``."""


class Notice(UserWarning):
    """Something that a user should know and that stops nothing. The command line prints it as one line."""


def install(extra: str) -> str:
    """The command that installs what an extra of Secateur stands for: the same from an index, a wheel or a clone."""
    try:
        lines = requires("secateur") or []
    except PackageNotFoundError:  # run out of its source
        lines = []
    found = [line.partition(";") for line in lines]
    names = [name.strip() for name, _, marker in found if re.search(rf"extra == ['\"]{extra}['\"]", marker)]
    return f"pip install {shlex.join(names)}" if names else f"install the extra {extra} of Secateur"


def reason(error: BaseException) -> str:
    """The first two lines of what another library raised, shortened: it may quote whole files."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
    if isinstance(error, KeyError | AttributeError | TypeError | AssertionError):  # these messages alone say nothing
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"


@contextmanager
def naming(where: object, what: str = "cannot be loaded") -> Iterator[None]:
    """Turn whatever a library raises about files that a user gave into an :class:`InputError` that says ``where``.

    Readers of models are not written for files that are wrong: what they raise then can be of any type, panics of
    compiled tokenizers included. Memory that is missing is no fault of the files.
    """
    try:
        yield
    except BaseException as error:
        name = type(error).__name__
        if isinstance(error, InputError | MemoryError) or name == "OutOfMemoryError":
            raise
        if isinstance(error, Exception) or name == "PanicException":
            raise InputError(f"{where} {what}: {reason(error)}") from error
        raise
