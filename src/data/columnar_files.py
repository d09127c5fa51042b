"""Read Parquet files, Arrow files and folders saved by `datasets`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.constants import TRAIN
from src.config.errors import UserError, one_line
from src.data.arrow_columns import columns_in, to_list
from src.data.schema import Columns, Datasets, check_unique_names
from src.data.spool import mapped_columns
from src.storage.json_files import read_json

if TYPE_CHECKING:
    import pyarrow

LARGE = 2**30  # bytes; a smaller file in memory is never refused
MAX_EXPANSION = 1_000  # how many times its own size a large file may take in memory
IN_MEMORY = 2**28  # bytes of a Parquet file's values; more are unpacked to a temporary file
ROWS_PER_BATCH, ROWS_UNPACKED = 100, 10_000
POINTER = 8  # bytes that any value takes in a list, even a null


def read_parquet(path: Path) -> Columns:
    """The columns of a Parquet file. Raises UserError, also for one that expands too much."""
    import pyarrow
    import pyarrow.parquet

    columns: Columns = {}
    texts: dict[Any, Any] = {}
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            check_unique_names(file.schema_arrow.names, path)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            n_values = sum(group.column(j).num_values for group in groups for j in range(group.num_columns))
            _check_expansion(max(POINTER * n_values, sum(group.total_byte_size for group in groups)), path)
            columns = {name: [] for name in file.schema_arrow.names}
            if sum(group.total_byte_size for group in groups) > IN_MEMORY:
                return _unpacked(file, path)
            # The sizes above count a repeated text once. In small batches its copies are not all in memory together.
            for batch in _checked_batches(file.iter_batches(batch_size=ROWS_PER_BATCH), path):
                for name, values in zip(batch.schema.names, batch.columns, strict=True):
                    columns[name] += to_list(values, texts)
        return columns
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file: {one_line(error)}") from None


def _unpacked(file: pyarrow.parquet.ParquetFile, path: Path) -> Columns:
    """The columns of a Parquet file, unpacked to a temporary file that goes with the process."""
    import pyarrow

    with tempfile.TemporaryFile() as unpacked:
        with pyarrow.ipc.new_file(unpacked, file.schema_arrow) as writer:
            for batch in _checked_batches(file.iter_batches(batch_size=ROWS_UNPACKED), path):
                writer.write_batch(batch)
        return mapped_columns(unpacked)


def read_arrow(path: Path) -> Columns:
    """The columns of an Arrow file, which is memory-mapped. Raises UserError, also for one that expands too much."""
    import pyarrow

    try:
        file = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        check_unique_names(file.schema.names, path)
        batches = list(_checked_batches((file.get_batch(i) for i in range(file.num_record_batches)), path))
        return columns_in(pyarrow.Table.from_batches(batches, file.schema))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not an Arrow file: {one_line(error)}") from None


def is_saved_folder(folder: Path) -> bool:
    """Whether `datasets` saved a dataset, or one of its splits, in a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_saved_folder(folder: Path) -> Datasets:
    """The splits that `datasets` saved in a folder; a split saved alone becomes `train`. Raises UserError."""
    import pyarrow

    from datasets import DatasetDict, load_from_disk

    try:
        _check_file_names(folder)
        for file in folder.rglob("*.arrow"):
            list(_checked_batches(pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))), file))
        saved = load_from_disk(str(folder))
        saved = saved if isinstance(saved, DatasetDict) else {TRAIN: saved}
        return {str(split): columns_in(rows.data.table) for split, rows in saved.items()}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a folder saved by `datasets`: {one_line(error)}") from None
    except (AttributeError, KeyError, TypeError):  # JSON of another shape
        raise UserError(f"{folder}: not a folder saved by `datasets`: its .json files hold something else") from None


def _check_file_names(folder: Path) -> None:
    """Refuse a saved folder that refers to files outside of it."""
    for description in folder.rglob("*.json"):
        content = read_json(description)
        for entry in content["_data_files"] if description.name == "state.json" else ():
            if Path(entry["filename"]).name != entry["filename"]:
                raise UserError(f"{description}: '{entry['filename']}' is not the name of a file in this folder")


def _checked_batches(batches: Iterable[pyarrow.RecordBatch], path: Path) -> Iterator[pyarrow.RecordBatch]:
    """The record batches of a file. Raises UserError at the first one that makes it expand too much."""
    size = 0
    for batch in batches:
        batch.validate(full=True)  # pyarrow, even `nbytes`, follows offsets and indices that bytes lost may lead astray
        size += max(batch.nbytes, POINTER * batch.num_rows * batch.num_columns)
        _check_expansion(size, path)
        yield batch


def _check_expansion(needed: int, path: Path) -> None:
    """Raise UserError if a file is a bomb: small on disk, and `needed` bytes, far more, in memory."""
    size = path.stat().st_size
    if needed > LARGE and needed > MAX_EXPANSION * size:
        raise UserError(
            f"{path}: {size:,} bytes would take {needed:,} in memory; a file that expands more than "
            f"{MAX_EXPANSION:,} times is refused"
        )
