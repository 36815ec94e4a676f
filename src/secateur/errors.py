"""What users are meant to see: the one exception, notices, and what others' exceptions come to in a few words."""

MOST_CHARACTERS = 300


class InputError(ValueError):
    """What was asked for cannot be done with what was given.

    The message names what was wrong, where, and what to do about it. The command line prints it
    without a traceback and exits with code 2.
    """


class Notice(UserWarning):
    """Something that a user should know and that stops nothing. The command line prints it as one line."""


def reason(error: BaseException) -> str:
    """The first two lines of what another library raised, shortened: it may quote whole files."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
    if isinstance(error, KeyError | AttributeError | TypeError | AssertionError):  # these messages alone say nothing
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
