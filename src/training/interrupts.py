"""Ctrl-C and SIGTERM: noted at once, obeyed where the state is whole."""

import signal
from types import FrameType


class Interrupted(SystemExit):
    """The run was asked to stop; the exit status is 128 + the signal's number (130 or 143)."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


class StopRequests:
    """Within `with`: SIGINT and SIGTERM are noted, and `check()` raises Interrupted once one has come.

    A second signal is obeyed at once, wherever the program is.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None

    def check(self) -> None:
        if self.received is not None:
            raise Interrupted(self.received)

    def __enter__(self) -> "StopRequests":
        self._former = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)  # not Interrupted: the state may be half changed and must not be saved
        self.received = number
