"""Where a teacher's states come from: a live model; later, stored log-probabilities."""

from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from src.data.batches import Batch
from src.distillation.objectives import States
from src.models.forward import target_logits


class Teacher(Protocol):
    """Anything that can say what the teacher's states are at the valid target positions of a batch."""

    def __call__(self, batch: Batch) -> States: ...


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher in memory: one forward pass per batch, without gradient, dropout off."""

    model: PreTrainedModel

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> States:
        return States(target_logits(self.model, batch))
