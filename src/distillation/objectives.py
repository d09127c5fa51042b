"""Named terms over the states of student and teacher, weighed by a loss entry of the YAML.

Shapes: B targets of a micro-batch, N valid target positions, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.config.constants import IGNORE_INDEX
from src.config.errors import UserError
from src.config.experiments import LossEntry
from src.data.batches import Batch
from src.distillation.losses import kl_rows, nll_rows


@dataclass(frozen=True)
class States:
    """What a forward pass leaves for the objectives. logits: (N, V) at the valid target positions."""

    logits: Tensor


@dataclass(frozen=True)
class Targets:
    """Labels (N,), the target each position belongs to (N,), and each target's number of tokens (B,)."""

    labels: Tensor
    target_of_position: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Targets":
        assert batch.labels is not None, "only rows with targets are learned from"
        valid = batch.labels != IGNORE_INDEX
        return cls(batch.labels[valid], valid.nonzero()[:, 0], valid.sum(dim=1))

    def sum_of_means(self, values: Tensor) -> Tensor:
        """The sum over targets of the mean of values (N,) over each target's positions; an empty target adds zero."""
        return (values / self.lengths[self.target_of_position]).sum()


@dataclass(frozen=True)
class Window:
    """What one optimiser update covers, over all micro-batches and processes: the losses' denominators."""

    targets: int
    tokens: int


Objective = Callable[[States, States | None, Targets, LossEntry, Window], Tensor]
OBJECTIVES: dict[str, Objective] = {}  # by the YAML's term: `logits` is weighed by `logits_weight`


def objective(term: str) -> Callable[[Objective], Objective]:
    """Make a function the objective of a term: it returns this micro-batch's share of the update's mean."""

    def register(compute: Objective) -> Objective:
        OBJECTIVES[term] = compute
        return compute

    return register


@objective("forward")
def nll(student: States, teacher: States | None, targets: Targets, entry: LossEntry, window: Window) -> Tensor:
    """Negative log-likelihood of the labels, mean over the update's tokens (SPEC §4, forward)."""
    return nll_rows(student.logits, targets.labels).sum() / max(1, window.tokens)


@objective("logits")
def logits_kl(student: States, teacher: States | None, targets: Targets, entry: LossEntry, window: Window) -> Tensor:
    """KL(teacher ‖ student), mean over a target's tokens, then over the update's targets (SPEC §4, logits)."""
    assert teacher is not None
    return targets.sum_of_means(kl_rows(student.logits, teacher.logits, entry.temperature)) / window.targets


def check_supported(entry: LossEntry) -> None:
    """Refuse, before any model is loaded, what a loss entry asks for and this version cannot compute."""
    asked = [f"{term}_weight" for term in entry.weights if term not in OBJECTIVES]
    asked += [key for key in ("loss_scale", "dropout", "generate_labels_weight") if getattr(entry, key)]
    if asked:
        raise UserError(
            f"loss entry '{entry.name}': {', '.join(asked)} cannot be computed by this version; "
            "the experiments 'finetuning' and 'logits_kd' can, at any temperature"
        )


def distillation_loss(
    student: States, teacher: States | None, batch: Batch, entry: LossEntry, window: Window
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighed sum of the entry's terms, and the terms unweighed and detached, by name.

    Each is this micro-batch's share of the mean over the whole `window`: the shares of a window add up to the loss of
    one large batch, so that 8 × 1 accumulation gives the gradients of 4 × 2.
    """
    targets = Targets.of(batch)
    total: Tensor = torch.zeros((), device=student.logits.device)
    terms = {}
    for term, weight in entry.weights.items():
        value = OBJECTIVES[term](student, teacher, targets, entry, window)
        total = total + weight * value
        terms[term] = value.detach()
    return total, terms
