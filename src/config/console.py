"""Progress bars and console messages."""

import sys
import threading
from functools import cache
from typing import Any

BAR_DELAY = 2.0  # seconds; shorter work shows no bar
LOG_INTERVAL = 30.0  # seconds between lines where the output is a file and not a terminal


def progress_bar(total: int, description: str, unit: str, *, initial: int = 0) -> Any:
    """A tqdm bar on stderr, counting `unit`s; quiet for short work and in the background, sparse in log files."""
    on_terminal = sys.stderr.isatty()
    return _bar_class()(
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


@cache
def _bar_class() -> Any:
    """One class for all bars: tqdm starts a thread for each, which never ends."""
    from tqdm.auto import tqdm  # here, because --help needs none of it

    class Bar(tqdm):
        """`tqdm.write` would show, and never clear away, a bar whose delay is not over."""

        def display(self, *args: Any, **kwargs: Any) -> Any:
            return super().display(*args, **kwargs) if self._is_due() else None

        def clear(self, *args: Any, **kwargs: Any) -> None:
            if self._is_due():
                super().clear(*args, **kwargs)

        def _is_due(self) -> bool:
            return self._time() - self.start_t >= self.delay

    return Bar


def say(line: str) -> None:
    """Print a line on stdout without breaking a progress bar."""
    from tqdm.auto import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
