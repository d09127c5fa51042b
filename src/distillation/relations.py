"""Relations between positions (MiniLMv2), and distances between those of student and teacher.

The relation of states h (L, d) is R(h) = h hᵀ / √d (Wang et al., 2021, arXiv 2012.15828), in float32 at least.
Shapes: B targets, L positions, H heads of d dimensions, W = H × d.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def relation_kl(student: Tensor, teacher: Tensor, related: Tensor) -> Tensor:
    """(B,) KL(teacher ‖ student) of the softmax of each relation row, mean over heads and rows with a related position.

    student, teacher: (B, H, L, d); d may differ. related: (B, L, L), which positions j a row i is compared on.
    """
    hidden = ~related[:, None]
    lowest = torch.finfo(torch.float32).min  # finite, so that rows of padding give no NaN
    of_student = F.log_softmax(relations(student).masked_fill(hidden, lowest), dim=-1)
    of_teacher = F.log_softmax(relations(teacher).masked_fill(hidden, lowest), dim=-1)
    divergence = (of_teacher.exp() * (of_teacher - of_student)).masked_fill(hidden, 0.0).sum(-1)  # (B, H, L)
    n_rows = related.any(-1).sum(-1)  # (B,)
    return divergence.mean(1).sum(-1) / n_rows.clamp_min(1)


def relation_rmse(student: Tensor, teacher: Tensor, related: Tensor) -> Tensor:
    """(B,) root mean square difference over related pairs, mean over heads; shapes as in `relation_kl`."""
    difference = (relations(student) - relations(teacher)).masked_fill(~related[:, None], 0.0)
    squares = difference.square().sum((-1, -2)) / related.sum((-1, -2)).clamp_min(1)[:, None]  # (B, H)
    is_zero = squares == 0  # the root's gradient is infinite there, and 0 × ∞ would be NaN
    return squares.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0).mean(1)


def relations(states: Tensor) -> Tensor:
    """(B, H, L, L) scaled dot products of states (B, H, L, d)."""
    states = states if states.dtype == torch.float64 else states.float()
    return states @ states.transpose(-1, -2) * states.shape[-1] ** -0.5


def related_positions(valid: Tensor, *, causal: bool) -> Tensor:
    """(B, L, L) pairs of valid positions (B, L), which are compared; if causal, only those with column ≤ row."""
    related = valid[:, :, None] & valid[:, None, :]
    return related.tril() if causal else related


def regrouped(states: Tensor, n_heads: int) -> Tensor:
    """(B, H, L, W / H) states (B, L, W), their width cut into H = n_heads heads."""
    return states.unflatten(-1, (n_heads, -1)).transpose(1, 2)
