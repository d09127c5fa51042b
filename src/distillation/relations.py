"""Relations between positions, and how far the student's are from the teacher's: pure functions of tensors.

Shapes: B targets, L positions, W = H × d width (H heads of d dimensions), D a single head's dimensions.
A relation is R(h) = h hᵀ / √d (Wang et al., 2021, MiniLMv2, arXiv 2012.15828), computed in float32 at least.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def relation_kl(student: Tensor, teacher: Tensor, related: Tensor) -> Tensor:
    """(B,) KL(teacher ‖ student) of softmaxed relation rows, mean over heads and over the rows that relate to anything.

    student, teacher: (B, H, L, d), d of each its own. related: (B, L, L), whether row i may look at column j.
    """
    hidden = ~related[:, None]
    lowest = torch.finfo(torch.float32).min  # finite: a row of padding gets a distribution, and no NaN
    of_student = F.log_softmax(relations(student).masked_fill(hidden, lowest), dim=-1)
    of_teacher = F.log_softmax(relations(teacher).masked_fill(hidden, lowest), dim=-1)
    divergence = (of_teacher.exp() * (of_teacher - of_student)).masked_fill(hidden, 0.0).sum(-1)  # (B, H, L)
    n_rows = related.any(-1).sum(-1)  # (B,)
    return divergence.mean(1).sum(-1) / n_rows.clamp_min(1)


def relation_rmse(student: Tensor, teacher: Tensor, related: Tensor) -> Tensor:
    """(B,) root of the mean squared difference over related pairs, mean over heads; shapes as in `relation_kl`."""
    difference = (relations(student) - relations(teacher)).masked_fill(~related[:, None], 0.0)
    squares = difference.square().sum((-1, -2)) / related.sum((-1, -2)).clamp_min(1)[:, None]  # (B, H)
    is_zero = squares == 0  # the root's gradient is infinite there, and 0 × ∞ would be NaN
    return squares.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0).mean(1)


def relations(states: Tensor) -> Tensor:
    """(B, H, L, L) scaled dot products of states (B, H, L, d)."""
    states = states if states.dtype == torch.float64 else states.float()
    return states @ states.transpose(-1, -2) * states.shape[-1] ** -0.5


def related_positions(valid: Tensor, *, causal: bool) -> Tensor:
    """(B, L, L) which pairs of positions are compared: both hold a token, and if causal the column is not later."""
    related = valid[:, :, None] & valid[:, None, :]
    return related.tril() if causal else related


def regrouped(states: Tensor, n_heads: int) -> Tensor:
    """(B, H, L, W / H) of states (B, L, W): the same width cut into another number of heads."""
    return states.unflatten(-1, (n_heads, -1)).transpose(1, 2)
