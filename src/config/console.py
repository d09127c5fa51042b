"""Progress bars and console messages."""

import sys
import threading
from typing import Any

from tqdm.auto import tqdm

from src.config.noted import note

BAR_DELAY = 2.0  # seconds; shorter work shows no bar
LOG_INTERVAL = 30.0  # seconds between lines in a log file


def progress_bar(total: int, description: str, unit: str, *, initial: int = 0) -> Any:
    """A tqdm bar on stderr. Short work and background threads show none; a log file gets a line every 30 seconds."""
    on_terminal = sys.stderr.isatty()
    return _Bar(
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        delay=BAR_DELAY,
        disable=threading.current_thread() is not threading.main_thread(),
        leave=False,
        dynamic_ncols=on_terminal,
        ascii=not on_terminal,
        mininterval=0.2 if on_terminal else LOG_INTERVAL,
        maxinterval=10 if on_terminal else LOG_INTERVAL,
    )


class _Bar(tqdm):  # type: ignore[misc]
    """A bar that stays hidden until its delay is over; otherwise `tqdm.write` would show it and not clear it.

    All bars have one class, because tqdm starts a thread for each class and never ends it.
    """

    def display(self, *args: Any, **kwargs: Any) -> Any:
        return super().display(*args, **kwargs) if self._is_due() else None

    def clear(self, *args: Any, **kwargs: Any) -> None:
        if self._is_due():
            super().clear(*args, **kwargs)

    def _is_due(self) -> bool:
        return self._time() - self.start_t >= self.delay


def say(line: str) -> None:
    """Print a line on stdout without garbling a progress bar. The record of a run keeps a line `warning: ...`."""
    if line.startswith("warning: "):
        note(line.removeprefix("warning: "))
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
