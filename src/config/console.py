"""Progress bars and console messages."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

from tqdm.auto import tqdm
from tqdm.contrib import DummyTqdmFile
from tqdm.contrib.logging import logging_redirect_tqdm

from src.config.warning_record import record_warning

BAR_DELAY = 2.0  # seconds; shorter work shows no bar
LOG_INTERVAL = 30.0  # seconds between lines in a log file
VALUES_INTERVAL = 2.0  # seconds between new values beside a bar
TERMINAL = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}%s{postfix}]"
LOG_FILE = "{desc}: {n_fmt}/{total_fmt}{unit} ({percentage:.0f} %%), {elapsed} elapsed, {remaining} left%s{postfix}"


def progress_bar(
    total: int, description: str, unit: str, *, initial: int = 0, values: Callable[[], str] | None = None
) -> Any:
    """A progress bar on stderr, or, where stderr is no terminal, a line every 30 seconds.

    Short work and background threads show none. values: returns what to show in place of units per second; asked every
    2 seconds (in a log file, for each line). The time that is left then follows from the mean speed, pauses included.
    """
    is_shown = _is_main() and threading.current_thread() is threading.main_thread()
    rate = ", {rate_fmt}" if values is None else ""
    stream = sys.stderr.stream if isinstance(sys.stderr, _AboveBars) else sys.stderr
    if not stream.isatty():
        return _LogLines(total, description, unit, initial, LOG_FILE % rate if is_shown else None, values)
    bar = _Bar(
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        file=stream,
        delay=BAR_DELAY,
        disable=not is_shown,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.2,
        smoothing=0.3 if values is None else 0,
        bar_format=TERMINAL % rate,
    )
    bar.values, bar.valued_at = values, time.monotonic()
    return bar


class _AboveBars(DummyTqdmFile):  # type: ignore[misc]
    """Stands for stdout or stderr while a bar is shown: complete lines go above the bar."""

    @property
    def stream(self) -> Any:
        return self._wrapped

    def __eq__(self, other: object) -> bool:
        return bool(self._wrapped == (other.stream if isinstance(other, _AboveBars) else other))

    def __hash__(self) -> int:
        return hash(self._wrapped)


class _Bar(tqdm):  # type: ignore[misc]
    """A bar that stays hidden until its delay is over; otherwise `tqdm.write` would show it and not clear it.

    Inside its `with` block, what libraries print and log goes above the bar.
    All bars have one class, because tqdm starts a thread for each class and never ends it.
    """

    values: Callable[[], str] | None
    valued_at: float

    def __enter__(self) -> Self:
        self.streams, self.redirected = (sys.stdout, sys.stderr), ExitStack()
        if not self.disable and not isinstance(sys.stderr, _AboveBars):
            self.redirected.enter_context(logging_redirect_tqdm(_loggers_to(*self.streams)))
            sys.stdout, sys.stderr = map(_AboveBars, self.streams)
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: object) -> None:
        sys.stdout, sys.stderr = self.streams
        self.redirected.close()
        super().__exit__(*error)

    def update(self, n: float | None = 1) -> bool | None:
        if self.values is not None and not self.disable and time.monotonic() - self.valued_at >= VALUES_INTERVAL:
            self.valued_at = time.monotonic()
            self.set_postfix_str(self.values(), refresh=False)
        return super().update(n)  # type: ignore[no-any-return]

    def display(self, *args: Any, **kwargs: Any) -> Any:
        return super().display(*args, **kwargs) if self._is_due() else None

    def clear(self, *args: Any, **kwargs: Any) -> None:
        if self._is_due():
            super().clear(*args, **kwargs)

    def _is_due(self) -> bool:
        return self._time() - self.start_t >= self.delay


def _loggers_to(*streams: Any) -> list[logging.Logger]:
    """The loggers whose own handlers write to one of these streams."""
    known = (logging.root, *logging.Logger.manager.loggerDict.values())
    loggers = [each for each in known if isinstance(each, logging.Logger)]
    return [each for each in loggers if any(getattr(handler, "stream", None) in streams for handler in each.handlers)]


class _LogLines:
    """Stands for a bar in a log file: prints a line at an update, at most every 30 seconds. line: None prints none."""

    def __init__(
        self,
        total: int,
        description: str,
        unit: str,
        initial: int,
        line: str | None,
        values: Callable[[], str] | None,
    ) -> None:
        self.total, self.description, self.unit, self.line, self.values = total, description, unit, line, values
        self.n = self.initial = initial
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is left to be cleared."""

    def set_description(self, description: str, *, refresh: bool = True) -> None:
        self.description = description

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if self.line is None or now - self.printed < LOG_INTERVAL:
            return
        self.printed = now
        line = tqdm.format_meter(
            self.n,
            self.total,
            now - self.began,
            prefix=self.description,
            initial=self.initial,
            unit=f" {self.unit}",
            postfix=self.values() if self.values else "",
            bar_format=self.line,
        )
        print(line, file=sys.stderr, flush=True)


def _is_main() -> bool:
    """Whether this is the main process, of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line on stdout without garbling a progress bar. The record of a run keeps a line `warning: ...`.

    Of several processes, the main process prints.
    """
    if not _is_main():
        return
    if line.startswith("warning: "):
        record_warning(line.removeprefix("warning: "))
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
