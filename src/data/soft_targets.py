"""A teacher's stored log-probabilities: three levels, row → label position → entries, in flat arrays.

Shapes: N rows, B rows of a batch, T label positions, K entries of the position that has the most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from src.config.errors import UserError
from src.data.arrow_columns import ArrowColumn

if TYPE_CHECKING:
    import pyarrow

# entries of each position (T,), then all ids and log-probabilities
StoredRow = tuple[np.ndarray, np.ndarray, np.ndarray]
TOKENS, LOGITS = "tokens", "logits"  # columns of a prepared dataset: stored ids, and their raw log-probabilities


@dataclass(frozen=True)
class Nested:
    """Lists of lists of numbers. positions: (N + 1,) offsets of rows; entries: offsets of positions; values: all."""

    positions: np.ndarray
    entries: np.ndarray
    values: np.ndarray

    @classmethod
    def of_arrow(cls, chunk: "pyarrow.ListArray") -> "Nested":
        """The arrays behind an Arrow array, not copied; a null among floats is NaN. Raises TypeError for other nulls,
        and for what are no numbers.
        """
        from pyarrow import types

        inner = chunk.values
        kind = inner.values.type
        if not (types.is_integer(kind) or types.is_floating(kind)):
            raise TypeError(f"lists of lists of {kind}")
        if chunk.null_count or inner.null_count or (inner.values.null_count and types.is_integer(kind)):
            raise TypeError("nulls among numbers")
        return cls(chunk.offsets.to_numpy(), inner.offsets.to_numpy(), inner.values.to_numpy(zero_copy_only=False))

    def __len__(self) -> int:
        return len(self.positions) - 1

    def row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts of entries by position (T,), and all entries of the row."""
        entries = self.entries[self.positions[row] : self.positions[row + 1] + 1]
        return np.diff(entries), self.values[entries[0] : entries[-1]]


@dataclass(frozen=True)
class StoredRows:
    """The stored tokens of a split, in chunks of rows: (first row, ids, log-probabilities)."""

    chunks: tuple[tuple[int, Nested, Nested], ...]

    @cached_property
    def starts(self) -> np.ndarray:
        return np.array([first for first, _, _ in self.chunks])

    @classmethod
    def of(cls, tokens: Sequence, logits: Sequence, place: str) -> "StoredRows":
        """Of two columns: lists as a JSON file has them, or memory-mapped ones. `place` names them in an error.

        Raises UserError if they are not lists of lists of numbers of one shape.
        """
        try:
            pairs = zip(_chunks(tokens, "int32"), _chunks(logits, "float32"), strict=True)
            nested = [(Nested.of_arrow(ids), Nested.of_arrow(logs)) for ids, logs in pairs]
        except (TypeError, ValueError):
            raise UserError(
                f"{place}: '{TOKENS}' and '{LOGITS}' must be lists of lists of numbers (int32 and float32)"
            ) from None
        first, chunks = 0, []
        for ids, logs in nested:
            if not (np.array_equal(ids.positions, logs.positions) and np.array_equal(ids.entries, logs.entries)):
                raise UserError(f"{place}: '{TOKENS}' and '{LOGITS}' differ in shape")
            chunks.append((first, ids, logs))
            first += len(ids)
        return cls(tuple(chunks))

    def row(self, row: int) -> StoredRow:
        first, ids, logs = self.chunks[int(np.searchsorted(self.starts, row, side="right")) - 1]
        counts, values = ids.row(row - first)
        return counts, values, logs.row(row - first)[1]

    def n_positions(self) -> np.ndarray:
        """(N,) label positions of every row."""
        return np.concatenate([np.diff(ids.positions) for _, ids, _ in self.chunks])

    def check(self, n_tokens: int, place: str) -> None:
        """Raise UserError for an id outside a vocabulary of `n_tokens`, or a number that is no log-probability."""
        for first, ids, logs in self.chunks:
            wrong = (ids.values < 0) | (ids.values >= n_tokens) | ~np.isfinite(logs.values) | (logs.values > 1e-3)
            if wrong.any():
                entry = int(wrong.argmax())
                position = int(np.searchsorted(ids.entries, entry, side="right")) - 1
                row = first + int(np.searchsorted(ids.positions, position, side="right")) - 1
                raise UserError(
                    f"{place}, row {row}: token {ids.values[entry]} with log-probability {logs.values[entry]:g}; ids "
                    f"are 0 to {n_tokens - 1}, log-probabilities at most 0"
                )


def _chunks(column: Sequence, dtype: str) -> list["pyarrow.ListArray"]:
    """The Arrow arrays of a column of lists of lists. Raises TypeError or ValueError for what is none."""
    import pyarrow

    if isinstance(column, ArrowColumn):
        kind = column.column.type
        if not (pyarrow.types.is_list(kind) and pyarrow.types.is_list(kind.value_type)):
            raise TypeError(f"a column of {kind}")
        return column.arrays().chunks
    return [pyarrow.array(column, pyarrow.list_(pyarrow.list_(pyarrow.type_for_alias(dtype))))]


def pad_stored(rows: Sequence[StoredRow], n_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as `StoredRows.row` gives them, as ids and log-probabilities (B, T, K) with −inf where no entry is."""
    k = max([1, *(int(counts.max()) for counts, _, _ in rows if len(counts))])
    ids = np.zeros((len(rows), n_positions, k), dtype=np.int64)
    logs = np.full((len(rows), n_positions, k), -np.inf, dtype=np.float32)
    for row, (counts, stored_ids, stored_logs) in enumerate(rows):
        there = np.arange(k) < counts[:, None]
        ids[row, : len(counts)][there] = stored_ids
        logs[row, : len(counts)][there] = stored_logs
    return ids, logs
