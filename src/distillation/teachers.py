"""Teachers: a live model, or log-probabilities that are stored with the data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from src.config.experiments.schema import LossEntry
from src.distillation.capture import LayerIndices, States, capture_states
from src.tokens.batch import Batch, TopK


class Teacher(Protocol):
    """Gives what a loss entry compares the student with: a live teacher's states, or stored log-probabilities (N, K).

    model: the live teacher; None if only its log-probabilities are stored.
    """

    @property
    def model(self) -> PreTrainedModel | None: ...

    def __call__(self, batch: Batch, entry: LossEntry) -> States | TopK: ...


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher in memory: one forward pass per batch, without gradient; with dropout if the entry says so.

    computation: computes with the model; that of `shard` if processes share its weights.
    """

    model: PreTrainedModel
    layers: LayerIndices
    computation: Callable[[Callable[[], States]], States] = lambda compute: compute()

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch, entry: LossEntry) -> States:
        """States on the batch's device, wherever the teacher is."""
        self.model.train(entry.dropout)
        on_device = batch.to(self.model.device)
        states = self.computation(lambda: capture_states(self.model, on_device, entry, self.layers))
        return states.on(batch.input_ids.device)


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher whose log-probabilities of a few tokens are stored with the data; no model is in memory."""

    model: None = None

    def __call__(self, batch: Batch, entry: LossEntry) -> TopK:
        assert batch.teacher is not None and batch.labels is not None, "a split prepared with log-probabilities"
        ids, logs = batch.teacher.ids.flatten(0, 1), batch.teacher.logs.flatten(0, 1)
        return TopK(ids[batch.valid], logs[batch.valid])
