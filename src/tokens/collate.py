"""Pad rows of a tokenized split into a batch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from src.config.constants import IGNORE_INDEX
from src.data.soft_targets import StoredRow, pad_stored
from src.tokens.batch import Batch, TopK
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedSplit


def collate(preprocessor: Preprocessor, split: TokenizedSplit, rows: Sequence[int] | np.ndarray) -> Batch:
    """The batch of these rows, padded to the longest. Masks come from lengths, as the pad token may equal EOS."""
    inputs = [split.inputs[split.input_of_row[row]] for row in rows]
    pad = preprocessor.tokenizer.pad_token_id
    input_ids, mask = pad_sequences(inputs, pad, on_the_left=not preprocessor.is_encoder_decoder)
    batch = Batch(input_ids, mask, None, tuple(int(row) for row in rows))
    if split.labels is None:
        return batch
    labels, _ = pad_sequences([split.labels[row] for row in rows], IGNORE_INDEX, on_the_left=False)
    if split.teacher is None:
        return replace(batch, labels=labels)
    stored = [_as_cut(split.teacher.row(int(row)), len(split.labels[row])) for row in rows]
    ids, logs = pad_stored(stored, labels.shape[1])
    teacher = TopK(torch.from_numpy(ids), torch.from_numpy(logs))
    is_unknown = torch.isneginf(teacher.logs).all(dim=-1)
    return replace(batch, labels=labels.masked_fill(is_unknown, IGNORE_INDEX), teacher=teacher)


def _as_cut(stored: StoredRow, n_labels: int) -> StoredRow:
    """The stored tokens of a truncated target's labels.

    At its last label, EOS, they are the teacher's for the token that was cut there, as a live teacher's would be.
    """
    counts, ids, logs = stored
    n_kept = int(counts[:n_labels].sum())
    return counts[:n_labels], ids[:n_kept], logs[:n_kept]


def pad_sequences(sequences: Sequence[np.ndarray], value: int, *, on_the_left: bool) -> tuple[Tensor, Tensor]:
    """Sequences as a (B, L) int64 tensor padded with `value`, and the (B, L) mask: 1 for a token, 0 for padding."""
    longest = max(len(sequence) for sequence in sequences)
    padded = np.full((len(sequences), longest), value, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if on_the_left else slice(0, len(sequence))
        padded[row, place] = sequence
        mask[row, place] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)
