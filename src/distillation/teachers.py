"""Where a teacher's states come from: a live model; later, stored log-probabilities."""

from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from src.config.experiments import LossEntry
from src.data.batches import Batch
from src.distillation.capture import Layers, States, run


class Teacher(Protocol):
    """Anything that can say what the teacher's states are for a batch, as far as a loss entry asks for them."""

    def __call__(self, batch: Batch, entry: LossEntry) -> States: ...


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher in memory: one forward pass per batch, without gradient; with dropout if the entry wants noise."""

    model: PreTrainedModel
    layers: Layers

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch, entry: LossEntry) -> States:
        self.model.train(entry.dropout)
        return run(self.model, batch, entry, self.layers)
