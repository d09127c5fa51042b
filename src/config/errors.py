"""Errors the user can fix."""

import re


class UserError(Exception):
    """A mistake in flags, files, YAML or checkpoints.

    The message is one line that names the file, the key and what would be right. The scripts print it on stderr,
    without a traceback, and exit with status 2.
    """


class NotFiniteError(UserError):
    """A model computed NaN or infinity: its weights are corrupt, or the numbers overflow the number format."""


class SharedError(UserError):
    """An error that ends all processes of a run; is_told_here: whether this process prints it for all of them."""

    def __init__(self, message: str, *, is_told_here: bool) -> None:
        super().__init__(message)
        self.is_told_here = is_told_here


def one_line(error: BaseException) -> str:
    """The error's message on one line, without names of Python errors; the error's own name if it has no message."""
    return re.sub(r"\b[A-Z]\w*(Error|Exception): ", "", " ".join(str(error).split())) or type(error).__name__
