"""Signals that end a script: with the exit status that a shell expects, and whatever is half written cleared away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal asked the process to end; the exit status is 128 + the signal's number (130 or 143)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Within: SIGTERM raises Stopped wherever the program is, as Ctrl-C raises KeyboardInterrupt.

    Not where SIGTERM has another meaning already (ignored, say), and in the main thread alone: others get no signals.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Within: Ctrl-C and SIGTERM wait for the end. For the few calls that put what is written in its place, or away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    former = {number: signal.signal(number, lambda heard, _: came.append(heard)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for heard in came:
            signal.raise_signal(heard)


@contextmanager
def signals_kill() -> Iterator[None]:
    """Within: Ctrl-C and SIGTERM end the process at once, by the system. For a long call of a library, in which Python
    hears of no signal, while nothing is half written; the statuses that a shell sees are the same."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)
