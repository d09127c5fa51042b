"""The log-probabilities a divergence compares: temperature, nucleus, missing mass."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.config.divergences import Compute, forward_kl
from src.models.lazy_logits import at_least_float32

NEGLIGIBLE, NEGLIGIBLE_LOG = 1e-6, -13.815511  # a probability that float32 cannot tell from 0 beside 1, and its log


def nll_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) negative log-likelihood of labels (N,) under logits (N, V)."""
    return F.cross_entropy(at_least_float32(logits), labels, reduction="none")


def divergence_rows(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, *, compute: Compute = forward_kl
) -> Tensor:
    """(N,) a divergence of logits (N, V) each, at temperature T and times T² (Hinton et al., 2015).

    A negative temperature −p compares with the teacher's top-p nucleus instead, at temperature 1 and without a factor.
    Padded vocabularies may differ in size: both sides are renormalized over the shared first entries.
    """
    shared = min(student.shape[-1], teacher.shape[-1])
    student, teacher = at_least_float32(student[:, :shared]), at_least_float32(teacher[:, :shared])
    if temperature < 0:
        return compute(F.log_softmax(student, -1), F.log_softmax(nucleus(teacher, -temperature), -1))
    student, teacher = student / temperature, teacher / temperature
    return compute(F.log_softmax(student, -1), F.log_softmax(teacher, -1)) * temperature**2


def stored_divergence_rows(
    student: Tensor,
    ids: Tensor,
    logs: Tensor,
    *,
    temperature: float = 1.0,
    missing_mass: str = "drop",
    compute: Compute = forward_kl,
) -> Tensor:
    """(N,) a divergence of student logits (N, V) and a teacher of whom few tokens are stored.

    ids, logs: (N, K) token ids and raw log-probabilities; −inf marks an entry that is none. What the teacher gave to
    other tokens is renormalized away (`drop`, the published suite's way), left out of the sum (`zero`), or compared as
    one event that stands for all other tokens (`bucket`). No tensor of the teacher has the vocabulary's size.
    `temperature` as in `divergence_rows`; other than 1 it has a meaning for `drop` alone.
    """
    student, logs = at_least_float32(student), at_least_float32(logs)
    factor = 1.0
    if temperature < 0:
        logs = nucleus(logs, -temperature)
    elif temperature != 1:
        assert missing_mass == "drop", "tempered probabilities need the missing ones too"
        student, logs, factor = student / temperature, logs / temperature, temperature**2
    if missing_mass == "drop":
        logs = F.log_softmax(logs, dim=-1)
    of_student = F.log_softmax(student, dim=-1).gather(-1, ids).masked_fill(torch.isneginf(logs), -torch.inf)
    if missing_mass == "bucket":
        of_student = torch.cat([of_student, _log_of_rest(of_student, floor=NEGLIGIBLE_LOG)], dim=-1)
        logs = torch.cat([logs, _log_of_rest(logs, floor=-torch.inf)], dim=-1)
    return compute(of_student, logs) * factor


def _log_of_rest(logs: Tensor, *, floor: float) -> Tensor:
    """(N, 1) log(1 − Σ exp(logs)) of logs (N, K); `floor`, without gradient, where only rounding errors are left."""
    total = logs.logsumexp(dim=-1, keepdim=True)
    is_negligible = total > -NEGLIGIBLE
    rest = torch.log(-torch.expm1(total.masked_fill(is_negligible, -1.0)))
    return rest.masked_fill(is_negligible, floor)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(N, V) logits with −inf outside the smallest set of tokens that holds at least top_p of the mass."""
    ordered, places = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)
