"""The results of a profile: a JSON file of records, and the same table as CSV, written after each record."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from src.config.errors import UserError
from src.config.flags.profile import ProfileArguments
from src.profiling.grid import LARGEST, Cell
from src.runs.description import installed_versions
from src.storage.atomic import atomic_write, check_output_folder, check_writable, recover
from src.storage.json_files import read_json, write_json

PACKAGES = ("python", "torch", "transformers", "kd-for-text-generation")


class Record(msgspec.Struct, kw_only=True):
    """What was measured of a model with one batch size, in one cell of the grid and on one device.

    Latencies are milliseconds of a call on a whole batch. None: the batch did not fit into memory, or, of
    max_batch_size, was not asked for. peak_memory_mb: weights and all that generation needs, in 10⁶ bytes.
    """

    model_name: str
    enc_layers_to_keep: tuple[int, ...] | None = None
    dec_layers_to_keep: tuple[int, ...] | None = None
    batch_size: int
    input_length: int
    target_length: int
    num_beams: int
    device: str
    device_name: str = ""
    parameters: int
    flops: int
    latency_ms_median: float | None = None
    latency_ms_p90: float | None = None
    forward_ms_median: float | None = None
    forward_ms_p90: float | None = None
    peak_memory_mb: float | None = None
    sentences_per_second: float | None = None
    tokens_per_second: float | None = None
    max_batch_size: int | None = None
    n_calls: int = 0
    versions: dict[str, str] = {}

    def is_of(self, model_name: str, cell: Cell, device: str) -> bool:
        """Whether it was measured of this model, cell and device."""
        own = Cell(self.input_length, self.target_length, self.num_beams)
        return (self.model_name, own, self.device) == (model_name, cell, device)

    @property
    def is_largest(self) -> bool:
        """Whether it is the record of the largest batch; of a batch of 1 if none fits."""
        return self.max_batch_size is not None and self.batch_size == max(1, self.max_batch_size)


class Results:
    """The records of a file, in the order in which they were measured."""

    def __init__(self, path: Path, records: Iterable[Record] = ()) -> None:
        self.path, self._csv = path.with_suffix(".json"), path.with_suffix(".csv")
        self.records = list(records)
        self._versions = {name: text for name, text in installed_versions().items() if name in PACKAGES}

    @classmethod
    def open(cls, config: ProfileArguments) -> "Results":
        """What --output_file_path holds. Raises UserError if that is no profile, or cannot be written."""
        results = cls(Path(config.output_file_path))
        for path in (results.path, results._csv):
            if path.is_dir():
                raise UserError(f"--output_file_path {path}: is a folder")
        check_output_folder(results.path.parent, "--output_file_path")
        check_writable(results.path.parent)
        recover(results.path)
        recover(results._csv)
        if config.overwrite or not (results.path.exists() or results._csv.exists()):
            return results
        what_to_do = "name another file, or add --overwrite True to replace it"
        if not results.path.exists():
            raise UserError(f"--output_file_path: {results._csv} exists, but no {results.path.name}; {what_to_do}")
        try:
            results.records = msgspec.convert(read_json(results.path), list[Record])
        except msgspec.ValidationError as error:
            raise UserError(f"{results.path}: holds no profile: {error}; {what_to_do}") from None
        return results

    def has(self, model_name: str, cell: Cell, size: int | None, device: str) -> bool:
        """Whether there is a record of a batch size, or of the LARGEST that fits."""
        records = self.of(model_name, cell, device)
        return any(each.is_largest if size is LARGEST else each.batch_size == size for each in records)

    def of(self, model_name: str, cell: Cell, device: str) -> list[Record]:
        """The records of one model and cell on one device."""
        return [each for each in self.records if each.is_of(model_name, cell, device)]

    def add(self, record: Record) -> None:
        """Add a record and write both files. The largest batch, once found, is noted in all records of its cell."""
        cell = Cell(record.input_length, record.target_length, record.num_beams)
        record.versions = self._versions
        self.records.append(record)
        of_cell = self.of(record.model_name, cell, record.device)
        largest = next((each.max_batch_size for each in of_cell if each.max_batch_size is not None), None)
        for each in of_cell:
            each.max_batch_size = largest
        self.write()

    def write(self) -> None:
        """Write both files."""
        rows = msgspec.to_builtins(self.records)
        write_json(self.path, rows, indent=1)
        with atomic_write(self._csv) as file:
            table = csv.DictWriter(file, Record.__struct_fields__, lineterminator="\n")
            table.writeheader()
            table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    """A value as a CSV file holds it: layers separated by spaces, versions by commas."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return ", ".join(f"{name} {text}" for name, text in value.items()) if isinstance(value, dict) else value
