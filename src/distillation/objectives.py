"""The training loss: objectives that compare student and teacher, weighted by a loss entry of the YAML.

The objectives of KD4Gen (Calderon et al., ACL 2023); docs/objectives.md lists their keys.
Shapes: B targets of a micro-batch, N valid target positions, V vocabulary, K stored tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from src.config.constants import IGNORE_INDEX
from src.config.divergences import DIVERGENCES, Compute, forward_kl
from src.config.experiments.schema import LossEntry
from src.distillation.capture import States, attention_kinds, hidden_stacks
from src.distillation.relations import regrouped, related_positions, relation_kl, relation_rmse
from src.distillation.token_losses import stored_token_divergence, token_divergence, token_nll
from src.distillation.vocabulary_loss import TokenLoss, weighted_sum
from src.models.forward import target_labels
from src.tokens.batch import Batch, TopK

NO_SCALES: Mapping[str, float] = MappingProxyType({})
FORWARD = "forward"
Terms = dict[str, Tensor]  # the parts of a loss, by the names of their columns in the log
Objective = Callable[[States, States, LossEntry], Terms]
OBJECTIVES: dict[str, Objective] = {}  # over states, by the YAML's name: `hidden_weight` weighs "hidden"


@dataclass(frozen=True)
class Window:
    """What one optimizer update covers, over all micro-batches and processes: the losses' denominators."""

    targets: int
    tokens: int


def objective(name: str) -> Callable[[Objective], Objective]:
    """Register a function of (student, teacher, entry) as the objective that `NAME_weight` weighs.

    It returns, by term, one value per target, (B,). A term is the mean over the update's targets, and the objective the
    mean of its terms.
    """

    def register(compute: Objective) -> Objective:
        OBJECTIVES[name] = compute
        return compute

    return register


@objective("hidden")
def hidden_relations(student: States, teacher: States, entry: LossEntry) -> Terms:
    """Distances between relations of hidden states, in the encoder and (causal) in the decoder.

    Relations as in MiniLMv2 (Wang et al., 2021), applied to hidden states: R(h) = h hᵀ / √d.
    """
    compare = relation_kl if entry.kl_loss else relation_rmse
    terms = {}
    for stack, ours in student.hidden.items():
        related = related_positions(student.positions[stack], causal=stack == "dec")
        terms[f"hidden_{stack}"] = compare(ours[:, None], teacher.hidden[stack][:, None], related)
    return terms


@objective("attention_relation")
def attention_relations(student: States, teacher: States, entry: LossEntry) -> Terms:
    """Distances between relations of queries, keys and values of each attention (MiniLMv2, Wang et al., 2021).

    The student's heads are regrouped to the teacher's number. In cross-attention, queries are positions of the decoder,
    and keys and values positions of the encoder.
    """
    compare = relation_kl if entry.kl_loss else relation_rmse
    terms = {}
    for name, ours in student.heads.items():
        theirs = teacher.heads[name]
        stack = "enc" if name.startswith("enc") or name in ("dec_ca_k", "dec_ca_v") else "dec"
        related = related_positions(student.positions[stack], causal=name.startswith("dec_sa"))
        student_heads, teacher_heads = (regrouped(each.states, theirs.n_heads) for each in (ours, theirs))
        terms[name] = compare(student_heads, teacher_heads, related)
    return terms


def term_names(entry: LossEntry, *, is_encoder_decoder: bool) -> tuple[str, ...]:
    """The terms that an entry's loss has for a kind of model: columns of the log."""
    hidden = [f"hidden_{stack}" for stack in hidden_stacks(is_encoder_decoder=is_encoder_decoder)]
    kinds = attention_kinds(is_encoder_decoder=is_encoder_decoder)
    names = {"hidden": hidden, "attention_relation": [f"{kind}_{part}" for kind in kinds for part in ("q", "k", "v")]}
    return tuple(term for weight in entry.weights for term in names.get(weight, [weight]))


