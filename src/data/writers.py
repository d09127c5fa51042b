"""Write data sets: JSON, or Arrow for nested columns."""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from src.config.errors import UserError
from src.data.schema import Datasets
from src.storage.atomic import atomic_folder, atomic_write
from src.storage.json_files import opened

ARROW = ".arrow"


NESTED = {"tokens": "i", "logits": "f"}  # columns of lists of lists of numbers, and what these are (int32, float32)


ROWS_PER_BATCH, NUMBERS_PER_BATCH = 1_000, 1_000_000  # a record batch ends when it has as many


def write_datasets(path: str | Path, datasets: Datasets) -> None:
    """Write a dataset file atomically, a value per line; the same datasets give the same bytes."""
    with atomic_write(path) as file:
        file.writelines(_json_of(datasets))


class RowWriter(Protocol):
    """Takes the rows of a dataset one at a time, in any order of the splits."""

    def add(self, split: str, row: dict[str, Any]) -> None: ...


@contextlib.contextmanager
def open_dataset(path: str | Path, splits: Sequence[str]) -> Iterator[RowWriter]:
    """Write a dataset row by row: a folder of Arrow files if `path` ends in `.arrow`, otherwise a JSON file.

    Arrow: one memory-mappable file `<split>.arrow` for each split, a record batch at a time, so that any number of
    rows needs little memory; a JSON file is collected first. Either takes the name `path` only when the block ends
    well, and `splits` are in this order; otherwise nothing is left behind. Raises UserError if a folder that is not
    such a one would have to be replaced.
    """
    path = Path(path)
    if path.suffix != ARROW:
        collected = _Collected(splits)
        yield collected
        write_datasets(path, collected.datasets)
        return
    _check_replaceable(path)
    with atomic_folder(path) as folder, contextlib.ExitStack() as stack:
        yield _ArrowFiles({split: stack.enter_context(_ArrowFile(folder / f"{split}{ARROW}")) for split in splits})


class _Collected:
    """Rows in memory, as columns."""

    def __init__(self, splits: Iterable[str]) -> None:
        self.datasets: Datasets = {split: {} for split in splits}

    def add(self, split: str, row: dict[str, Any]) -> None:
        columns = self.datasets[split]
        for name, value in row.items():
            columns.setdefault(name, []).append(value)


class _ArrowFiles:
    def __init__(self, files: dict[str, _ArrowFile]) -> None:
        self._files = files

    def add(self, split: str, row: dict[str, Any]) -> None:
        self._files[split].add(row)


class _ArrowFile(contextlib.AbstractContextManager):
    """One split as an Arrow IPC file: columns of text, of lists of texts, and of lists of lists of numbers (NESTED)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, list | _NestedBuffer] = {}
        self._n_rows = 0
        self._sink: Any = None
        self._writer: Any = None

    def add(self, row: dict[str, Any]) -> None:
        if not self._columns:
            self._columns = {name: _NestedBuffer(NESTED[name]) if name in NESTED else [] for name in row}
        for name, value in row.items():
            self._columns[name].append(value)
        self._n_rows += 1
        sizes = (len(column.values) for column in self._columns.values() if isinstance(column, _NestedBuffer))
        if self._n_rows >= ROWS_PER_BATCH or max(sizes, default=0) >= NUMBERS_PER_BATCH:
            self._write()

    def _write(self) -> None:
        import pyarrow

        arrays = {
            name: column.taken() if isinstance(column, _NestedBuffer) else _texts(column)
            for name, column in self._columns.items()
        }
        batch = pyarrow.record_batch(list(arrays.values()), names=list(arrays))
        if self._writer is None:
            self._sink = pyarrow.OSFile(str(self._path), "wb")
            self._writer = pyarrow.ipc.new_file(self._sink, batch.schema)
        self._writer.write_batch(batch)
        self._columns, self._n_rows = {}, 0

    def __exit__(self, *error: object) -> None:
        if self._n_rows and error[0] is None:
            self._write()
        if self._writer is not None:
            self._writer.close()
            self._sink.close()


def _texts(column: list) -> Any:
    """A column of texts, or of lists of texts, as an Arrow array."""
    import pyarrow

    text = pyarrow.string()
    return pyarrow.array(column, pyarrow.list_(text) if isinstance(column[0], list) else text)


class _NestedBuffer:
    """Rows of lists of lists of numbers, as flat arrays: what a row of Python numbers takes, divided by eight."""

    def __init__(self, kind: str) -> None:
        self.values = array(kind)
        self._entries, self._rows = array("i", [0]), array("i", [0])

    def append(self, row: list[list]) -> None:
        for entries in row:
            self.values.extend(entries)
            self._entries.append(len(self.values))
        self._rows.append(len(self._entries) - 1)

    def taken(self) -> Any:
        """The rows as an Arrow array."""
        import numpy as np
        import pyarrow

        rows, entries, values = (pyarrow.array(np.frombuffer(each, dtype=each.typecode)) for each in self._parts())
        return pyarrow.ListArray.from_arrays(rows, pyarrow.ListArray.from_arrays(entries, values))

    def _parts(self) -> tuple[array, array, array]:
        return self._rows, self._entries, self.values


def _check_replaceable(folder: Path) -> None:
    """Raise UserError if anything but a folder of Arrow files is there."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; splits of Arrow files need a folder of this name")
    others = sorted(entry.name for entry in folder.glob("*") if entry.suffix != ARROW)
    if others:
        raise UserError(f"{folder}: holds '{others[0]}', which is no Arrow file; give another --file_name")


def _json_of(datasets: Datasets) -> Iterator[str]:
    """The text of a dataset file, a column at a time."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    yield "{"
    for i, (split, columns) in enumerate(datasets.items()):
        yield f"{',' if i else ''}\n{encode(split)}: {{"
        for j, (name, values) in enumerate(columns.items()):
            yield f"{',' if j else ''}\n{encode(name)}: [\n"
            yield ",\n".join(map(encode, values))
            yield "\n]"
        yield "\n}"
    yield "\n}\n"


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's names and bytes, in hexadecimal."""
    path = Path(path)
    if path.is_dir():
        parts = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        listing = "\n".join(f"{name} {fingerprint(path / name)}" for name in parts)
        return hashlib.sha256(listing.encode("utf-8")).hexdigest()
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_datasets(datasets: Datasets) -> str:
    """SHA-256 of the file `write_datasets` would write: for data in memory, wherever it came from (`hf:` too)."""
    digest = hashlib.sha256()
    for piece in _json_of(datasets):
        digest.update(piece.encode("utf-8"))
    return digest.hexdigest()
