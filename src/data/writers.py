"""Write datasets: JSON, or Arrow for nested columns."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError, one_line
from src.data.arrow_columns import ArrowColumn
from src.data.schema import Columns, Datasets
from src.storage.atomic import atomic_folder, atomic_write
from src.storage.json_files import opened

if TYPE_CHECKING:
    import pyarrow

ARROW = ".arrow"
NESTED = {"tokens": "int32", "logits": "float32"}  # columns of lists of lists of numbers, and the numbers' types
TEXTS_PER_BATCH = 10_000  # rows of a record batch without nested columns
ROWS_PER_BATCH = 200  # rows in a record batch: Python's numbers take eight times the memory of Arrow's

Row = dict[str, Any]


def write_datasets(path: str | Path, datasets: Datasets) -> None:
    """Write a dataset atomically: a folder of memory-mappable Arrow files if `path` ends in `.arrow`, otherwise JSON.

    Equal datasets give equal bytes. JSON has one value per line. Raises UserError for a column that Arrow cannot hold,
    and instead of replacing a folder that holds anything but Arrow files.
    """
    path = Path(path)
    if path.suffix != ARROW:
        with atomic_write(path) as file:
            file.writelines(_json_of(datasets))
        return
    _check_replaceable(path)
    with atomic_folder(path) as folder:
        for split, columns in datasets.items():
            _write_arrow(folder / f"{split}{ARROW}", columns, f"{path}: split '{split}'")


def _write_arrow(path: Path, columns: Columns, place: str) -> None:
    import pyarrow

    schema = pyarrow.schema(
        [(name, _inferred_type(values, f"{place}: column '{name}'")) for name, values in columns.items()]
    )
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(next(iter(columns.values()))), TEXTS_PER_BATCH):
            part = {name: list(values[start : start + TEXTS_PER_BATCH]) for name, values in columns.items()}
            writer.write_batch(pyarrow.RecordBatch.from_pydict(part, schema))


def _inferred_type(values: Sequence[Any], place: str) -> pyarrow.DataType:
    import pyarrow

    if isinstance(values, ArrowColumn):
        return values.column.type
    try:
        return pyarrow.infer_type(values)
    except pyarrow.ArrowException as error:
        raise UserError(f"{place}: cannot be written to an Arrow file ({one_line(error)}); take a .json file") from None


@contextlib.contextmanager
def open_dataset(path: str | Path, splits: Sequence[str]) -> Iterator[Callable[[str, Row], None]]:
    """Write a dataset row by row with the function this yields, which takes a split and a row of it.

    If `path` ends in `.arrow`, write a folder with a memory-mappable file `<split>.arrow` per split, in bounded memory;
    otherwise collect the rows and write a JSON file with the splits in the order of `splits`. `path` exists only after
    the block ends without an error. Raises UserError instead of replacing a folder that holds anything but Arrow files.
    """
    path = Path(path)
    if path.suffix == ARROW:
        _check_replaceable(path)
        with atomic_folder(path) as folder, contextlib.ExitStack() as stack:
            files = {split: stack.enter_context(_ArrowFile(folder / f"{split}{ARROW}")) for split in splits}
            yield lambda split, row: files[split].add(row)
        return
    datasets: Datasets = {split: {} for split in splits}

    def add(split: str, row: Row) -> None:
        for name, value in row.items():
            datasets[split].setdefault(name, []).append(value)

    yield add
    write_datasets(path, datasets)


class _ArrowFile(contextlib.AbstractContextManager):
    """One split as an Arrow IPC file. A split without rows gets no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        self._open = contextlib.ExitStack()
        self._writer: Any = None
        self._schema: Any = None

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_BATCH:
            self._write()

    def _write(self) -> None:
        import pyarrow

        if self._writer is None:
            self._schema = pyarrow.schema([(name, _type_of(name, value)) for name, value in self._rows[0].items()])
            sink = self._open.enter_context(pyarrow.OSFile(str(self._path), "wb"))
            self._writer = self._open.enter_context(pyarrow.ipc.new_file(sink, self._schema))
        self._writer.write_batch(pyarrow.RecordBatch.from_pylist(self._rows, self._schema))
        self._rows = []

    def __exit__(self, *error: object) -> None:
        with self._open:
            if self._rows and error[0] is None:
                self._write()


def _type_of(column: str, value: Any) -> pyarrow.DataType:
    """The Arrow type of a column, which `value` is in: text, lists of texts, or lists of lists of numbers (NESTED)."""
    import pyarrow

    if column in NESTED:
        return pyarrow.list_(pyarrow.list_(pyarrow.type_for_alias(NESTED[column])))
    return pyarrow.list_(pyarrow.string()) if isinstance(value, list) else pyarrow.string()


def _check_replaceable(folder: Path) -> None:
    """Raise UserError unless `folder` is missing or contains only Arrow files."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, but an Arrow dataset is a folder; delete it or give another --file_name")
    others = sorted(entry.name for entry in folder.glob("*") if entry.suffix != ARROW)
    if others:
        raise UserError(f"{folder}: holds '{others[0]}', which is not an Arrow file; give another --file_name")


def _json_of(datasets: Datasets) -> Iterator[str]:
    """The text of a JSON dataset file, in pieces."""
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
    """SHA-256 of a file's bytes, or of a folder's names and bytes without hidden ones, in hexadecimal."""
    path = Path(path)
    if path.is_dir():
        files = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        parts = sorted(str(file) for file in files if not any(part.startswith(".") for part in file.parts))
        listing = "\n".join(f"{name} {fingerprint(path / name)}" for name in parts)
        return hashlib.sha256(listing.encode("utf-8")).hexdigest()
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_datasets(datasets: Datasets) -> str:
    """SHA-256 of the file that `write_datasets` would write, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in _json_of(datasets):
        digest.update(piece.encode("utf-8"))
    return digest.hexdigest()
