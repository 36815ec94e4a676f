"""What users are meant to see: the one exception, and notices."""


class InputError(ValueError):
    """What was asked for cannot be done with what was given.

    The message names what was wrong, where, and what to do about it. The command line prints it
    without a traceback and exits with code 2.
    """


class Notice(UserWarning):
    """Something that a user should know and that stops nothing. The command line prints it as one line."""
