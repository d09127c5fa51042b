"""A batch of examples as tensors.

Shapes: B batch, S source tokens, T target tokens, N labels that are not padding, K stored tokens of a teacher.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from src.config.constants import IGNORE_INDEX


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
    return source.to(device, non_blocking=True)
