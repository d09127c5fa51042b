"""Exact nucleus sampling (Holtzman et al., 2020) without sorting the vocabulary, by rejection.

A token is drawn from the whole distribution and accepted if it is in the nucleus; else the row is drawn again, which
happens to 1 − top_p of the rows at most. The accepted ones have the distribution of the renormalised nucleus.
Shapes: N rows, V vocabulary, b the size of a block of neighbouring tokens, U = ⌈V / b⌉ blocks.
"""

from dataclasses import dataclass, fields
from math import e, inf, log2

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

BLOCK = 128  # tokens: about √V, so that both levels of a draw are short
LOG2_E = log2(e)  # exp2 takes half as long as exp on a CPU
ROUNDING = 1e-5  # of a weight; the ends of a tensor may be computed by other instructions than its middle
PART = 2**21  # logits handled at a time on a CPU: what is made of them stays in the cache (chosen by measurement)


@dataclass(frozen=True)
class Nucleus:
    """The smallest set of most probable tokens with at least `top_p` of the mass, at a temperature; 1: all tokens."""

    top_p: float
    temperature: float = 1.0


def draw(logits: Tensor, nucleus: Nucleus) -> Tensor:
    """(N,) one token per row of logits (N, V), from the softmax cut to the nucleus and renormalised.

    The temperature comes first. Of equally probable tokens the one with the smaller index counts as more probable.
    Raises RuntimeError where a row has no distribution: NaN, +inf, or nothing but −inf.
    """
    rows = max(1, PART // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    return torch.cat([_draw_part(part, nucleus) for part in logits.split(rows)])


@dataclass(frozen=True)
class _Rows:
    """Weights (N, U, b), proportional to probabilities, the largest of a row 1; their sums and maxima by block (N, U).

    upto (N, U): sums of the blocks up to each; limit (N,): the mass that tokens before one of the nucleus are below.
    """

    weights: Tensor
    sums: Tensor
    tops: Tensor
    upto: Tensor
    limit: Tensor

    def select(self, rows: Tensor) -> "_Rows":
        return _Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


def _draw_part(logits: Tensor, nucleus: Nucleus) -> Tensor:
    rows = _weighed(logits, nucleus)
    tokens, accepted = _proposed(rows)
    again = (~accepted).nonzero()[:, 0]
    while len(again):
        rejected = rows.select(again)
        if not rejected.upto[:, -1].isfinite().all():
            raise RuntimeError("no next token can be drawn: the model's logits are not finite")
        tokens[again], accepted = _proposed(rejected)
        again = again[~accepted]
    return tokens


def _weighed(logits: Tensor, nucleus: Nucleus) -> _Rows:
    missing = -logits.shape[1] % BLOCK
    logits = F.pad(logits.float(), (0, missing), value=-inf) if missing else logits.float()
    tops = logits.unflatten(1, (-1, BLOCK)).amax(dim=-1)
    scale = LOG2_E / nucleus.temperature
    shift = tops.amax(dim=-1, keepdim=True) * -scale
    weights = torch.add(shift, logits, alpha=scale).exp2_().unflatten(1, (-1, BLOCK))
    sums = weights.sum(dim=-1).double()
    upto = sums.cumsum(dim=-1)
    limit = upto[:, -1] * (nucleus.top_p if nucleus.top_p < 1 else inf)
    return _Rows(weights, sums, torch.add(shift, tops, alpha=scale).exp2_(), upto, limit)


def _proposed(rows: _Rows) -> tuple[Tensor, Tensor]:
    """(N,) tokens from the whole distribution, and whether each is in the nucleus."""
    tokens, weight = _from_all(rows)
    # The tokens before this one lie in blocks whose largest weight is no smaller: their mass, without the token's own,
    # is the most that can be before it. Only rows where that is too much need a look at every token.
    at_most = torch.where(rows.tops * (1 + ROUNDING) >= weight, rows.sums, 0).sum(dim=-1, keepdim=True) - weight
    accepted = (at_most < rows.limit[:, None])[:, 0]
    doubtful = (~accepted).nonzero()[:, 0]
    if len(doubtful):
        before = _mass_before(rows.weights[doubtful].flatten(1), weight[doubtful], tokens[doubtful])
        accepted[doubtful] = (before < rows.limit[doubtful]) | (before == 0)  # the first one always is in
    return tokens[:, 0], accepted


def _from_all(rows: _Rows) -> tuple[Tensor, Tensor]:
    """(N, 1) a token per row by inverting the distribution function, first over blocks, then within one; its weight.

    In float64: a token with weight has its chance even where float32's 2⁻²⁴ would step over it, and one without is
    never drawn, as the function does not rise there.
    """
    share = torch.rand(len(rows.sums), 1, dtype=torch.float64, device=rows.sums.device)
    target = share * rows.upto[:, -1:]
    block = torch.searchsorted(rows.upto, target, right=True).clamp_max(rows.sums.shape[1] - 1)
    in_block = rows.sums.gather(1, block)
    share = (target - (rows.upto.gather(1, block) - in_block)) / in_block  # rounding may carry it out of [0, 1)
    weights = rows.weights.take_along_dim(block[:, :, None], dim=1)[:, 0]
    upto = weights.double().cumsum(dim=-1)
    place = torch.searchsorted(upto, share.clamp(0, 1 - 1e-15) * upto[:, -1:], right=True).clamp_max(BLOCK - 1)
    return block * BLOCK + place, weights.gather(1, place)


def _mass_before(weights: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """(N,) the mass of the tokens that are more probable than `tokens` (N, 1) of this weight (N, 1)."""
    places = torch.arange(weights.shape[1], device=weights.device)
    before = (weights > weight) | ((weights == weight) & (places < tokens))
    return (weights * before).sum(dim=-1, dtype=torch.float64)
