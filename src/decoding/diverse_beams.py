"""Diverse beam search (Vijayakumar et al., 2018), which transformers 5 no longer has.

Beams form G groups of g. At each step the groups choose one after another: a group's log-probability of a token is
lowered by `penalty` for each beam of an earlier group of the same input that has just chosen this token (Hamming
diversity). Within a group it is plain beam search; a group that cannot find anything better stops.
Shapes: B inputs, G groups, g beams per group, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

IMPOSSIBLE = -1e9  # the score of a beam that must not be chosen
EMPTY = -1  # a place without a token; the pad token may be one that the model writes


@dataclass
class _Group:
    """The live and the finished hypotheses of one group: sequences (B, g, max_length), scores (B, g).

    settled (B,): inputs where no live beam can still beat the worst finished one. Their finished ones stay as they are,
    so that a result does not depend on how long the other inputs of its batch take.
    """

    live: Tensor
    live_scores: Tensor
    done: Tensor
    done_scores: Tensor
    settled: Tensor


def diverse_beam_search(groups: int, penalty: float) -> Callable:
    """A loop for `generate(custom_generate=…)` with `groups` groups of num_beams // groups beams each."""

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs) -> Tensor:
        model_kwargs.pop("synced_gpus", None)
        model_kwargs.pop("streamer", None)
        beams = generation_config.num_beams
        size = beams // groups
        n_inputs = len(input_ids) // beams
        start, longest = input_ids.shape[1], generation_config.max_length
        eos, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
        state = [_empty_group(input_ids.view(n_inputs, beams, -1)[:, :size], longest) for _ in range(groups)]
        offsets = torch.arange(n_inputs, device=input_ids.device)[:, None] * beams

        for length in range(start, longest):
            flat = torch.cat([group.live[:, :, :length] for group in state], dim=1).flatten(0, 1)
            logits, model_kwargs = _next_logits(model, flat, model_kwargs, first=length == start)
            log_probs = logits_processor(flat, logits.float().log_softmax(-1)).view(n_inputs, groups, size, -1)
            chosen = logits.new_zeros(n_inputs, log_probs.shape[-1], dtype=torch.float)  # how often, by earlier groups
            order = []
            for g, group in enumerate(state):
                scores = log_probs[:, g] - penalty * chosen[:, None]
                parents, tokens = _advance(group, scores, length, eos, last=length == longest - 1, start=start)
                chosen.scatter_add_(1, tokens, (~group.settled[:, None]).to(chosen.dtype).expand_as(tokens))
                order.append(offsets + g * size + parents)
                _settle(group, length + 1 - start)
            if all(bool(group.settled.all()) for group in state):
                break
            model_kwargs["past_key_values"].reorder_cache(torch.cat(order, dim=1).flatten())
        return _best(state, generation_config.num_return_sequences, int(pad), start)

    return loop


def _empty_group(prefix: Tensor, longest: int) -> _Group:
    n_inputs, size, length = prefix.shape
    sequences = prefix.new_full((n_inputs, size, longest), EMPTY)
    sequences[:, :, :length] = prefix
    scores = torch.full((n_inputs, size), IMPOSSIBLE, device=prefix.device)
    live_scores = scores.clone()
    live_scores[:, 0] = 0.0  # all beams start equal: only the first one may be continued
    settled = torch.zeros(n_inputs, dtype=torch.bool, device=prefix.device)
    return _Group(sequences, live_scores, sequences.clone(), scores, settled)


def _next_logits(model, sequences: Tensor, model_kwargs: dict, *, first: bool) -> tuple[Tensor, dict]:
    """(B * beams, V) logits of the next token, and the model's arguments with the updated cache."""
    inputs = model.prepare_inputs_for_generation(
        sequences, next_sequence_length=None if first else 1, is_first_iteration=first, **model_kwargs
    )
    outputs = model(**inputs, return_dict=True)
    model_kwargs = model._update_model_kwargs_for_generation(
        outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
    )
    return outputs.logits[:, -1], model_kwargs


def _advance(
    group: _Group, scores: Tensor, length: int, eos: Tensor | None, *, last: bool, start: int
) -> tuple[Tensor, Tensor]:
    """One step of beam search within a group, from scores (B, g, V): parents and tokens (B, g) of the live beams."""
    n_inputs, size, vocabulary = scores.shape
    total = (group.live_scores[:, :, None] + scores).flatten(1)
    # With this many candidates, g remain even if every live beam ends with each EOS.
    n_eos = 1 if eos is None else len(eos)
    best, places = total.topk(min((1 + n_eos) * size, total.shape[1]), dim=1)
    parents, tokens = places // vocabulary, places % vocabulary
    candidates = group.live.gather(1, parents[:, :, None].expand(-1, -1, group.live.shape[2])).clone()
    candidates[:, :, length] = tokens
    ended = torch.zeros_like(tokens, dtype=torch.bool) if eos is None else torch.isin(tokens, eos)

    finished = torch.where((ended | last) & ~group.settled[:, None], best / (length + 1 - start), IMPOSSIBLE)
    finished[:, size:] = IMPOSSIBLE  # only a candidate that would have stayed in the beam may end (as in `generate`)
    pool, pool_scores = torch.cat([group.done, candidates], 1), torch.cat([group.done_scores, finished], 1)
    group.done_scores, keep = pool_scores.topk(size, dim=1)
    group.done = pool.gather(1, keep[:, :, None].expand(-1, -1, pool.shape[2]))

    group.live_scores, keep = torch.where(ended, IMPOSSIBLE, best).topk(size, dim=1)
    group.live = candidates.gather(1, keep[:, :, None].expand(-1, -1, candidates.shape[2]))
    return parents.gather(1, keep), tokens.gather(1, keep)


def _settle(group: _Group, written: int) -> None:
    """Mark the inputs where no live beam beats the group's worst finished one (scores are means per token)."""
    group.settled = group.settled | (group.done_scores[:, -1] >= group.live_scores[:, 0] / written)


def _best(state: list[_Group], returned: int, pad: int, start: int) -> Tensor:
    """(B * returned, L) the best finished hypotheses over all groups, padded to the longest one."""
    sequences = torch.cat([group.done for group in state], dim=1)
    scores = torch.cat([group.done_scores for group in state], dim=1)
    keep = scores.topk(returned, dim=1).indices
    chosen = sequences.gather(1, keep[:, :, None].expand(-1, -1, sequences.shape[2])).flatten(0, 1)
    chosen = chosen[:, : start + int((chosen[:, start:] != EMPTY).sum(dim=1).max())]
    return chosen.masked_fill(chosen == EMPTY, pad)
