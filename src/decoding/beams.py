"""Beam search as `generate` defines it, on the decoder of the sampling loop.

Gives the targets and scores of `generate` with less work: each input is read once, beams share keys and values
(`beam_cache.py`), inputs whose targets are settled leave, and no step sorts the vocabulary.
Shapes: B inputs, n of them not settled, k beams per input, C candidates per input, R rows of the decoder, L new tokens,
V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.decoding.best_tokens import SMALL_VOCABULARY, Candidates, best_tokens
from src.decoding.decoders import open_decoder
from src.decoding.hypotheses import IMPOSSIBLE, BeamSettings, Hypotheses
from src.decoding.sampling import COMPACTION_THRESHOLD, in_parts, start_length
from src.decoding.token_rules import StockProcessors, TokenRules
from src.models.lazy_logits import LazyLogits
from src.tokens.batch import Batch


@torch.no_grad()
def beam_search(model: PreTrainedModel, batch: Batch, settings: BeamSettings) -> tuple[Tensor, Tensor]:
    """The best targets of each input, best first: tokens (B * returned, L), the pad token after EOS, and scores
    (B * returned,).

    `why_unsupported(model)` must be None. Writes for as many inputs at once as fit into memory.
    """
    scores: list[Tensor] = []

    def write(part: Batch) -> Tensor:
        tokens, values = _search(model, part, settings)
        scores.append(values.flatten())
        return tokens.flatten(0, 1)

    tokens = in_parts(write, model, batch, settings.max_new_tokens, settings.k)
    return torch.cat(tokens), torch.cat(scores)


def _search(model: PreTrainedModel, batch: Batch, settings: BeamSettings) -> tuple[Tensor, Tensor]:
    """Tokens (B, returned, L) and scores (B, returned)."""
    ids, device, k, longest = model.generation_config, batch.input_ids.device, settings.k, settings.max_new_tokens
    rules = TokenRules.of(ids, device, start=start_length(model, batch), length=longest)
    processors = StockProcessors.of(model, batch)
    n_ends = 0 if rules.eos is None else len(rules.eos)
    n_candidates = max(2, 1 + n_ends) * k  # with so many, k go on even if all others end
    state = Hypotheses.of(len(batch.input_ids), settings, ids.pad_token_id or 0, device)
    final = state.some(state.inputs)

    def allow(log_probs: Tensor, rows: slice, step: int) -> Tensor:
        if processors is not None:
            inputs = state.inputs.repeat_interleave(k)[rows]
            log_probs = processors.apply(log_probs, inputs, state.tokens.flatten(0, 1)[rows, :step])
        return rules.apply(log_probs, step)

    with open_decoder(model, batch, k, beams=True) as decoder:
        logits = decoder.read()
        places, n_held = state.inputs, len(state.inputs)  # places (n,) among those in the decoder
        for step in range(longest):
            allow_here = partial(allow, step=step)
            best = _best_first(logits, k, n_candidates, allow_here) if step == 0 and processors is None else None
            best = best or best_tokens(logits, state.scores, n_candidates, allow_here)
            is_last = step + 1 == longest
            ended = torch.full_like(best.tokens, is_last, dtype=torch.bool)
            if rules.eos is not None:
                ended |= torch.isin(best.tokens, rules.eos)
            parents = state.advance(best, ended, step, settings)
            settled = state.settled(step + 1, settings) | is_last
            if settled.any():
                final.put(state.some(settled))
                state, parents, places = state.some(~settled), parents[~settled], places[~settled]
            if not len(places):
                break
            if len(places) <= (1 - COMPACTION_THRESHOLD) * n_held:
                decoder.keep(_rows_of(places, k))
                places, n_held = torch.arange(len(places), device=device), len(places)
            live, tokens = _rows_of(places, k), places.new_zeros(n_held * k)
            rows = torch.arange(n_held * k, device=device)
            rows[live] = (places[:, None] * k + parents).flatten()
            tokens[live] = state.tokens[:, :, step].flatten()
            decoder.follow(rows)
            logits = decoder.step(tokens, live)
    tokens, scores, lengths = (
        each[:, : settings.returned] for each in (final.found, final.found_scores, final.found_lengths)
    )
    return tokens[:, :, : int(lengths.max())], scores


def _best_first(
    logits: LazyLogits, k: int, n_candidates: int, allow: Callable[[Tensor, slice], Tensor]
) -> Candidates | None:
    """The best first tokens, from the first of the k equal rows of each input.

    None if the vocabulary is small, or too few tokens are allowed, so that other beams are among the best.
    """
    if logits.vocab_size < max(SMALL_VOCABULARY, n_candidates):
        return None
    device = logits.rows.device
    first = logits.rows_of(torch.arange(0, len(logits), k, device=device))
    best = best_tokens(first, torch.zeros(len(first), 1, device=device), n_candidates, allow)
    return best if bool((best.scores > IMPOSSIBLE).all()) else None


def _rows_of(places: Tensor, k: int) -> Tensor:
    """(n * k,) the rows of the inputs at these places (n,)."""
    return (places[:, None] * k + torch.arange(k, device=places.device)).flatten()
