"""Losses on rows of the vocabulary: pure functions of tensors.

Shapes: N valid target positions, V vocabulary. Every loss returns (N,) in nats and is computed in float32 at least.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)


def nll_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) negative log-likelihood of labels (N,) under logits (N, V)."""
    return F.cross_entropy(_at_least_float32(logits), labels, reduction="none")


def kl_rows(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(N,) KL(teacher ‖ student) of logits (N, V) each, at temperature T and times T² (Hinton et al., 2015).

    A negative temperature −p compares with the teacher's top-p nucleus instead, at temperature 1 and without a factor.
    Padded vocabularies may differ in size: both sides are renormalised over the shared first entries.
    """
    shared = min(student.shape[-1], teacher.shape[-1])
    student, teacher = _at_least_float32(student[:, :shared]), _at_least_float32(teacher[:, :shared])
    if temperature < 0:
        return _kl_of_logs(F.log_softmax(student, -1), F.log_softmax(nucleus(teacher, -temperature), -1))
    student, teacher = student / temperature, teacher / temperature
    return _kl_of_logs(F.log_softmax(student, -1), F.log_softmax(teacher, -1)) * temperature**2


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(N, V) logits with −inf outside the smallest set of tokens that holds at least top_p of the mass."""
    ordered, places = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)


def _kl_of_logs(student_logs: Tensor, teacher_logs: Tensor) -> Tensor:
    # A term of zero teacher probability is zero, also where a logarithm is −inf on either side.
    teacher = teacher_logs.exp()
    return (teacher * (teacher_logs - student_logs).masked_fill(teacher == 0, 0.0)).sum(-1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
