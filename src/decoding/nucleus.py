"""Exact nucleus sampling (Holtzman et al., 2020) without sorting the vocabulary, by rejection.

A token is drawn from the whole distribution and accepted if it is in the nucleus; else the row is drawn again, which
happens to 1 − top_p of the rows at most. The accepted ones have the distribution of the renormalized nucleus.
Shapes: N rows, V vocabulary, b the size of a block of neighboring tokens, U = ⌈V / b⌉ blocks, M rows to draw for.
"""

from dataclasses import dataclass, replace
from math import e, inf, log2

import torch
from torch import Tensor

BLOCK = 128  # tokens: about √V, so that both levels of a draw are short
LOG2_E = log2(e)  # exp2 takes half as long as exp on a CPU
ROUNDING = 1e-5  # of a weight; the ends of a tensor may be computed by other instructions than its middle
PART = 2**20  # logits weighed at a time on a CPU, so that they stay in its cache (chosen by measurement)


@dataclass(frozen=True)
class Nucleus:
    """The smallest set of most probable tokens with at least `top_p` of the mass, at a temperature; 1: all tokens.

    top_k: at most that many tokens, which are chosen first: the nucleus is that of their renormalized probabilities; 0:
    any number.
    """

    top_p: float
    temperature: float = 1.0
    top_k: int = 0


def draw(logits: Tensor, nucleus: Nucleus) -> Tensor:
    """(N,) one token per row of logits (N, V), from the softmax cut to the nucleus and renormalized.

    The logits may be overwritten. The temperature comes first. Of equally probable tokens the one with the smaller
    index counts as more probable. Raises RuntimeError where a row has no distribution: NaN, +inf, or nothing but −inf.
    """
    if 0 < nucleus.top_k < logits.shape[1]:
        likeliest = logits.topk(nucleus.top_k)  # sorted, so that of equals the first stays the first
        chosen = draw(likeliest.values, replace(nucleus, top_k=0))
        return likeliest.indices.gather(1, chosen[:, None])[:, 0]
    weighed = _weighted(logits, nucleus)
    rows = torch.arange(len(logits), device=logits.device)
    tokens, accepted = _proposed(weighed, rows)
    again = rows[~accepted]
    while len(again):
        if not weighed.upto[again, -1].isfinite().all():
            raise RuntimeError("no next token can be drawn: the model's logits are not finite")
        tokens[again], accepted = _proposed(weighed, again)
        again = again[~accepted]
    return tokens


@dataclass(frozen=True)
class _Weighted:
    """Weights (N, U, b), proportional to probabilities, the largest of a row 1; their sums and maxima by block (N, U).

    upto (N, U): sums of the blocks up to each; limit (N,): the mass that tokens before one of the nucleus are below.
    """

    weights: Tensor
    sums: Tensor
    tops: Tensor
    upto: Tensor
    limit: Tensor


def _weighted(logits: Tensor, nucleus: Nucleus) -> _Weighted:
    n_rows, vocabulary = logits.shape
    missing = -vocabulary % BLOCK
    weights = logits
    if missing or logits.dtype != torch.float32:
        weights = logits.new_full((n_rows, vocabulary + missing), -inf, dtype=torch.float32)
        weights[:, :vocabulary] = logits
    blocks = weights.unflatten(1, (-1, BLOCK))
    sums, tops = (weights.new_empty(blocks.shape[:2]) for _ in range(2))
    scale = LOG2_E / nucleus.temperature
    at_once = max(1, PART // vocabulary) if logits.device.type == "cpu" else n_rows
    for part in (slice(start, start + at_once) for start in range(0, n_rows, at_once)):
        torch.amax(blocks[part], dim=-1, out=tops[part])
        shift = tops[part].amax(dim=-1, keepdim=True) * -scale
        for values in (weights[part], tops[part]):
            torch.add(shift, values, alpha=scale, out=values).exp2_()
        torch.sum(blocks[part], dim=-1, out=sums[part])
    sums = sums.double()
    upto = sums.cumsum(dim=-1)
    limit = upto[:, -1] * (nucleus.top_p if nucleus.top_p < 1 else inf)
    return _Weighted(blocks, sums, tops, upto, limit)


def _proposed(weighed: _Weighted, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) tokens from the whole distribution of these rows (M,), and whether each is in the nucleus."""
    tokens, weight = _from_all(weighed, rows)
    # The tokens before this one lie in blocks whose largest weight is no smaller: their mass, without the token's own,
    # is the most that can be before it. Only rows where that is too much need a look at every token.
    tops, sums, limit = (each.index_select(0, rows) for each in (weighed.tops, weighed.sums, weighed.limit))
    at_most = torch.where(tops * (1 + ROUNDING) >= weight, sums, 0).sum(dim=-1) - weight[:, 0]
    accepted = at_most < limit
    doubtful = (~accepted).nonzero()[:, 0]
    if len(doubtful):
        weights = weighed.weights.index_select(0, rows[doubtful])
        before = _mass_before(weights, weight[doubtful], tokens[doubtful])
        accepted[doubtful] = (before < limit[doubtful]) | (before == 0)  # the first one always is in
    return tokens[:, 0], accepted


def _from_all(weighed: _Weighted, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(M, 1) a token for each of these rows (M,) by inverting the distribution function, first over blocks, then within
    one; its weight.

    In float64: a token with weight has its chance even where float32's 2⁻²⁴ would step over it, and one without is
    never drawn, as the function does not rise there.
    """
    upto = weighed.upto.index_select(0, rows)
    share = torch.rand(len(rows), 1, dtype=torch.float64, device=rows.device)
    target = share * upto[:, -1:]
    block = torch.searchsorted(upto, target, right=True).clamp_max(upto.shape[1] - 1)
    in_block = weighed.sums[rows[:, None], block]
    share = (target - (upto.gather(1, block) - in_block)) / in_block  # rounding may carry it out of [0, 1)
    weights = weighed.weights[rows, block[:, 0]]
    upto = weights.double().cumsum(dim=-1)
    place = torch.searchsorted(upto, share.clamp(0, 1 - 1e-15) * upto[:, -1:], right=True).clamp_max(BLOCK - 1)
    return block * BLOCK + place, weights.gather(1, place)


def _mass_before(weights: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """(M,) the mass in weights (M, U, b) of what is more probable than `tokens` (M, 1) of this weight (M, 1).

    Overwrites the weights. By float arithmetic, which takes a fifth of the time that masks take on a CPU.
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
