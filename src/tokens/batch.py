"""A batch of examples as tensors, and how rows of a split are padded into one.

Shapes: B batch, S source tokens, T target tokens, N labels that are not padding, K stored tokens of a teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from src.config.constants import IGNORE_INDEX
from src.data.soft_targets import StoredRow, pad_stored
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedSplit

Targets = Mapping[int, np.ndarray]  # tokens by the row's number in its split
NO_TARGETS: Targets = MappingProxyType({})


@dataclass(frozen=True)
class TopK:
    """A teacher's stored tokens: ids and raw log-probabilities, (B, T, K) in a batch; −inf marks an absent entry."""

    ids: Tensor
    logs: Tensor

    def to(self, device: torch.device) -> "TopK":
        return TopK(_moved(self.ids, device), _moved(self.logs, device))


@dataclass(frozen=True)
class Batch:
    """A padded batch.

    input_ids, attention_mask: (B, S). labels: (B, T) with -100 as padding; None for rows without targets. rows: row
    numbers in the split, with which an error names examples. teacher: a teacher's stored tokens (B, T, K).
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    rows: tuple[int, ...]
    teacher: TopK | None = None

    @property
    def known_labels(self) -> Tensor:
        """(B, T) the labels of a batch that has them."""
        assert self.labels is not None, "a batch without targets has no labels"
        return self.labels

    @cached_property
    def valid(self) -> Tensor:
        """(N,) the indices in B · T of the labels that are not padding, row by row.

        Found once, on the CPU: on an accelerator each search would wait for the device.
        """
        return (self.known_labels.flatten() != IGNORE_INDEX).nonzero()[:, 0]

    @cached_property
    def lengths(self) -> "BatchLengths":
        """The lengths of the rows, found on the CPU like `valid`."""
        known = self.known_labels != IGNORE_INDEX
        last = (known * torch.arange(1, known.shape[1] + 1, device=known.device)).amax(dim=1)
        inputs, labels, n_known = torch.stack([self.attention_mask.sum(dim=1), last, known.sum(dim=1)]).cpu().numpy()
        is_left_padded = not self.attention_mask[int(inputs.argmin()), 0]  # of the shortest row
        return BatchLengths(inputs, labels, n_known, is_left_padded=is_left_padded)

    def part(self, rows: np.ndarray) -> "Batch":
        """Some rows, without the padding that all of them have and without the teacher's stored tokens."""
        labels, lengths = self.known_labels, self.lengths
        chosen = torch.from_numpy(rows).to(labels.device)
        n_inputs, n_labels = int(lengths.inputs[rows].max()), int(lengths.labels[rows].max())
        first = self.input_ids.shape[1] - n_inputs if lengths.is_left_padded else 0
        return Batch(
            self.input_ids[chosen, first : first + n_inputs],
            self.attention_mask[chosen, first : first + n_inputs],
            labels[chosen, :n_labels],
            tuple(self.rows[row] for row in rows),
        )

    def to(self, device: torch.device) -> "Batch":
        moved = replace(
            self,
            input_ids=_moved(self.input_ids, device),
            attention_mask=_moved(self.attention_mask, device),
            labels=None if self.labels is None else _moved(self.labels, device),
            teacher=None if self.teacher is None else self.teacher.to(device),
        )
        if self.labels is not None:
            moved.__dict__.update(valid=_moved(self.valid, device), lengths=self.lengths)
        return moved


@dataclass(frozen=True)
class BatchLengths:
    """(B,) each: tokens of the input, labels up to the last that is not padding, labels that are not padding."""

    inputs: np.ndarray
    labels: np.ndarray
    n_known: np.ndarray
    is_left_padded: bool


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; copied to a GPU from pinned memory while other work goes on."""
    source = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return source.to(device, non_blocking=device.type != "cpu")  # or the CPU would read before the copy is there


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


def with_targets(batch: Batch, targets: Targets) -> Batch:
    """The batch with labels of these targets instead of its own, where there are any for its rows."""
    if not any(row in targets for row in batch.rows):
        return batch
    chosen = [targets[row] if row in targets else _known(batch, place) for place, row in enumerate(batch.rows)]
    return replace(batch, labels=pad_sequences(chosen, IGNORE_INDEX, on_the_left=False)[0])


def _known(batch: Batch, place: int) -> np.ndarray:
    labels = batch.known_labels[place]
    return labels[labels != IGNORE_INDEX].numpy()


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
