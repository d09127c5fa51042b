"""Losses on rows of the vocabulary: functions of tensors.

Shapes: N valid target positions, V vocabulary, K stored tokens. Every loss returns (N,) in nats and is computed in
float32 at least.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.models.scores import at_least_float32

READS_ARE_FREE = ("cpu",)  # devices whose results the host need not wait for
NEGLIGIBLE, NEGLIGIBLE_LOG = 1e-6, -13.815511  # a probability that float32 cannot tell from 0 beside 1, and its log


def nll_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) negative log-likelihood of labels (N,) under logits (N, V)."""
    return F.cross_entropy(at_least_float32(logits), labels, reduction="none")


def kl_rows(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """(N,) KL(teacher ‖ student) of logits (N, V) each, at temperature T and times T² (Hinton et al., 2015).

    A negative temperature −p compares with the teacher's top-p nucleus instead, at temperature 1 and without a factor.
    Padded vocabularies may differ in size: both sides are renormalised over the shared first entries.
    """
    shared = min(student.shape[-1], teacher.shape[-1])
    student, teacher = at_least_float32(student[:, :shared]), at_least_float32(teacher[:, :shared])
    if temperature < 0:
        return _kl_of_logs(F.log_softmax(student, -1), F.log_softmax(nucleus(teacher, -temperature), -1))
    student, teacher = student / temperature, teacher / temperature
    return _kl_of_logs(F.log_softmax(student, -1), F.log_softmax(teacher, -1)) * temperature**2


def stored_kl_rows(
    student: Tensor, ids: Tensor, logs: Tensor, *, temperature: float = 1.0, missing_mass: str = "drop"
) -> Tensor:
    """(N,) KL(teacher ‖ student) of student logits (N, V) and a teacher of whom few tokens are stored.

    ids, logs: (N, K) token ids and raw log-probabilities; −inf marks an entry that is none. What the teacher gave to
    other tokens is renormalised away (`drop`, the published suite's way), left out of the sum (`zero`), or compared as
    one event that stands for all other tokens (`bucket`). No tensor of the teacher has the vocabulary's size.
    `temperature` as in `kl_rows`; other than 1 it has a meaning for `drop` alone.
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
    of_student = F.log_softmax(student, dim=-1).gather(-1, ids)
    if missing_mass == "bucket":
        stored_only = of_student.masked_fill(torch.isneginf(logs), -torch.inf)
        of_student = torch.cat([of_student, _log_of_rest(stored_only, floor=NEGLIGIBLE_LOG)], dim=-1)
        logs = torch.cat([logs, _log_of_rest(logs, floor=-torch.inf)], dim=-1)
    return _kl_of_logs(of_student, logs) * factor


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


def _kl_of_logs(student_logs: Tensor, teacher_logs: Tensor) -> Tensor:
    # A term of zero teacher probability is zero, also where a logarithm is −inf on either side.
    teacher = teacher_logs.exp()
    return (teacher * (teacher_logs - student_logs).masked_fill(teacher == 0, 0.0)).sum(-1)


def nll_and_kl_(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    weights: Mapping[str, Tensor],
    temperature: float = 1.0,
    *,
    with_gradient: bool = True,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """What `nll_rows` and `kl_rows` give, and the gradient of their weighed sum, in one pass over the vocabulary.

    student, teacher: logits (N, V), OVERWRITTEN. weights: (N,) by "nll" and "kl", whichever are wanted; the gradient
    (N, V) is that of Σ weights · losses to the student's logits: (softmax − one-hot) · w for NLL, (softmax(s / T) −
    softmax(t / T)) · T · w for KL at temperature T > 0.
    """
    losses: dict[str, Tensor] = {}
    gradient: Tensor | None = None
    shares_pass = temperature == 1 and "kl" in weights
    if "nll" in weights:
        of_labels = student.gather(-1, labels[:, None])[:, 0]
        if not shares_pass:
            probabilities, log_sum = softmax_and_log_sum(student)
            losses["nll"] = log_sum - of_labels
            gradient = probabilities.mul_(weights["nll"][:, None])
    if "kl" in weights:
        assert teacher is not None
        if temperature != 1:
            student, teacher = student.div_(temperature), teacher.div_(temperature)
        ours, log_sum = softmax_and_log_sum(student)
        theirs, their_log_sum = softmax_and_log_sum(teacher)
        cross = _cross(theirs, teacher.sub_(student))
        losses["kl"] = (cross - their_log_sum + log_sum) * temperature**2
        if "nll" in weights and shares_pass:
            losses["nll"] = log_sum - of_labels
        if with_gradient:
            of_kl = weights["kl"] * temperature
            both = of_kl + weights["nll"] if "nll" in weights and shares_pass else of_kl
            part = ours.mul_(both[:, None]).sub_(theirs.mul_(of_kl[:, None]))
            gradient = part if gradient is None else gradient.add_(part)
    if not with_gradient:
        return losses, None
    assert gradient is not None
    if "nll" in weights:
        gradient.scatter_add_(-1, labels[:, None], -weights["nll"][:, None])
    return losses, gradient


def softmax_and_log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax (N, V) of logits (N, V), and the logarithms (N,) of what it divides by."""
    probabilities = logits.softmax(-1)
    return probabilities, logits.amax(-1) - probabilities.amax(-1).log()


def _cross(teacher: Tensor, difference: Tensor) -> Tensor:
    """(N,) Σ teacher · difference; a term of zero teacher probability is zero, also where a logit is −inf."""
    cross = torch.linalg.vecdot(teacher, difference)
    if cross.device.type in READS_ARE_FREE and torch.isfinite(cross).all():
        return cross
    return torch.linalg.vecdot(teacher, difference.masked_fill_(teacher == 0, 0.0))
