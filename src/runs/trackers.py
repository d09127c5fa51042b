"""Trackers: where a run logs its rows of scores and losses while it trains.

To add one (W&B, TensorBoard), write a class with the methods of `Tracker` and add it to `open_trackers`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from src.storage.atomic import append_bytes

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Receives every row of a run. A resumed run logs the rows after its last saved state again."""

    def log(self, table: str, columns: Sequence[str], row: Row) -> None:
        """Log a row of a table (`SCORES` or `LOSSES`). columns: those of the table; the row may lack some."""

    def close(self) -> None:
        """Send what is left. The run calls it once, however it ends."""


class CsvTracker:
    """A CSV file for each table, in the run's folder. A row is on disk when `log` returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, table: str, columns: Sequence[str], row: Row) -> None:
        """Append the row, after a header if it is the first. Raises ValueError for a value without a column."""
        path, text = self.folder / table, io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if not path.is_file() or not path.stat().st_size:
            writer.writeheader()
        writer.writerow(row)
        append_bytes(path, text.getvalue().encode("utf-8"))

    def close(self) -> None:
        """Nothing is left: each row was written at once."""


def open_trackers(folder: Path, flags: Mapping[str, Any]) -> tuple[Tracker, ...]:
    """The trackers of a run. flags: for trackers that log them, or that a flag turns on."""
    return (CsvTracker(folder),)
