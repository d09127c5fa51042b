"""Columns in memory-mapped Arrow files: read like lists, but values take no memory until they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

VALUES_PER_READ = 10_000


class ArrowColumn(Sequence[Any]):
    """A column that stays where it is, in a memory-mapped file.

    rows: the numbers of the rows that it has, in their order; None for all.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, column: pyarrow.ChunkedArray, rows: np.ndarray | None = None) -> None:
        self.column = column
        self.rows = rows

    def __len__(self) -> int:
        return len(self.column if self.rows is None else self.rows)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            if self.rows is None and row.step in (None, 1):
                return ArrowColumn(self.column[row])
            return self.take(np.arange(len(self))[row])
        return self.column[row if self.rows is None else int(self.rows[row])].as_py()

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), VALUES_PER_READ):
            if self.rows is None:
                yield from self.column[start : start + VALUES_PER_READ].to_pylist()
            else:
                yield from self._values(self.rows[start : start + VALUES_PER_READ])

    def _values(self, rows: np.ndarray) -> Iterator[Any]:
        """The values of these rows; most rows that follow each other in the file are read together."""
        gaps = np.flatnonzero(np.diff(rows) != 1) + 1
        if len(gaps) > len(rows) / 4:
            yield from (self.column[int(row)].as_py() for row in rows)
            return
        for run in np.split(rows, gaps):
            yield from self.column[int(run[0]) : int(run[-1]) + 1].to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))  # noqa: B905

    def take(self, rows: np.ndarray) -> ArrowColumn:
        """The rows with these numbers, in this order."""
        return ArrowColumn(self.column, rows if self.rows is None else self.rows[rows])

    def arrays(self) -> pyarrow.ChunkedArray:
        """The values in Arrow; those of chosen rows are copied."""
        return self.column if self.rows is None else self.column.take(self.rows)

    @property
    def is_text(self) -> bool:
        """Whether the column's type is text, and no value is missing in the file."""
        from pyarrow import types

        kind = self.column.type
        return (types.is_string(kind) or types.is_large_string(kind)) and not self.column.null_count

    def is_json(self) -> bool:
        """Whether all values are text, truth values, whole or finite numbers, null, or lists of such."""
        from pyarrow import compute, types

        arrays, kind = list(self.column.chunks), self.column.type
        while types.is_list(kind) or types.is_large_list(kind):
            arrays, kind = [array.flatten() for array in arrays], kind.value_type
        if types.is_floating(kind):
            return all(compute.all(compute.is_finite(array)).as_py() is not False for array in arrays)
        is_plain = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_null)
        return any(of_kind(kind) for of_kind in is_plain)


def take(column: Sequence[Any], rows: Sequence[int] | np.ndarray) -> Sequence[Any]:
    """The rows of a column with these numbers, in this order."""
    if isinstance(column, ArrowColumn):
        return column.take(np.asarray(rows, dtype=np.int64))
    numbers = rows.tolist() if isinstance(rows, np.ndarray) else rows
    return [column[row] for row in numbers]


def concatenated(columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """One column of the rows of several; it stays in the files if all are there, in one type."""
    import pyarrow

    in_files = [column for column in columns if isinstance(column, ArrowColumn)]
    if not in_files or len(in_files) < len(columns) or len({column.column.type for column in in_files}) > 1:
        return [value for column in columns for value in column]
    chunks = pyarrow.chunked_array([chunk for column in in_files for chunk in column.column.chunks])
    if all(column.rows is None for column in in_files):
        return ArrowColumn(chunks)
    firsts = np.cumsum([0, *(len(column.column) for column in in_files)])
    rows = [
        first + (np.arange(len(column)) if column.rows is None else column.rows)
        for first, column in zip(firsts, in_files, strict=False)
    ]
    return ArrowColumn(chunks, np.concatenate(rows))


def nulls_like(column: Sequence[Any], count: int) -> Sequence[Any]:
    """`count` missing values, kept as `column` is."""
    import pyarrow

    if not isinstance(column, ArrowColumn):
        return [None] * count
    return ArrowColumn(pyarrow.chunked_array([pyarrow.nulls(count, column.column.type)]))


def text_column(texts: Iterable[str]) -> ArrowColumn:
    """Texts in memory, which take a fraction of the memory of a list of them."""
    import pyarrow

    kind = pyarrow.string()
    return ArrowColumn(pyarrow.chunked_array([pyarrow.array(some, kind) for some in _batches(texts)], kind))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while some := list(islice(texts, VALUES_PER_READ)):
        yield some


def columns_in(table: pyarrow.Table) -> dict[str, Any]:
    """The columns of a memory-mapped table, left where they are, but for those with a dictionary of their values."""
    from pyarrow import types

    return {
        name: to_list(table[name], {}) if types.is_dictionary(table[name].type) else ArrowColumn(table[name])
        for name in table.column_names
    }


def to_list(values: Iterable[pyarrow.Scalar], texts: dict[Any, Any]) -> list:
    """The values of a column. Equal texts share one object, kept in `texts`: 48 targets of one input hold it once."""
    found = (value.as_py() for value in values)  # one at a time: a dictionary's copies are never there together
    return [texts.setdefault(value, value) if isinstance(value, str | bytes) else value for value in found]
