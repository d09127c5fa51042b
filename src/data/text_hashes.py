"""Hashes of texts, by which equal ones are found: 8 bytes for each, however long the texts are.

Of ten million different texts, two have one hash with a probability of 3 in a million.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from src.data.references import Target


def text_hashes(texts: Sequence[Target]) -> np.ndarray:
    """A hash (N,) of each text; of several references, of the first."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, _encoded(texts)), dtype=np.uint64, count=len(texts))


def _encoded(texts: Iterable[Target]) -> Iterable[bytes]:
    return ((text[0] if isinstance(text, list) else text).encode("utf-8", "surrogatepass") for text in texts)


def number_by_appearance(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the different values in the order in which they appear: numbers (N,), and the first row of each value."""
    _, first_rows, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first_rows)
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return numbers[inverse], first_rows[order]
