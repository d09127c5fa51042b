"""Errors the user can fix."""

import re


class UserError(Exception):
    """A mistake in flags, files, YAML or checkpoints.

    The message is one line that names the file, the key and what would be right. The scripts print it on stderr
    and exit with status 2 (SPEC §7); no traceback.
    """


class NotFiniteError(UserError):
    """A model computes NaN or infinity: its weights are broken, or the number format has no room for its numbers."""


def one_line(error: BaseException) -> str:
    """An error's message on a single line, without a library's names of errors."""
    return re.sub(r"\b[A-Z]\w*(Error|Exception): ", "", " ".join(str(error).split())) or type(error).__name__
