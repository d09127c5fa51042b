"""The best next tokens of beams, without sorting the vocabulary.

Shapes: n inputs, k beams per input, C candidates per input, V vocabulary in U blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.models.lazy_logits import LazyLogits

BLOCK_SIZE = 64  # 32 to 128 are about as fast
CPU_LOGITS_AT_ONCE = 2**18  # stay in a processor's cache
SMALL_VOCABULARY = 1024  # where all scores are sorted: as `generate` does, so that equal scores have its order


@dataclass(frozen=True)
class Candidates:
    """The C best continuations of each input, best first, each (n, C): score, beam that goes on, next token."""

    scores: Tensor
    beams: Tensor
    tokens: Tensor


def best_tokens(
    logits: LazyLogits, scores: Tensor, n_candidates: int, allow: Callable[[Tensor, slice], Tensor]
) -> Candidates:
    """From logits (n * k, V) and the beams' scores (n, k); log-probabilities add up to scores.

    allow: changes log-probabilities of a part of the rows to what the generation config allows.
    """
    k, found = scores.shape[1], []
    logits = logits.cast()
    at_once = max(1, logits.rows_at_once // k)  # inputs
    for start in range(0, len(scores), at_once):
        part = scores[start : start + at_once]
        rows = slice(start * k, (start + len(part)) * k)
        log_probs = allow(_log_softmax_(logits.some(rows).float()), rows)  # in float32, as `generate` does
        found.append(_largest(log_probs.unflatten(0, part.shape), part, n_candidates))
    best, places = (torch.cat(each) for each in zip(*found, strict=True))
    return Candidates(best, places // logits.vocab_size, places % logits.vocab_size)


def _log_softmax_(logits: Tensor) -> Tensor:
    """Log-probabilities of logits (N, V), in place; on a CPU a few rows at a time, so that they stay in its cache."""
    at_once = max(1, CPU_LOGITS_AT_ONCE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for part in logits.split(at_once):
        torch.log_softmax(part, dim=-1, out=part)
    return logits


def _largest(log_probs: Tensor, scores: Tensor, n_candidates: int) -> tuple[Tensor, Tensor]:
    """(n, C) the largest of scores (n, k) + log_probs (n, k, V), descending, and their places among k * V."""
    n_inputs, k, vocabulary = log_probs.shape
    n_blocks = vocabulary // BLOCK_SIZE
    if vocabulary < SMALL_VOCABULARY or k * n_blocks < n_candidates:
        best, places = (log_probs + scores[:, :, None]).flatten(1).topk(n_candidates)
        return best, places
    # The C largest are in the C blocks with the largest maxima, or among the tokens behind the last block.
    in_blocks = log_probs[:, :, : n_blocks * BLOCK_SIZE].unflatten(2, (n_blocks, BLOCK_SIZE))
    tops = in_blocks.amax(dim=3).add_(scores[:, :, None])
    chosen = tops.flatten(1).topk(n_candidates).indices
    beams, blocks = chosen // n_blocks, chosen % n_blocks
    of_input = torch.arange(n_inputs, device=scores.device)[:, None]
    values = in_blocks[of_input, beams, blocks] + scores.gather(1, beams)[:, :, None]
    first = beams * vocabulary + blocks * BLOCK_SIZE
    places = first[:, :, None] + torch.arange(BLOCK_SIZE, device=scores.device)
    behind = torch.arange(n_blocks * BLOCK_SIZE, vocabulary, device=scores.device)
    others = log_probs[:, :, behind[0] :] + scores[:, :, None] if len(behind) else scores.new_empty(n_inputs, 0)
    other_places = torch.arange(k, device=scores.device)[:, None] * vocabulary + behind
    best, at = torch.cat([values.flatten(1), others.flatten(1)], dim=1).topk(n_candidates)
    places = torch.cat([places.flatten(1), other_places.flatten().expand(n_inputs, -1)], dim=1)
    return best, places.gather(1, at)
