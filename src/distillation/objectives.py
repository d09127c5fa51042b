"""Named terms over the states of student and teacher, weighed by a loss entry of the YAML.

Shapes: B targets of a micro-batch, N valid target positions, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from src.config.constants import IGNORE_INDEX
from src.config.experiments import LossEntry
from src.data.batches import Batch, TopK
from src.distillation.capture import States, attention_kinds, hidden_stacks
from src.distillation.losses import kl_rows, nll_rows, stored_kl_rows
from src.distillation.relations import regrouped, related_positions, relation_kl, relation_rmse

NO_SCALES: Mapping[str, float] = MappingProxyType({})


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


Terms = dict[str, Tensor]
Taught = States | TopK  # of a live teacher, or what is stored of one at the valid target positions, (N, K)
Objective = Callable[[States, Taught | None, Targets, LossEntry, Window], Terms]
OBJECTIVES: dict[str, Objective] = {}  # by the YAML's name: `logits` is weighed by `logits_weight`


def objective(name: str) -> Callable[[Objective], Objective]:
    """Register a function as the objective of a weight: it returns, by term, this micro-batch's share of the means.

    The objective's value is the mean of its terms (each times its scale, where scales are measured).
    """

    def register(compute: Objective) -> Objective:
        OBJECTIVES[name] = compute
        return compute

    return register


@objective("forward")
def nll(student: States, teacher: Taught | None, targets: Targets, entry: LossEntry, window: Window) -> Terms:
    """Negative log-likelihood of the labels, mean over the update's tokens (SPEC §4, forward)."""
    return {"forward": nll_rows(student.logits, targets.labels).sum() / max(1, window.tokens)}


@objective("logits")
def logits_kl(student: States, teacher: Taught | None, targets: Targets, entry: LossEntry, window: Window) -> Terms:
    """KL(teacher ‖ student), mean over a target's tokens, then over the update's targets (SPEC §4, logits)."""
    assert teacher is not None
    if isinstance(teacher, TopK):
        temperature, missing = entry.temperature, entry.missing_mass
        rows = stored_kl_rows(student.logits, teacher.ids, teacher.logs, temperature=temperature, missing_mass=missing)
    else:
        rows = kl_rows(student.logits, teacher.logits, entry.temperature)
    return {"logits": targets.sum_of_means(rows) / window.targets}


@objective("hidden")
def hidden_relations(
    student: States, teacher: Taught | None, targets: Targets, entry: LossEntry, window: Window
) -> Terms:
    """Relations between hidden states, of the encoder and (causal) of the decoder (SPEC §4, hidden)."""
    assert isinstance(teacher, States)
    compare = relation_kl if entry.kl_loss else relation_rmse
    terms = {}
    for stack, ours in student.hidden.items():
        related = related_positions(student.positions[stack], causal=stack == "dec")
        terms[f"hidden_{stack}"] = (
            compare(ours[:, None], teacher.hidden[stack][:, None], related).sum() / window.targets
        )
    return terms


@objective("attention_relation")
def attention_relations(
    student: States, teacher: Taught | None, targets: Targets, entry: LossEntry, window: Window
) -> Terms:
    """Relations among queries, among keys and among values of each attention (SPEC §4, attention_relation).

    The student's heads are regrouped to the teacher's number. Queries of the cross-attention are positions of the
    decoder, its keys and values positions of the encoder.
    """
    assert isinstance(teacher, States)
    compare = relation_kl if entry.kl_loss else relation_rmse
    terms = {}
    for name, ours in student.heads.items():
        theirs = teacher.heads[name]
        stack = "enc" if name.startswith("enc") or name in ("dec_ca_k", "dec_ca_v") else "dec"
        related = related_positions(student.positions[stack], causal=name.startswith("dec_sa"))
        regrouped_ours, regrouped_theirs = (regrouped(each.states, theirs.n_heads) for each in (ours, theirs))
        terms[name] = compare(regrouped_ours, regrouped_theirs, related).sum() / window.targets
    return terms


def term_names(entry: LossEntry, *, is_encoder_decoder: bool) -> tuple[str, ...]:
    """The terms that an entry's loss has for a kind of model: columns of the log."""
    hidden = [f"hidden_{stack}" for stack in hidden_stacks(is_encoder_decoder=is_encoder_decoder)]
    kinds = attention_kinds(is_encoder_decoder=is_encoder_decoder)
    names = {
        "forward": ["forward"],
        "logits": ["logits"],
        "hidden": hidden,
        "attention_relation": [f"{kind}_{part}" for kind in kinds for part in ("q", "k", "v")],
    }
    return tuple(term for weight in entry.weights for term in names[weight])


def distillation_loss(
    student: States,
    teacher: Taught | None,
    batch: Batch,
    entry: LossEntry,
    window: Window,
    scales: Mapping[str, float] = NO_SCALES,
) -> tuple[Tensor, Terms]:
    """The weighed sum of the entry's objectives, and their terms unweighed, unscaled and detached, by name.

    Each is this micro-batch's share of the mean over the whole `window`: the shares of a window add up to the loss of
    one large batch, so that 8 × 1 accumulation gives the gradients of 4 × 2. A term is multiplied by its scale, if it
    has one, before it is weighed.
    """
    targets = Targets.of(batch)
    total: Tensor = torch.zeros((), device=student.logits.device)
    noted: Terms = {}
    for name, weight in entry.weights.items():
        terms = OBJECTIVES[name](student, teacher, targets, entry, window)
        scaled = [value * scales.get(term, 1.0) for term, value in terms.items()]
        total = total + weight * torch.stack(scaled).mean()
        noted |= {term: value.detach() for term, value in terms.items()}
    return total, noted
