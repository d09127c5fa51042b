"""A run's rows of losses and scores as curves in an experiment tracker; a resumed run continues them."""

import secrets
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from src.config.console import say
from src.config.errors import UserError
from src.runs.description import Curves
from src.runs.records import LOSSES, SCORES, complete_lines

PLACES = ("epoch", "step", "phase")  # columns that are no curves


class Sender(Protocol):
    """A run in a tracker, as devices/trackers.py has it. Both methods raise a UserError if the tracker fails."""

    def send(self, values: Mapping[str, float | str], step: int) -> None: ...

    def finish(self) -> None: ...


def curves_of(report_to: str, folder: Path, former: Curves | None) -> Curves:
    """The curves of a run that begins, or, if the same tracker has `former` ones, continues in the folder."""
    if former is None or former.report_to != report_to:
        return Curves(report_to, secrets.token_hex(4))
    written = {table: max(0, complete_lines(folder / table) - 1) for table in (SCORES, LOSSES)}
    return Curves(report_to, former.key, {table: max(n, former.rows.get(table, 0)) for table, n in written.items()})


class CurveTracker:
    """Sends rows to a tracker of accelerate, at the number of optimizer updates.

    kept: how many rows of each table the resumed state has; the next one has the number after it. A tracker that fails
    is given up with a warning: the files have all rows.
    """

    def __init__(self, sender: Sender, sent: Mapping[str, int], kept: Mapping[str, int]) -> None:
        self.sender: Sender | None = sender
        self.sent, self.numbers = sent, dict(kept)

    def log(
        self, table: str, columns: Sequence[str], row: Mapping[str, Any], step: int, more: Mapping[str, Any]
    ) -> None:
        """Send the numbers of a row, and the texts and numbers of `more`, unless the row was sent before."""
        self.numbers[table] = self.numbers.get(table, 0) + 1
        if self.sender is None or self.numbers[table] <= self.sent.get(table, 0):
            return
        curve = "train" if table == LOSSES else row["split"] if row["epoch"] >= 0 else f"best_{row['split']}"
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name not in PLACES}
        values = {f"{curve}/{name}": value for name, value in {**numbers, **more}.items()}
        finite = {name: value for name, value in values.items() if isinstance(value, str) or isfinite(value)}
        try:
            self.sender.send(finite, step)
        except UserError as error:
            self._give_up(error)

    def close(self) -> None:
        """End the run in the tracker."""
        if self.sender is not None:
            try:
                self.sender.finish()
            except UserError as error:
                self._give_up(error)

    def _give_up(self, error: UserError) -> None:
        self.sender = None
        say(f"warning: {error}; nothing more is sent, {LOSSES} and {SCORES} have everything")
