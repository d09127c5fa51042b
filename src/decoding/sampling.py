"""Sampling and greedy search, made for many targets of one input.

Gives what `generate` gives, with less work: each input is read once instead of once per target (encoder, prompt, and
cross-attention's keys and values), caches grow in place, ended rows leave, and the vocabulary is not sorted.
Shapes: B inputs, K targets per input, R rows of the decoder, N of them not ended, L new tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import PreTrainedModel

from src.decoding.decoders import open_decoder
from src.decoding.nucleus import Nucleus, draw
from src.decoding.token_rules import StockProcessors, TokenRules
from src.models.families import head_shape, layer_counts
from src.models.lazy_logits import LazyLogits
from src.tokens.batch import Batch

COMPACTION_THRESHOLD = 1 / 8  # share of ended rows at which the others are copied; 0.03 to 0.3 are about as fast
MEMORY, SHARE_OF_GPU = 2**31, 1 / 4  # bytes of caches and logits at once: 2 GiB, or this share of a GPU's memory
COPIES_OF_LOGITS = 3  # alive in one step


@torch.no_grad()
def sample(
    model: PreTrainedModel, batch: Batch, nucleus: Nucleus | None, *, max_new_tokens: int, targets_per_input: int = 1
) -> Tensor:
    """(B * K, L) new tokens, the K targets of one input adjacent; the pad token after EOS.

    nucleus: what to draw from; None for the most probable tokens (greedy search). The distribution is that of
    `generate` with the model's generation config. `why_unsupported(model)` must be None. Random numbers come from
    torch's generator of the model's device. Writes for as many inputs at once as fit into MEMORY.
    """

    def write(part: Batch) -> Tensor:
        return _sample(model, part, nucleus, max_new_tokens, targets_per_input)

    return torch.cat(in_parts(write, model, batch, max_new_tokens, targets_per_input))


def in_parts(
    write: Callable[[Batch], Tensor], model: PreTrainedModel, batch: Batch, max_new_tokens: int, k: int
) -> list[Tensor]:
    """What `write` gives for parts of a batch whose k rows per input fit into MEMORY, padded to the same length."""
    parts = [write(part) for part in _split(batch, inputs_at_once(model, batch, max_new_tokens, k))]
    longest = max(part.shape[-1] for part in parts)
    pad = model.generation_config.pad_token_id or 0
    return [F.pad(part, (0, longest - part.shape[-1]), value=pad) for part in parts]


def inputs_at_once(model: PreTrainedModel, batch: Batch, max_new_tokens: int, k: int) -> int:
    """Inputs, at least one, whose k rows each have keys, values and logits that fit into MEMORY.

    Does not depend on what is free: the drawn tokens depend on this number.
    """
    device = batch.input_ids.device
    memory = MEMORY
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory * SHARE_OF_GPU)
    config = model.config.get_text_config(decoder=True)
    length = start_length(model, batch) + max_new_tokens
    states = 2 * layer_counts(model.config)["decoder"] * head_shape(config, "dec_sa").width("k") * length
    row = states * model.dtype.itemsize + COPIES_OF_LOGITS * 4 * config.vocab_size
    return max(1, memory // row // k)


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch's inputs, `size` at a time."""
    for start in range(0, len(batch.input_ids), size):
        part = slice(start, start + size)
        yield Batch(batch.input_ids[part], batch.attention_mask[part], None, batch.rows[part])


def start_length(model: PreTrainedModel, batch: Batch) -> int:
    """The number of tokens that the decoder reads before the first new one."""
    return 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1]


def _sample(model: PreTrainedModel, batch: Batch, nucleus: Nucleus | None, max_new_tokens: int, k: int) -> Tensor:
    ids = model.generation_config
    n_rows = len(batch.input_ids) * k
    targets = batch.input_ids.new_full((n_rows, max_new_tokens), ids.pad_token_id or 0)
    rules = TokenRules.of(ids, targets.device, start=start_length(model, batch), length=max_new_tokens)
    processors = StockProcessors.of(model, batch)
    rows = torch.arange(n_rows, device=targets.device)  # (R,) the target that each row of the decoder writes
    live = rows  # (N,) places among the R rows of those that have not ended

    def allow(logits: Tensor, part: slice, step: int) -> Tensor:
        """Logits of a part of the live rows, −inf for what the generation config forbids."""
        if processors is not None:
            numbers = rows[live][part]
            logits = processors.apply(logits, numbers // k, targets[numbers, :step])
        return rules.apply(logits, step)

    with open_decoder(model, batch, k) as decoder:
        logits = decoder.read()
        for step in range(max_new_tokens):
            tokens = _next_tokens(logits, partial(allow, step=step), nucleus)
            targets[rows[live], step] = tokens
            if rules.eos is not None:
                live = live[~torch.isin(tokens, rules.eos)]
            if step + 1 == max_new_tokens or not len(live):
                break
            if len(live) <= (1 - COMPACTION_THRESHOLD) * len(rows):
                decoder.keep(live)
                rows = rows[live]
                live = torch.arange(len(rows), device=rows.device)
            logits = decoder.step(targets[rows, step], live)
    return targets[:, : step + 1]


def _next_tokens(logits: LazyLogits, allow: Callable[[Tensor, slice], Tensor], nucleus: Nucleus | None) -> Tensor:
    """(N,) a token for each row of logits (N, V), a few rows at a time."""
    logits, tokens = logits.cast(), []
    for part in logits.chunks():
        allowed = allow(logits.some(part), part)
        tokens.append(allowed.argmax(dim=-1) if nucleus is None else draw(allowed, nucleus))
    return torch.cat(tokens)
