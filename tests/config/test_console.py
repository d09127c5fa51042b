"""The console: progress bars on a terminal and in a log file, and messages beside them."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from src.config import console
from src.config.console import progress_bar, say


class Clock:
    """Stands for the module `time`: every look at it takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


class Terminal(io.StringIO):
    """What is printed, as a terminal shows it."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The lines that were ever complete; "\\r" goes back to a line's start, "\\x1b[A" to the line above."""
        shown, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", self.getvalue()):
            if piece == "\x1b[A":
                row = max(0, row - 1)
            elif piece == "\r":
                column = 0
            elif piece == "\n":
                row, column = row + 1, 0
                shown += [""] * (row == len(shown))
            else:
                line = shown[row].ljust(column)
                shown[row], column = line[:column] + piece + line[column + len(piece) :], column + len(piece)
        return [line.rstrip() for line in shown]


@contextmanager
def on_a_terminal(monkeypatch) -> Iterator[Terminal]:
    """A terminal is stdout and stderr. Not a fixture: pytest takes the streams back before a test begins."""
    screen = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(console, "BAR_DELAY", 1e-9)
        patch.setattr(console, "VALUES_INTERVAL", 0.0)
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "stderr", screen)
        yield screen
        assert sys.stdout is sys.stderr is screen


def test_in_a_log_file_there_are_lines(monkeypatch, capsys):
    """One every half minute, with what the bar would show; nothing goes back to the start of a line."""
    monkeypatch.setattr(console, "time", Clock(11))
    asked = iter(range(100))
    with progress_bar(8, "train, epoch 0", "steps", initial=2, values=lambda: f"loss {next(asked)}") as bar:
        for _ in range(6):
            bar.update()
        say("a message")
    printed = capsys.readouterr()
    assert printed.out == "a message\n"
    assert printed.err.splitlines(keepends=True) == [
        "train, epoch 0: 5/8 steps (62 %), 00:33 elapsed, 00:33 left, loss 0\n",
        "train, epoch 0: 8/8 steps (100 %), 01:06 elapsed, 00:00 left, loss 1\n",
    ]


def test_short_work_leaves_no_line_in_a_log_file(capsys):
    with progress_bar(3, "dev: generate", "rows") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_line_without_values_has_the_rate(monkeypatch, capsys):
    monkeypatch.setattr(console, "time", Clock(10))
    with progress_bar(400, "dev: generate", "rows") as bar:
        bar.update(100)
        bar.update(100)
        bar.update(100)
    assert capsys.readouterr().err == "dev: generate: 300/400 rows (75 %), 00:30 elapsed, 00:10 left, 10.00 rows/s\n"


def test_a_bar_shows_values(monkeypatch):
    with (
        on_a_terminal(monkeypatch) as terminal,
        progress_bar(4, "train", "steps", values=lambda: "loss 2.5, lr 0.1, 12 rows/s") as bar,
    ):
        bar.update(2)
        bar.refresh()
    assert re.search(r"train:  50%\|.*\| 2/4 \[00:00<00:00, loss 2.5, lr 0.1, 12 rows/s\]", terminal.getvalue())


def test_messages_do_not_share_a_line_with_a_bar(monkeypatch):
    """Neither ours, nor what libraries print, warn of and log; also while a bar lies below another."""
    logger = logging.getLogger("tests.console")
    messages = ["ours", "printed in parts", "on stderr", "logged", "ours below a second bar"]
    with on_a_terminal(monkeypatch) as terminal:
        logger.addHandler(logging.StreamHandler())
        with progress_bar(9, "train", "steps", values=lambda: "loss 1") as bar:
            bar.update(3)
            bar.refresh()
            say(messages[0])
            print("printed ", end="")
            bar.refresh()
            print("in parts")
            bar.refresh()
            print(messages[2], file=sys.stderr)
            with pytest.warns(UserWarning, match="warned"):
                warnings.warn("warned", stacklevel=1)
            logger.warning(messages[3])
            with progress_bar(5, "dev: generate", "rows") as inner:
                inner.update(2)
                inner.refresh()
                say(messages[4])
                bar.refresh()
            bar.update(3)
    logger.handlers.clear()
    assert [line for line in terminal.lines() if line] == messages


def test_streams_are_restored_after_an_error(monkeypatch):
    with on_a_terminal(monkeypatch) as terminal, pytest.raises(KeyboardInterrupt), progress_bar(9, "train", "steps"):
        assert sys.stdout is not terminal
        raise KeyboardInterrupt
