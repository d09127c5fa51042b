"""Trackers: where a run logs its rows of scores and losses while it trains.

Those that accelerate knows (TensorBoard, trackio, W&B, …) follow from --report_to. To add another, write a class with
the methods of `Tracker` and add it to `open_trackers`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from src.runs.curves import CurveTracker
from src.runs.description import Curves
from src.storage.atomic import append_bytes

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Receives every row of a run. A resumed run logs the rows after its last saved state again."""

    def log(self, table: str, columns: Sequence[str], row: Row, step: int, more: Row) -> None:
        """Log a row of a table (`SCORES` or `LOSSES`).

        columns: those of the table; the row may lack some. step: optimizer updates so far. more: values that are not in
        the table, because they differ between equal runs (speed) or have a file of their own (predictions).
        """

    def close(self) -> None:
        """Send what is left. The run calls it once, however it ends."""


class CsvTracker:
    """A CSV file for each table, in the run's folder. A row is on disk when `log` returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, table: str, columns: Sequence[str], row: Row, step: int, more: Row) -> None:
        """Append the row, after a header if it is the first. Raises ValueError for a value without a column."""
        path, text = self.folder / table, io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if not path.is_file() or not path.stat().st_size:
            writer.writeheader()
        writer.writerow(row)
        append_bytes(path, text.getvalue().encode("utf-8"))

    def close(self) -> None:
        """Nothing is left: each row was written at once."""


def open_trackers(
    folder: Path, flags: Mapping[str, Any], curves: Curves | None, kept: Mapping[str, int]
) -> tuple[Tracker, ...]:
    """The trackers of a run. curves: those of --report_to. kept: the rows that a resumed state counts, by table.

    Raises UserError if a tracker cannot be reached.
    """
    if curves is None:
        return (CsvTracker(folder),)
    from src.devices.trackers import TrackedRun  # here, because it imports accelerate, which a report does not need

    sender = TrackedRun(curves.report_to, folder, curves.key, flags, is_new=not curves.rows)
    return (CsvTracker(folder), CurveTracker(sender, curves.rows, kept))
