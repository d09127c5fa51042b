"""Divergences between two distributions, each one function: what `NAME_weight` in a loss entry of the YAML weighs.

The keys of the YAML, the columns of the log and --list_experiments follow from DIVERGENCES. A function is written once,
for live and for stored teachers. It uses methods of tensors alone: config/ imports no torch, so that a wrong key
answers at once.

Shapes: N valid target positions; K tokens, those of the vocabulary, or of a stored teacher those that are stored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LogProbabilities = Any  # a tensor (N, K)
Compute = Callable[[LogProbabilities, LogProbabilities], Any]


@dataclass(frozen=True)
class Divergence:
    """compute: (student's log-probabilities, teacher's) → (N,) nats. words: what --list_experiments calls it."""

    name: str
    words: str
    paper: str
    compute: Compute


DIVERGENCES: dict[str, Divergence] = {}


def divergence(name: str, *, words: str, paper: str) -> Callable[[Compute], Compute]:
    """Register a function as the divergence that `NAME_weight` weighs."""

    def register(compute: Compute) -> Compute:
        DIVERGENCES[name] = Divergence(name, words, paper, compute)
        return compute

    return register


def expectation(log_weights: LogProbabilities, values: Any) -> Any:
    """(N,) Σ exp(log_weights) · values; a token without weight counts nothing, whatever its value."""
    weights = log_weights.exp()
    return (weights * values.masked_fill(weights == 0, 0.0)).sum(-1)


@divergence("logits", words="logits KL", paper="Hinton et al., 2015, arXiv 1503.02531")
def forward_kl(student: LogProbabilities, teacher: LogProbabilities) -> Any:
    """(N,) KL(teacher ‖ student)."""
    return expectation(teacher, teacher - student)
