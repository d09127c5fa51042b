"""Signals that end a script: with the exit status that a shell expects, and whatever is half written cleared away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


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


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)
