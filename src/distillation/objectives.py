"""Named terms over the states of student and teacher, weighed by a loss entry of the YAML.

Shapes: B targets of a micro-batch, N valid target positions, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from src.config.constants import IGNORE_INDEX
from src.config.divergences import DIVERGENCES, Divergence, forward_kl
from src.config.experiments.schema import LossEntry
from src.distillation.capture import States, attention_kinds, hidden_stacks
from src.distillation.relations import regrouped, related_positions, relation_kl, relation_rmse
from src.distillation.support import divergence_rows, nll_rows, stored_divergence_rows
from src.distillation.vocabulary_loss import RowTerm, weighted_sum
from src.models.forward import target_labels
from src.tokens.batch import Batch, TopK

NO_SCALES: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Targets:
    """Labels (N,), the target each position belongs to (N,), and each target's number of tokens (B,).

    dtype: the format that means are taken in.
    """

    labels: Tensor
    target_of_position: Tensor
    lengths: Tensor
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, batch: Batch, dtype: torch.dtype = torch.float32) -> "Targets":
        target_of_position = batch.valid // max(1, batch.known_labels.shape[1])
        return cls(target_labels(batch), target_of_position, (batch.known_labels != IGNORE_INDEX).sum(dim=1), dtype)


@dataclass(frozen=True)
class Window:
    """What one optimizer update covers, over all micro-batches and processes: the losses' denominators."""

    targets: int
    tokens: int


Terms = dict[str, Tensor]
TeacherOutput = States | TopK  # of a live teacher, or what is stored of one at the valid target positions, (N, K)
Objective = Callable[[States, TeacherOutput | None, Targets, LossEntry, Window], Terms]
FORWARD = "forward"
OBJECTIVES: dict[str, Objective] = {}  # by the YAML's name: `hidden` is weighed by `hidden_weight`


def objective(name: str) -> Callable[[Objective], Objective]:
    """Register a function as the objective of a weight: it returns, by term, this micro-batch's share of the means.

    The objective's value is the mean of its terms (each times its scale, where scales are measured).
    """

    def register(compute: Objective) -> Objective:
        OBJECTIVES[name] = compute
        return compute

    return register


def row_term(name: str, targets: Targets, entry: LossEntry, window: Window) -> RowTerm | None:
    """The objective of a weight that is a sum over positions of a loss of their rows of the vocabulary; None of others.

    All of these share one pass over the vocabulary.
    """
    if name == FORWARD:
        return nll(targets, window)
    return divergence(DIVERGENCES[name], targets, entry, window) if name in DIVERGENCES else None


def nll(targets: Targets, window: Window) -> RowTerm:
    """Negative log-likelihood of the labels, mean over the update's tokens."""
    per_row = torch.ones_like(targets.labels, dtype=targets.dtype) / max(1, window.tokens)
    return RowTerm(lambda student, _, labels: nll_rows(student, labels), per_row, fused="nll")


def divergence(chosen: Divergence, targets: Targets, entry: LossEntry, window: Window) -> RowTerm:
    """A divergence of teacher and student, mean over a target's tokens, then over the update's targets."""
    temperature, compute = entry.temperature, chosen.compute

    def rows(student: Tensor, teacher: Tensor | TopK | None, _labels: Tensor) -> Tensor:
        assert teacher is not None
        if isinstance(teacher, Tensor):
            return divergence_rows(student, teacher, temperature, compute=compute)
        missing = entry.missing_mass
        return stored_divergence_rows(
            student, teacher.ids, teacher.logs, temperature=temperature, missing_mass=missing, compute=compute
        )

    per_row = 1 / (targets.lengths[targets.target_of_position].to(targets.dtype) * window.targets)
    fused = "kl" if compute is forward_kl and temperature > 0 else None
    return RowTerm(rows, per_row, fused=fused, temperature=temperature)


@objective("hidden")
def hidden_relations(
    student: States, teacher: TeacherOutput | None, targets: Targets, entry: LossEntry, window: Window
) -> Terms:
    """Relations between hidden states, of the encoder and (causal) of the decoder."""
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
    student: States, teacher: TeacherOutput | None, targets: Targets, entry: LossEntry, window: Window
) -> Terms:
    """Relations among queries, among keys and among values of each attention.

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
    names = {"hidden": hidden, "attention_relation": [f"{kind}_{part}" for kind in kinds for part in ("q", "k", "v")]}
    return tuple(term for weight in entry.weights for term in names.get(weight, [weight]))


def distillation_loss(
    student: States,
    teacher: TeacherOutput | None,
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
    exact = torch.promote_types(student.scores.rows.dtype, torch.float32)
    targets = Targets.of(batch, exact)
    total, noted = _over_vocabulary(student, teacher, targets, entry, window, scales)
    for name, weight in entry.weights.items():
        if name not in OBJECTIVES:
            continue
        terms = OBJECTIVES[name](student, teacher, targets, entry, window)
        scaled = [value * scales.get(term, 1.0) for term, value in terms.items()]
        total = total + weight * torch.stack(scaled).mean()
        noted |= {term: value.detach() for term, value in terms.items()}
    return total, noted


def _over_vocabulary(
    student: States,
    teacher: TeacherOutput | None,
    targets: Targets,
    entry: LossEntry,
    window: Window,
    scales: Mapping[str, float],
) -> tuple[Tensor, Terms]:
    """What the entry's row objectives add to the loss, and their terms, whose names are the objectives'."""
    terms = {
        name: replace(term, factor=weight * scales.get(name, 1.0))
        for name, weight in entry.weights.items()
        if (term := row_term(name, targets, entry, window)) is not None
    }
    if not terms:
        return torch.zeros((), device=targets.labels.device), {}
    taught = teacher.scores if isinstance(teacher, States) else teacher
    total, values = weighted_sum(student.scores, taught, targets.labels, tuple(terms.values()))
    return total, dict(zip(terms, values, strict=True))
