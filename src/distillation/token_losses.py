"""Losses of single target tokens, from logits: NLL, and divergences from a live or a stored teacher.

A divergence (`config/divergences.py`) compares two tensors of log-probabilities. This file makes them: it applies the
temperature, the teacher's nucleus, and the choice of what tokens that are not stored count for.
Shapes: N target positions, V vocabulary, K stored tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.config.divergences import Compute, forward_kl
from src.models.lazy_logits import at_least_float32

NEGLIGIBLE, LOG_NEGLIGIBLE = 1e-6, -13.815511  # float32 cannot tell this probability from 0 beside 1; its log


def token_nll(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(N,) negative log-likelihood in nats of labels (N,) under logits (N, V).

    label_smoothing: ε of (1 − ε) · NLL + ε · the mean of −log p over the vocabulary (Szegedy et al., 2016).
    """
    return F.cross_entropy(at_least_float32(logits), labels, reduction="none", label_smoothing=label_smoothing)


def token_divergence(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, *, compute: Compute = forward_kl
) -> Tensor:
    """(N,) T² · divergence of the distributions at temperature T, in nats (Hinton et al., 2015).

    student, teacher: logits (N, V). If the vocabularies differ in size (padding), only the shared first tokens count.
    A negative temperature −p compares with the teacher's top-p nucleus instead, at temperature 1.
    """
    shared = min(student.shape[-1], teacher.shape[-1])
    student, teacher = at_least_float32(student[:, :shared]), at_least_float32(teacher[:, :shared])
    if temperature < 0:
        return compute(F.log_softmax(student, -1), F.log_softmax(nucleus(teacher, -temperature), -1))
    student, teacher = student / temperature, teacher / temperature
    return compute(F.log_softmax(student, -1), F.log_softmax(teacher, -1)) * temperature**2


def stored_token_divergence(
    student: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    *,
    temperature: float = 1.0,
    missing_mass: str = "drop",
    compute: Compute = forward_kl,
) -> Tensor:
    """(N,) a divergence as in `token_divergence`, of student logits (N, V) and a teacher whose top tokens are stored.

    ids, logprobs: (N, K) token ids and log-probabilities; −inf marks an absent entry.
    missing_mass: what the teacher's probability of other tokens counts for. "drop": the stored ones are renormalized
    (as in the published suite). "zero": the sum leaves the others out. "bucket": all others are one event.
    A temperature T > 0 other than 1 needs "drop".
    """
    student, logprobs = at_least_float32(student), at_least_float32(logprobs)
    factor = 1.0
    if temperature < 0:
        logprobs = nucleus(logprobs, -temperature)
    elif temperature != 1:
        assert missing_mass == "drop", "a temperature needs the missing probabilities too"
        student, logprobs, factor = student / temperature, logprobs / temperature, temperature**2
    if missing_mass == "drop":
        logprobs = F.log_softmax(logprobs, dim=-1)
    of_student = F.log_softmax(student, dim=-1).gather(-1, ids).masked_fill(torch.isneginf(logprobs), -torch.inf)
    if missing_mass == "bucket":
        of_student = torch.cat([of_student, _log_of_rest(of_student, floor=LOG_NEGLIGIBLE)], dim=-1)
        logprobs = torch.cat([logprobs, _log_of_rest(logprobs, floor=-torch.inf)], dim=-1)
    return compute(of_student, logprobs) * factor


def _log_of_rest(logprobs: Tensor, *, floor: float) -> Tensor:
    """(N, 1) log(1 − Σ exp(logprobs)) of (N, K); `floor`, without gradient, where the rest is only rounding error."""
    total = logprobs.logsumexp(dim=-1, keepdim=True)
    is_negligible = total > -NEGLIGIBLE
    rest = torch.log(-torch.expm1(total.masked_fill(is_negligible, -1.0)))
    return rest.masked_fill(is_negligible, floor)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(N, V) logits, −inf outside the nucleus: the fewest tokens with a mass of at least top_p (Holtzman et al., 2020).

    Works alike on log-probabilities.
    """
    ordered, places = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)
