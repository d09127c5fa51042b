"""Token sequences of unequal length in one flat array."""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """N token sequences: all tokens in one flat int32 array, and the start and length (N,) of each."""

    flat: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> "Ragged":
        arrays = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        return cls.packed(np.concatenate(arrays) if arrays else np.zeros(0, np.int32), lengths_of(arrays))

    @classmethod
    def packed(cls, flat: np.ndarray, lengths: np.ndarray) -> "Ragged":
        """Sequences that follow each other without gaps."""
        starts = np.zeros(len(lengths), dtype=np.int64)
        np.cumsum(lengths[:-1], out=starts[1:])
        return cls(flat, starts, lengths)

    @classmethod
    def concatenate(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """Of parts without gaps."""
        flat = np.concatenate([np.zeros(0, np.int32), *(part.flat for part in parts)])
        return cls.packed(flat, np.concatenate([np.zeros(0, np.int32), *(part.lengths for part in parts)]))

    def without_last(self, chosen: np.ndarray) -> "Ragged":
        """The same without the last token of the sequences that `chosen` (N,) marks; none of them may be empty."""
        return replace(self, lengths=self.lengths - chosen)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.starts[row] : self.starts[row] + self.lengths[row]]


@dataclass(frozen=True)
class Encoded:
    """Tokens of N texts after truncation.

    whole: (N,) lengths before truncation. n_empty: targets that are blank or have only special tokens left.
    special_token: one whose name is in the texts and is read as text.
    """

    tokens: Ragged
    whole: np.ndarray
    n_empty: int = 0
    special_token: str | None = None

    @classmethod
    def concatenate(cls, parts: Sequence["Encoded"]) -> "Encoded":
        whole = np.concatenate([np.zeros(0, np.int32), *(part.whole for part in parts)])
        special_token = next((part.special_token for part in parts if part.special_token is not None), None)
        n_empty = sum(part.n_empty for part in parts)
        return cls(Ragged.concatenate([part.tokens for part in parts]), whole, n_empty, special_token)


def lengths_of(sequences: Sequence[Sized]) -> np.ndarray:
    return np.fromiter(map(len, sequences), dtype=np.int32, count=len(sequences))
