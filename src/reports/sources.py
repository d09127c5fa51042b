"""What only the dataset file of a run knows: the inputs of its test rows, and the number of pseudo-targets."""

from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path

from src.config.constants import TARGET, TEST, TEXT, TRAIN
from src.config.errors import UserError
from src.config.flags.base import DataArguments
from src.data.columns import rename_columns
from src.data.message_columns import with_texts
from src.data.references import references_of
from src.data.schema import TRAIN_I, Columns
from src.data.tables import read_data
from src.data.writers import fingerprint
from src.reports.collect import Run
from src.storage.json_files import read_json_members


def read_sources(runs: Iterable[Run]) -> tuple[list[str] | None, str]:
    """The inputs of the test rows that the runs share, from the first dataset that has them; and why there are none."""
    reasons: dict[str, str] = {}
    for run in runs:
        path = run.flags["dataset_path"]
        if path in reasons:
            continue
        try:
            columns = _test_rows(run)
        except UserError as error:
            reasons[path] = str(error)
            continue
        n_rows = len(run.references)
        if list(map(references_of, columns.get(TARGET, [])[:n_rows])) == run.references and TEXT in columns:
            return columns[TEXT][:n_rows], ""
        reasons[path] = f"{path}: its test split is not the one that was scored"
    return None, "; ".join(reasons.values())


def _test_rows(run: Run) -> Columns:
    """The test split of a run's dataset, by our names of columns. Raises UserError if it cannot be read."""
    path = run.flags["dataset_path"]
    if not Path(path).exists():
        raise UserError(f"{path}: is not on this machine any more")
    if Path(path).suffix == ".json":
        members = read_json_members(path)
        if TEST in members:
            names = {TEXT: run.flags["text_column"], TARGET: run.flags["target_column"]}
            return with_texts(rename_columns({TEST: members[TEST]()}, names, path), path)[TEST]
    known = {each.name for each in fields(DataArguments)}
    config = DataArguments(**{name: value for name, value in run.flags.items() if name in known})
    return read_data(config, path).get(TEST, {})


def count_pseudo_targets(run: Run) -> int | None:
    """The number of pseudo-targets for each input in a run's dataset: 0 if it has a split `train`, None if unknown.

    The file must still have the run's fingerprint.
    """
    path = run.flags["dataset_path"]
    if not Path(path).is_file() or Path(path).suffix != ".json":
        return None
    if _fingerprint(path, Path(path).stat().st_mtime_ns) != run.records.description.data.get("dataset_path"):
        return None
    splits = _splits(path)
    rotation = sum(TRAIN_I.fullmatch(split) is not None for split in splits)
    return rotation if rotation or TRAIN in splits else None


@cache
def _fingerprint(path: str, _changed: int) -> str:
    return fingerprint(path)


@cache
def _splits(path: str) -> tuple[str, ...]:
    return tuple(read_json_members(path))
