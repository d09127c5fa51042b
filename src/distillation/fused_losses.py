"""NLL and KL over rows of logits, computed in place."""

from collections.abc import Mapping

import torch
from torch import Tensor

SYNCHRONOUS_DEVICES = ("cpu",)  # devices whose results the host need not wait for


def nll_and_kl_(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    weights: Mapping[str, Tensor],
    temperature: float = 1.0,
    *,
    scratch: Tensor | None = None,
    with_gradient: bool = True,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """NLL and KL of each row, and the gradient of their weighted sum, in one pass over the vocabulary.

    student, teacher: logits (N, V), OVERWRITTEN, as is scratch (N, V), memory that need not be made anew. weights: (N,)
    by "nll" and "kl", whichever are wanted. The gradient (N, V), in the memory of one of the three, is that of
    Σ weights · losses to the student's logits: (softmax − one-hot) · w for NLL, (softmax(s / T) − softmax(t / T)) · T
    · w for KL at temperature T > 0.
    """
    losses: dict[str, Tensor] = {}
    of_labels = student.gather(-1, labels[:, None])[:, 0]
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
        of_kl = weights["kl"] * temperature
        of_ours = of_kl
        if with_nll and not nll_apart:
            losses["nll"] = our_log_sum - of_labels
            of_ours = of_kl + weights["nll"]
        if with_gradient:
            gradient = ours.mul_((of_ours / our_sum)[:, None])
            gradient.addcmul_(teacher, (of_kl / their_sum)[:, None], value=-1)
    if nll_apart:
        our_sum, our_log_sum = to_weights_(student)
        losses["nll"] = our_log_sum - of_labels
        if with_gradient:
            part = student.mul_((weights["nll"] / our_sum)[:, None])
            gradient = part if gradient is None else gradient.add_(part)
    if gradient is not None and with_nll:
        gradient.scatter_add_(-1, labels[:, None], -weights["nll"][:, None])
    return losses, gradient


def to_weights_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits (N, V) with weights proportional to the probabilities, the largest of a row 1.

    Returns the weights' sums (N,), and the logarithms (N,) of what a softmax divides by.
    """
    top = logits.amax(-1)
    total = logits.sub_(top[:, None]).exp_().sum(-1)
    return total, top + total.log()


def _dot_(difference: Tensor, weights: Tensor) -> Tensor:
    """(N,) Σ difference · weights, OVERWRITING the difference; where a weight is zero, so is the product with −inf."""
    products = difference.mul_(weights)
    dots = products.sum(-1)
    if dots.device.type in SYNCHRONOUS_DEVICES and torch.isfinite(dots).all():
        return dots
    return products.masked_fill_(weights == 0, 0.0).sum(-1)
