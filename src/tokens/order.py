"""The order of rows in an epoch and in a batch."""

from collections.abc import Iterator

import numpy as np


def epoch_order(n_rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """All row numbers in uniformly random order, so that every update is a random sample of the split.

    Depends on (seed, epoch) alone: a resumed process gets the same order.
    """
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def least_padding(inputs: np.ndarray, labels: np.ndarray, pass_tokens: int) -> list[np.ndarray]:
    """Split rows, sorted by length, into the parts with the least total cost; returns row numbers.

    inputs, labels: (B,) tokens. A part costs its padded tokens, rows × (longest input + longest labels), plus
    `pass_tokens` (for launching kernels, and for gradients as large as the weights).
    """
    order = np.argsort(inputs + labels, kind="stable")
    inputs, labels = inputs[order], labels[order]
    least, starts = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        # The longest input plus the longest labels of the part from each possible first row to `end`:
        longest = sum(np.maximum.accumulate(each[end - 1 :: -1])[::-1] for each in (inputs[:end], labels[:end]))
        costs = least[:end] + np.arange(end, 0, -1) * longest + pass_tokens
        starts[end] = costs.argmin()
        least[end] = costs[starts[end]]
    parts, end = [], len(order)
    while end:
        parts.append(order[starts[end] : end])
        end = starts[end]
    return parts[::-1]


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Row numbers, longest first: batches have little padding, and memory runs out in the first batch or never."""
    return np.argsort(-lengths, kind="stable")


def chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of `size` rows; the last may be shorter."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
