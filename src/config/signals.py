"""How scripts react to Ctrl-C and SIGTERM: raise an exception, wait, end at once, or stop at the next safe point."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal asked the process to end; the exit status is 128 + the signal's number (130 or 143)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def sigterm_as_exception() -> AbstractContextManager[None]:
    """Inside the `with` block SIGTERM raises Stopped, as Ctrl-C raises KeyboardInterrupt."""
    return _handled_by(_stop, signal.SIGTERM)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the `with` block ends; for the few calls that rename or remove finished files."""
    received: list[int] = []
    try:
        with _handled_by(lambda number, _: received.append(number), *SIGNALS):
            yield
    finally:
        for number in received:
            signal.raise_signal(number)


def signals_kill() -> AbstractContextManager[None]:
    """Inside the `with` block Ctrl-C and SIGTERM kill the process; the shell sees the same exit statuses as otherwise.

    For long calls of libraries, during which Python cannot handle signals. Nothing may be half written meanwhile.
    """
    return _handled_by(signal.SIG_DFL, *SIGNALS)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextmanager
def _handled_by(handler: Handler, *numbers: int) -> Iterator[None]:
    """Inside the `with` block `handler` gets these signals, except those that are ignored, for example under nohup.

    Does nothing outside the main thread, because only the main thread gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        number: signal.signal(number, handler) for number in numbers if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)


class Interrupted(Stopped):
    """A signal asked the run to stop at a point where its state can be saved."""


class StopRequests:
    """Inside the `with` block Ctrl-C and SIGTERM are recorded; `check()` then raises Interrupted.

    A second signal raises Stopped immediately. highest: returns the highest of the values that several processes give
    it: all of them call `check` at the same place, and stop there if one of them got a signal.
    """

    def __init__(self, highest: Callable[[int], int] | None = None) -> None:
        self.received: int | None = None
        self._highest = highest
        self._interrupt_at_once = False

    def check(self) -> None:
        """Raise Interrupted if a signal was received."""
        number = self.received or 0
        if self._highest is not None:
            number = self._highest(number)
        if number:
            raise Interrupted(number)

    def leaves(self) -> bool:
        """Whether to leave a loop that each of several processes runs at its own pace; `check` follows behind the loop.

        With one process, raises Interrupted instead if a signal was received.
        """
        if self._highest is None:
            self.check()
        return self.received is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the `with` block a signal raises Interrupted at once; for long work that leaves the state alone.

        Not with several processes: they stop together, at the next `check`.
        """
        self._interrupt_at_once = self._highest is None
        try:
            if self.received is not None and self._interrupt_at_once:
                raise Interrupted(self.received)
            yield
        finally:
            self._interrupt_at_once = False

    def __enter__(self) -> "StopRequests":
        self._previous = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise Stopped(number)  # not Interrupted: the state may be half changed, so it must not be saved
        self.received = number
        if self._interrupt_at_once:
            raise Interrupted(number)
