"""Experiment trackers through accelerate: whether one is installed, and a run in it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from src.config.constants import TRACKERS
from src.config.errors import UserError, one_line

TAKES_TEXT = ("trackio", "tensorboard", "wandb", "comet_ml")  # the others keep only numbers
CONTINUES: Mapping[str, Callable[[str, str], dict[str, str]]] = {  # arguments that name a run, or find it again
    "trackio": lambda name, key: {"name": f"{name}-{key}", "resume": "allow"},
    "wandb": lambda name, key: {"name": name, "id": key, "resume": "allow"},
}


def check_tracker(name: str) -> None:
    """Raise UserError if the package of a tracker is not installed."""
    installed = {str(each) for each in get_available_trackers()}
    if name not in installed:
        others = [each for each in TRACKERS if each in installed]
        instead = f", or take {' or '.join(others)}" if others else ""
        raise UserError(f"--report_to {name}: the package {name} is not installed; pip install {name}{instead}")


class TrackedRun:
    """A run in a tracker. Its methods raise a UserError for whatever goes wrong there: nothing that training needs."""

    def __init__(self, name: str, folder: Path, key: str, flags: Mapping[str, Any], *, is_new: bool) -> None:
        """Start the run of the output folder, or continue the one that was started with the same `key`.

        It lies in the project that is called like the folder's parent. A tracker of files, such as tensorboard, has
        them in `folder`/NAME_KEY. flags: stored with the run; in files only once.
        """
        self.name, folder = name, folder.resolve()
        kind = LOGGER_TYPE_TO_CLASS[name]
        with _InOneLine(f"--report_to {name}: cannot be started"):
            if kind.requires_logging_directory:
                self.tracker = kind(f"{name}_{key}", folder)
            else:
                arguments = CONTINUES[name](folder.name, key) if name in CONTINUES else {}
                self.tracker = kind(folder.parent.name or folder.name, **arguments)
            self.tracker.start()
            if is_new or not kind.requires_logging_directory:
                simple = (bool, int, float, str)
                values = {flag: value if isinstance(value, simple) else str(value) for flag, value in flags.items()}
                self.tracker.store_init_configuration(values)

    def send(self, values: Mapping[str, float | str], step: int) -> None:
        """Send values at a step; texts only to a tracker that shows them."""
        kept = {name: value for name, value in values.items() if self.name in TAKES_TEXT or not isinstance(value, str)}
        with _InOneLine(f"--report_to {self.name}: cannot be reached"):
            self.tracker.log(kept, step=step)

    def finish(self) -> None:
        """Send what is left."""
        with _InOneLine(f"--report_to {self.name}: cannot be closed"):
            self.tracker.finish()


class _InOneLine(AbstractContextManager[None]):
    """Turn any error of a tracker into a UserError. A class, since their packages' errors share no other."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Exception):
            raise UserError(f"{self.problem}: {one_line(error)}") from error