def distillation_loss(
    student: States,
    teacher: States | TopK | None,
    batch: Batch,
    entry: LossEntry,
    window: Window,
    scales: Mapping[str, float] = NO_SCALES,
    *,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Terms]:
    """The weighted sum of the entry's objectives, and by name their terms: unweighted, unscaled, detached.

    teacher: states of a live teacher, stored log-probabilities (N, K), or None if the entry needs no teacher.
    scales: factors by term, applied before the weights. label_smoothing: of `forward`.
    Each value is this micro-batch's share of the mean over the whole `window`. The shares add up to the loss of one
    large batch, so that 8 × 1 accumulation gives the gradients of 4 × 2.
    """
    terms: Terms = {}
    total = torch.zeros((), device=student.logits.rows.device)
    losses = token_losses(batch, entry, window, torch.promote_types(student.logits.rows.dtype, torch.float32))
    if FORWARD in losses and label_smoothing:
        losses[FORWARD] = smoothed(losses[FORWARD], label_smoothing)
    if losses:
        teacher_logits = teacher.logits if isinstance(teacher, States) else teacher
        factors = {name: entry.weights[name] * scales.get(name, 1.0) for name in losses}
        weighted = [replace(loss, factor=factors[name]) for name, loss in losses.items()]
        total, values = weighted_sum(student.logits, teacher_logits, target_labels(batch), weighted)
        terms = dict(zip(losses, values, strict=True))
    for name, weight in entry.weights.items():
        if name not in OBJECTIVES:
            continue
        assert isinstance(teacher, States), "a stored teacher has neither hidden states nor attention"
        distances = OBJECTIVES[name](student, teacher, entry)
        shares = {term: values.sum() / window.targets for term, values in distances.items()}
        total = total + weight * torch.stack([share * scales.get(term, 1.0) for term, share in shares.items()]).mean()
        terms |= {term: share.detach() for term, share in shares.items()}
    return total, terms


def token_losses(batch: Batch, entry: LossEntry, window: Window, dtype: torch.dtype) -> dict[str, TokenLoss]:
    """The entry's objectives over the vocabulary, by name; `weighted_sum` computes them in one pass.

    forward: −log p(label), mean over the update's tokens. Divergences: mean over a target's tokens, then over the
    update's targets. dtype: of the weights that take these means.
    """
    losses = {}
    for name in entry.weights:
        if name == FORWARD:
            weights = torch.ones_like(batch.valid, dtype=dtype) / max(1, window.tokens)
            losses[name] = TokenLoss(lambda student, _, labels: token_nll(student, labels), weights, fused="nll")
        elif name in DIVERGENCES:
            weights = 1 / (target_lengths(batch).to(dtype) * window.targets)
            losses[name] = _divergence(DIVERGENCES[name].compute, entry, weights)
    return losses


def smoothed(nll: TokenLoss, label_smoothing: float) -> TokenLoss:
    """The loss `forward` with a share of each label's probability spread evenly over the vocabulary."""
    return replace(
        nll,
        compute=lambda student, _, labels: token_nll(student, labels, label_smoothing),
        label_smoothing=label_smoothing,
    )


def _divergence(compute: Compute, entry: LossEntry, weights: Tensor) -> TokenLoss:
    """A divergence of teacher and student at the entry's temperature, for a live or a stored teacher."""
    temperature, missing = entry.temperature, entry.missing_mass

    def of_tokens(student: Tensor, teacher: Tensor | TopK | None, _labels: Tensor) -> Tensor:
        assert teacher is not None
        if isinstance(teacher, Tensor):
            return token_divergence(student, teacher, temperature, compute=compute)
        return stored_token_divergence(
            student, teacher.ids, teacher.logs, temperature=temperature, missing_mass=missing, compute=compute
        )

    fused = "kl" if compute is forward_kl and temperature > 0 else None
    return TokenLoss(of_tokens, weights, fused=fused, temperature=temperature)


def target_lengths(batch: Batch) -> Tensor:
    """(N,) for each valid target position, the number of tokens of its target."""
    lengths = (batch.known_labels != IGNORE_INDEX).sum(dim=1)
    return lengths[batch.valid // max(1, batch.known_labels.shape[1])]
