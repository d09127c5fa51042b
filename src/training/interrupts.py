"""Ctrl-C and SIGTERM: noted at once, obeyed where the state is whole."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from src.config.signals import SIGNALS, Stopped


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
