"""Scores, losses and predictions in a run's folder: cut back to a saved state, and read again by a report."""

import csv
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from src.config.errors import UserError, one_line
from src.data.references import Target
from src.runs.description import RunDescription, read_description
from src.storage.atomic import atomic_write
from src.storage.json_files import append_json_line, read_json_lines, read_json_members, write_json

SCORES, LOSSES = "eval_scores.csv", "train_losses.csv"
MODEL_FOLDER = "model"  # the portable model
FINAL_TEST = "test__epoch-1__step-1"  # the key of the final test's predictions
PREDICTIONS, PREDICTION_LINES = "eval_generations.json", "eval_generations.jsonl"  # of a finished run, while it runs
TEXT_COLUMNS, COUNT_COLUMNS = ("split", "learned"), ("phase", "epoch", "step")  # all others are numbers


class _PredictionLine(msgspec.Struct):
    split: str
    epoch: int
    step: int
    predictions: list[str]


def append_predictions(folder: Path, split: str, epoch: int, step: int, predictions: Sequence[str]) -> None:
    """Add the predictions of an evaluation, in the order of the split's rows; on disk when this returns."""
    line = {"split": split, "epoch": epoch, "step": step, "predictions": list(predictions)}
    append_json_line(folder / PREDICTION_LINES, line)


def write_predictions(
    folder: Path, references: Mapping[str, Sequence[Target]], ids: Mapping[str, Sequence[Any]] = MappingProxyType({})
) -> None:
    """Write eval_generations.json: each evaluation's predictions beside `references`, and `ids` if given, by split."""
    written = {}
    for line in read_json_lines(folder / PREDICTION_LINES):
        key = f"{line['split']}__epoch{line['epoch']}__step{line['step']}"
        written[key] = {**line, "references": list(references[line["split"]])}
        if line["split"] in ids:
            written[key]["ids"] = list(ids[line["split"]])
    write_json(folder / PREDICTIONS, written, indent=1)


def check_records(folder: Path, n_evaluations: int, n_losses: int, splits: Container[str]) -> None:
    """Raise UserError if rows that a saved state counts are missing or damaged. Writes nothing.

    splits: those of the run's data, of which predictions may be.
    """
    predictions = read_json_lines(folder / PREDICTION_LINES, repair=False)
    for path, expected in _counted_lines(folder, n_evaluations, n_losses).items():
        found = len(predictions) if path.name == PREDICTION_LINES else complete_lines(path)
        if found < expected:
            raise UserError(
                f"{path}: {found} complete lines are left of the {expected} that were there when the run's state was "
                "saved; put the file back, or start anew with --overwrite True"
            )
    read_rows(folder / SCORES, n_evaluations + 1)
    read_rows(folder / LOSSES, n_losses + 1)
    for number, line in enumerate(predictions[:n_evaluations], start=1):
        try:
            is_known = msgspec.convert(line, _PredictionLine).split in splits
        except msgspec.ValidationError:
            is_known = False
        if not is_known:
            raise UserError(
                f"{folder / PREDICTION_LINES}: line {number}: does not hold predictions of this run; put the file "
                "back, or start anew with --overwrite True"
            )


def complete_lines(path: Path) -> int:
    """The number of lines of a file that end with a newline; 0 if it is missing."""
    if not path.is_file():
        return 0
    with path.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)


def truncate_records(folder: Path, n_evaluations: int, n_losses: int) -> None:
    """Drop rows written after the state that a run continues from: they will come again."""
    for path, count in _counted_lines(folder, n_evaluations, n_losses).items():
        if path.is_file():
            with path.open("rb") as lines, atomic_write(path) as file:
                file.writelines(line.decode("utf-8") for line in islice(lines, count))


def _counted_lines(folder: Path, n_evaluations: int, n_losses: int) -> dict[Path, int]:
    """The lines of each file; the header of a CSV file is written with its first row."""
    counts = {SCORES: n_evaluations + bool(n_evaluations), LOSSES: n_losses + bool(n_losses)}
    return {folder / name: count for name, count in {**counts, PREDICTION_LINES: n_evaluations}.items()}


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class RunRecords:
    """A run as its folder describes it.

    scores, losses: the rows of the two CSV files; text, integers or floats by column, None where a value is empty.
    predictions: an evaluation each, with "split", "epoch", "step", "predictions" and, of a finished run, "references".
    """

    description: RunDescription
    scores: list[dict[str, Any]]
    losses: list[dict[str, Any]]
    predictions: list[dict[str, Any]]


def read_run(folder: str | Path, *, only_final: bool = False) -> RunRecords:
    """Read what a run left in its output folder, finished or not. Raises UserError if the folder holds no run.

    only_final: of a finished run's predictions, those of the final test, in a fraction of the time and memory.
    """
    folder = Path(folder)
    description = read_description(folder)
    if description is None:
        raise UserError(f"{folder}: holds no run: there is no run.json")
    if (folder / PREDICTIONS).is_file():
        members = read_json_members(folder / PREDICTIONS)
        predictions = [read() for key, read in members.items() if not only_final or key == FINAL_TEST]
    else:
        predictions = read_json_lines(folder / PREDICTION_LINES, repair=False)
    return RunRecords(description, read_rows(folder / SCORES), read_rows(folder / LOSSES), predictions)


def read_rows(path: Path, n_lines: int | None = None) -> list[dict[str, Any]]:
    """The rows of a CSV file of a run, or those of its first `n_lines` lines; none if it is missing.

    A last line without a newline, which a killed run leaves, is no row. Raises UserError for a file that is damaged.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        lines = csv.DictReader(line.decode("utf-8") for line in islice(file, n_lines) if line.endswith(b"\n"))
        try:
            return [
                {name: _value(name, text, f"{path}: line {lines.line_num}") for name, text in row.items()}
                for row in lines
            ]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read: {one_line(error)}") from None


def _value(column: str, text: str, place: str) -> str | int | float | None:
    if column in TEXT_COLUMNS:
        return text
    if not text:
        return None
    try:
        return int(text) if column in COUNT_COLUMNS else float(text)
    except (TypeError, ValueError):
        raise UserError(f"{place}, column {column!r}: {text!r} is not a number") from None
