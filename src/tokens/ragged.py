"""Token sequences of unequal length in one flat array."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """N token sequences: all tokens in one flat int32 array, and N + 1 offsets."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> "Ragged":
        arrays = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, np.int32), offsets)

    @classmethod
    def concatenate(cls, parts: Sequence["Ragged"]) -> "Ragged":
        flat = np.concatenate([part.flat for part in parts]) if parts else np.zeros(0, np.int32)
        lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int64)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def without_last(self, chosen: np.ndarray) -> "Ragged":
        """A copy without the last token of the sequences that `chosen` (N,) marks; none of them may be empty."""
        is_kept = np.ones(len(self.flat), dtype=bool)
        is_kept[self.offsets[1:][chosen] - 1] = False
        return Ragged(self.flat[is_kept], np.concatenate([[0], np.cumsum(self.lengths - chosen)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Encoded:
    """Tokens of N texts after truncation.

    whole: (N,) lengths before truncation. n_empty: targets that are blank or have only special tokens left.
    """

    tokens: Ragged
    whole: np.ndarray
    n_empty: int = 0

    @classmethod
    def concatenate(cls, parts: Sequence["Encoded"]) -> "Encoded":
        whole = np.concatenate([np.zeros(0, np.int32), *(part.whole for part in parts)])
        return cls(Ragged.concatenate([part.tokens for part in parts]), whole, sum(part.n_empty for part in parts))


def lengths_of(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(map(len, sequences), dtype=np.int32, count=len(sequences))
