"""The exceptions that mean: the user can mend this."""


class UserError(Exception):
    """A mistake in flags, files, YAML or checkpoints.

    The message is one line that names the file, the key and what would be right. The scripts print it on stderr
    and exit with status 2 (SPEC §7); no traceback.
    """


class NotFiniteError(UserError):
    """A model computes NaN or infinity: its weights are broken, or the number format has no room for its numbers."""
