"""Hold the output folder for a run, or with --dry_run True only check that it could be held."""

from collections.abc import Iterator
from contextlib import contextmanager

from src.config.console import say
from src.config.flags.shared import SharedArguments
from src.runs.folder import RunFolder


@contextmanager
def hold_folder(run: RunFolder, config: SharedArguments) -> Iterator[None]:
    """Within: no other run can work in the folder; a dry run only checks that it is free, and changes nothing.

    Raises UserError if another run is at work there, or if the folder cannot be written.
    """
    if config.dry_run:
        run.check_free()
        say(f"dry run of {config.script}: checks, loads and times a few steps; nothing is written")
        yield
    else:
        with run.held():
            yield
