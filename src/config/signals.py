"""Signals that end a script: with the exit status that a shell expects, and whatever is half written cleared away."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal asked the process to end; the exit status is 128 + the signal's number (130 or 143)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Within: SIGTERM raises Stopped wherever the program is, as Ctrl-C raises KeyboardInterrupt."""
    with _handled_by(_stop, signal.SIGTERM):
        yield


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Within: Ctrl-C and SIGTERM wait for the end. For the few calls that put what is written in its place, or away."""
    came: list[int] = []
    try:
        with _handled_by(lambda number, _: came.append(number), *SIGNALS):
            yield
    finally:
        for number in came:
            signal.raise_signal(number)


@contextmanager
def signals_kill() -> Iterator[None]:
    """Within: Ctrl-C and SIGTERM end the process at once, by the system. For a long call of a library, in which Python
    hears of no signal, while nothing is half written; the statuses that a shell sees are the same."""
    with _handled_by(signal.SIG_DFL, *SIGNALS):
        yield


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextmanager
def _handled_by(handler: Handler, *numbers: int) -> Iterator[None]:
    """Within: `handler` gets these signals, but for those that are ignored (under nohup, say).

    In the main thread alone: others get no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    former = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, other in former.items():
            signal.signal(number, other)


class Interrupted(Stopped):
    """The run was asked to stop, and its state is whole."""


class StopRequests:
    """Within `with`: SIGINT and SIGTERM are noted, and `check()` raises Interrupted once one has come.

    A second signal is obeyed at once, wherever the program is.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._obeys_at_once = False

    def check(self) -> None:
        if self.received is not None:
            raise Interrupted(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within: a signal raises Interrupted wherever the program is. For long work that leaves the state alone."""
        self._obeys_at_once = True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._obeys_at_once = False

    def __enter__(self) -> "StopRequests":
        self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise Stopped(number)  # not Interrupted: the state may be half changed and must not be saved
        self.received = number
        if self._obeys_at_once:
            raise Interrupted(number)
