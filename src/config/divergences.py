"""Divergences between the student's and the teacher's distributions: one function each.

A function registered as NAME adds the key NAME_weight to the loss entries of an experiments file, a column to the
training log, and a term to --list_experiments. The same function serves live and stored teachers. It may use only
methods of its tensors, because config/ does not import torch.

Shapes: N valid target positions; K tokens: the whole vocabulary, or those that a stored teacher has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LogProbabilities = Any  # a tensor (N, K)
Compute = Callable[[LogProbabilities, LogProbabilities], Any]


@dataclass(frozen=True)
class Divergence:
    """A registered divergence.

    label: its name in --list_experiments. paper: its source. compute: takes log-probabilities of the student (N, K) and
    of the teacher (N, K), returns the divergence in nats (N,).
    """

    label: str
    paper: str
    compute: Compute


DIVERGENCES: dict[str, Divergence] = {}


def divergence(name: str, *, label: str, paper: str) -> Callable[[Compute], Compute]:
    """Register a function as the divergence `name`."""

    def register(compute: Compute) -> Compute:
        DIVERGENCES[name] = Divergence(label, paper, compute)
        return compute

    return register


def expectation(log_weights: LogProbabilities, values: Any) -> Any:
    """(N,) Σ exp(log_weights) · values over K. A token of weight 0 adds 0, even if its value is infinite."""
    weights = log_weights.exp()
    return (weights * values.masked_fill(weights == 0, 0.0)).sum(-1)


@divergence("logits", label="logits KL", paper="Hinton et al., 2015, arXiv 1503.02531")
def forward_kl(student: LogProbabilities, teacher: LogProbabilities) -> Any:
    """(N,) KL(teacher ‖ student)."""
    return expectation(teacher, teacher - student)
