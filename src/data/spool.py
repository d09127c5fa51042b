"""Rows that arrive in any order, kept in a temporary file and read back as columns."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from src.data.arrow_columns import VALUES_PER_READ, columns_in
from src.storage.atomic import WritingTo

if TYPE_CHECKING:
    import pyarrow

    from src.data.schema import Columns


def mapped_columns(file: IO[bytes]) -> Columns:
    """The columns of an open Arrow file, memory-mapped: they stay when the file is closed and has no name."""
    import pyarrow

    file.flush()
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return columns_in(pyarrow.ipc.open_file(pyarrow.py_buffer(content)).read_all())


class Spool(contextlib.AbstractContextManager):
    """Rows of texts, in a file of `folder` that has no name, so that nothing is left of it after a kill."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        import pyarrow

        self._place, self._n_rows = folder, 0
        self._rows: list[Sequence[str | None]] = []
        self._schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as the spool)
        self._writer: pyarrow.RecordBatchFileWriter = pyarrow.ipc.new_file(self._file, self._schema)

    def add(self, rows: Sequence[Sequence[str | None]]) -> range:
        """Add rows; returns their numbers."""
        first, self._n_rows = self._n_rows, self._n_rows + len(rows)
        self._rows += rows
        if len(self._rows) >= VALUES_PER_READ:
            self._flush()
        return range(first, self._n_rows)

    def _flush(self) -> None:
        import pyarrow

        columns: list[Any] = [pyarrow.array(values, pyarrow.string()) for values in zip(*self._rows, strict=True)]
        if columns:
            with WritingTo(self._place):
                self._writer.write_batch(pyarrow.record_batch(columns, self._schema))
        self._rows = []

    def columns(self) -> Columns:
        """The columns of all rows; none can be added afterwards."""
        self._flush()
        with WritingTo(self._place):
            self._writer.close()
        return mapped_columns(self._file)

    def __exit__(self, *_: object) -> None:
        self._file.close()
