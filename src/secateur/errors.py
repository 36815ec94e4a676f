"""The one exception that users are meant to see."""


class InputError(ValueError):
    """What was asked for cannot be done with what was given.

    The message names what was wrong, where, and what to do about it. The command line prints it
    without a traceback and exits with code 2.
    """
