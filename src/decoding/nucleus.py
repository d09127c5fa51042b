"""Nucleus sampling (Holtzman et al., 2020): exact, by rejection instead of sorting the vocabulary.

A token is drawn from the whole distribution and accepted if it is in the nucleus; otherwise the row is drawn again,
with a probability of at most 1 − top_p. Accepted tokens have the distribution of the renormalized nucleus.
Shapes: N rows, V vocabulary, b the size of a block of neighboring tokens, U = ⌈V / b⌉ blocks, M rows to draw for.
"""

from dataclasses import dataclass, replace
from math import e, inf, log2

import torch
from torch import Tensor

BLOCK_SIZE = 128  # tokens: about √V, so that both levels of a draw are short
LOG2_E = log2(e)  # exp2 takes half as long as exp on a CPU
WEIGHT_ERROR = 1e-5  # relative: the ends of a tensor may be computed by other instructions than its middle
CPU_LOGITS_AT_ONCE = 2**20  # so that they stay in the cache (chosen by measurement)


@dataclass(frozen=True)
class Nucleus:
    """What to sample from: the fewest, most probable tokens with at least `top_p` of the mass (1: all tokens).

    The temperature is applied first, then top_k (the k most probable tokens, renormalized; 0: all), then top_p.
    """

    top_p: float
    temperature: float = 1.0
    top_k: int = 0


def draw(logits: Tensor, nucleus: Nucleus) -> Tensor:
    """Draw (N,) one token per row of logits (N, V), from the softmax cut to the nucleus and renormalized.

    May overwrite the logits. Of equally probable tokens, the one with the smaller index counts as more probable.
    Raises RuntimeError if a row has no distribution: NaN, +inf, or only −inf.
    """
    if 0 < nucleus.top_k < logits.shape[1]:
        likeliest = logits.topk(nucleus.top_k)  # sorted, so that ties keep their order
        chosen = draw(likeliest.values, replace(nucleus, top_k=0))
        return likeliest.indices.gather(1, chosen[:, None])[:, 0]
    blocks = _blocks_of(logits, nucleus)
    rows = torch.arange(len(logits), device=logits.device)
    tokens, accepted = _draw_and_check(blocks, rows)
    again = rows[~accepted]
    while len(again):
        if not blocks.upto[again, -1].isfinite().all():
            raise RuntimeError("no next token can be drawn: the model's logits are not finite")
        tokens[again], accepted = _draw_and_check(blocks, again)
        again = again[~accepted]
    return tokens


@dataclass(frozen=True)
class _Blocks:
    """Unnormalized probabilities by block.

    weights (N, U, b): the largest of a row is 1. sums, tops (N, U): sum and maximum of each block. upto (N, U):
    cumulative sums. limit (N,): a token is in the nucleus if the mass of more probable tokens is below it.
    """

    weights: Tensor
    sums: Tensor
    tops: Tensor
    upto: Tensor
    limit: Tensor


def _blocks_of(logits: Tensor, nucleus: Nucleus) -> _Blocks:
    n_rows, vocabulary = logits.shape
    missing = -vocabulary % BLOCK_SIZE
    weights = logits
    if missing or logits.dtype != torch.float32:
        weights = logits.new_full((n_rows, vocabulary + missing), -inf, dtype=torch.float32)
        weights[:, :vocabulary] = logits
    blocks = weights.unflatten(1, (-1, BLOCK_SIZE))
    sums, tops = (weights.new_empty(blocks.shape[:2]) for _ in range(2))
    scale = LOG2_E / nucleus.temperature
    at_once = max(1, CPU_LOGITS_AT_ONCE // vocabulary) if logits.device.type == "cpu" else n_rows
    for part in (slice(start, start + at_once) for start in range(0, n_rows, at_once)):
        torch.amax(blocks[part], dim=-1, out=tops[part])
        shift = tops[part].amax(dim=-1, keepdim=True) * -scale
        for values in (weights[part], tops[part]):
            torch.add(shift, values, alpha=scale, out=values).exp2_()
        torch.sum(blocks[part], dim=-1, out=sums[part])
    sums = sums.double()
    upto = sums.cumsum(dim=-1)
    limit = upto[:, -1] * (nucleus.top_p if nucleus.top_p < 1 else inf)
    return _Blocks(blocks, sums, tops, upto, limit)


def _draw_and_check(blocks: _Blocks, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) tokens drawn from the whole distribution of these rows (M,), and whether each is in the nucleus."""
    tokens, weight = _draw_from_all(blocks, rows)
    # More probable tokens lie only in blocks whose largest weight is at least this token's. The mass of these blocks,
    # without the token's own, is an upper bound; only rows where it exceeds the limit need every token's weight.
    tops, sums, limit = (each.index_select(0, rows) for each in (blocks.tops, blocks.sums, blocks.limit))
    at_most = torch.where(tops * (1 + WEIGHT_ERROR) >= weight, sums, 0).sum(dim=-1) - weight[:, 0]
    accepted = at_most < limit
    doubtful = (~accepted).nonzero()[:, 0]
    if len(doubtful):
        weights = blocks.weights.index_select(0, rows[doubtful])
        before = _mass_of_more_probable(weights, weight[doubtful], tokens[doubtful])
        accepted[doubtful] = (before < limit[doubtful]) | (before == 0)  # the most probable token is in
    return tokens[:, 0], accepted


def _draw_from_all(blocks: _Blocks, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(M, 1) a token for each of these rows (M,), and its weight, without regard to the nucleus.

    Inverts the cumulative distribution, first over blocks, then within one. In float64: float32's steps of 2⁻²⁴ would
    skip improbable tokens. Tokens without weight are never drawn.
    """
    upto = blocks.upto.index_select(0, rows)
    share = torch.rand(len(rows), 1, dtype=torch.float64, device=rows.device)
    target = share * upto[:, -1:]
    block = torch.searchsorted(upto, target, right=True).clamp_max(upto.shape[1] - 1)
    in_block = blocks.sums[rows[:, None], block]
    share = (target - (upto.gather(1, block) - in_block)) / in_block  # rounding may carry it out of [0, 1)
    weights = blocks.weights[rows, block[:, 0]]
    upto = weights.double().cumsum(dim=-1)
    place = torch.searchsorted(upto, share.clamp(0, 1 - 1e-15) * upto[:, -1:], right=True).clamp_max(BLOCK_SIZE - 1)
    return block * BLOCK_SIZE + place, weights.gather(1, place)


def _mass_of_more_probable(weights: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """(M,) the mass in weights (M, U, b) of tokens that are more probable than `tokens` (M, 1) of weight (M, 1).

    Overwrites the weights. Float arithmetic instead of masks takes a fifth of the time on a CPU.
    """
    over = weights.sub_(weight[:, :, None])  # 0 for equal weights alone
    signs = over.sign()
    total, n_other = signs.sum(dim=(1, 2)), signs.abs_().sum(dim=(1, 2))
    n_heavier, n_equal = (total + n_other) / 2, signs[0].numel() - n_other
    mass = over.relu_().sum(dim=-1).sum(dim=-1, dtype=torch.float64) + weight[:, 0].double() * n_heavier
    tied = (n_equal > 1).nonzero()[:, 0]
    if len(tied):
        n_upto = (signs[tied] == 0).flatten(1).cumsum(dim=1).gather(1, tokens[tied])
        mass[tied] += weight[tied, 0] * (n_upto[:, 0] - 1)
    return mass
