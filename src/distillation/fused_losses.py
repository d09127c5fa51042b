"""NLL and KL of rows of logits, with their gradient, computed in place."""

from collections.abc import Mapping

import torch
from torch import Tensor

SYNCHRONOUS_DEVICES = ("cpu",)  # reading a result from these does not make the host wait


def nll_and_kl_(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    weights: Mapping[str, Tensor],
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    *,
    scratch: Tensor | None = None,
    with_gradient: bool = True,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """NLL and KL of each row (N,) in nats, and the gradient (N, V) of their weighted sum, in one pass.

    student, teacher, scratch: OVERWRITTEN. student, teacher: logits (N, V); a teacher is needed for "kl".
    scratch (N, V): memory to use; the gradient lies in one of the three. weights: (N,) by "nll" and "kl", whichever are
    wanted. With p the student's and q the teacher's softmax at temperature T, and y the label:
    nll = −log p₁(y), gradient p₁ − onehot(y); kl = T² KL(q ‖ p) (Hinton et al., 2015), gradient T (p − q).
    label_smoothing: ε of onehot(y) replaced by (1 − ε) · onehot(y) + ε / V in the nll (Szegedy et al., 2016).
    """
    losses: dict[str, Tensor] = {}
    label_logits = student.gather(-1, labels[:, None])[:, 0]
    if label_smoothing:
        label_logits = label_logits.lerp(student.mean(-1), label_smoothing)
    with_nll, nll_apart = "nll" in weights, "nll" in weights and ("kl" not in weights or temperature != 1)
    gradient: Tensor | None = None
    if "kl" in weights:
        assert teacher is not None
        difference = torch.sub(teacher, student, out=scratch)
        if temperature != 1:
            difference, teacher = difference.div_(temperature), teacher.div_(temperature)
        their_sum, their_log_sum = to_weights_(teacher)
        cross = _dot_(difference, teacher) / their_sum
        ours = torch.div(student, temperature, out=difference) if temperature != 1 else student
        our_sum, our_log_sum = to_weights_(ours)
        losses["kl"] = (cross - their_log_sum + our_log_sum) * temperature**2
        kl_weights = weights["kl"] * temperature
        our_weights = kl_weights
        if with_nll and not nll_apart:
            losses["nll"] = our_log_sum - label_logits
            our_weights = kl_weights + weights["nll"]
        if with_gradient:
            gradient = ours.mul_((our_weights / our_sum)[:, None])
            gradient.addcmul_(teacher, (kl_weights / their_sum)[:, None], value=-1)
    if nll_apart:
        our_sum, our_log_sum = to_weights_(student)
        losses["nll"] = our_log_sum - label_logits
        if with_gradient:
            part = student.mul_((weights["nll"] / our_sum)[:, None])
            gradient = part if gradient is None else gradient.add_(part)
    if gradient is not None and with_nll:
        of_label = -weights["nll"][:, None]
        if label_smoothing:
            gradient.add_(of_label, alpha=label_smoothing / gradient.shape[1])
            of_label = of_label * (1 - label_smoothing)
        gradient.scatter_add_(-1, labels[:, None], of_label)
    return losses, gradient


def to_weights_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits (N, V) with unnormalized probabilities, the largest of each row 1.

    Returns their sums (N,), and the logsumexp (N,) of the logits.
    """
    top = logits.amax(-1)
    total = logits.sub_(top[:, None]).exp_().sum(-1)
    return total, top + total.log()


def _dot_(difference: Tensor, weights: Tensor) -> Tensor:
    """(N,) Σ difference · weights, OVERWRITING the difference; a weight of 0 gives 0, even times −inf."""
    products = difference.mul_(weights)
    dots = products.sum(-1)
    if dots.device.type in SYNCHRONOUS_DEVICES and torch.isfinite(dots).all():
        return dots
    return products.masked_fill_(weights == 0, 0.0).sum(-1)
