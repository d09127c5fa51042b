"""A decoding loop for sampling and greedy search on stock models, made for many targets of one input.

What `generate` does, with less work: an input is read once, not once per target (encoder and prompt, and the keys and
values of cross-attention); caches grow in place; rows that have ended leave; the vocabulary is not sorted.
Shapes: B inputs, S source tokens, K targets per input, R rows of the decoder, N of them not ended, L new tokens, V
vocabulary.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from src.decoding.grouped_attention import AttentionByInput, attends_fully, attention_by_input
from src.decoding.kv_cache import growing_cache
from src.decoding.nucleus import Nucleus, draw
from src.decoding.token_rules import PROCESSED, Processors, Rules, single_start, start_token
from src.models.families import knows_layers, layer_counts
from src.models.generation_config import NEUTRAL
from src.models.lazy_logits import LazyLogits, OutputProjection, Seen, agree, output_projection
from src.models.projections import head_shape
from src.tokens.batch import Batch

COMPACTION_THRESHOLD = 1 / 8  # share of ended rows at which the others are copied; 0.03 to 0.3 are about as fast


MEMORY, SHARE_OF_GPU = 2**31, 1 / 4  # bytes for what is written at once: 2 GiB, or this share of a GPU's memory


COPIES_OF_LOGITS = 3  # that are alive in a step


HONORED = {
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "bad_words_ids",
}  # fmt: skip


DECIDED_BY_THE_CALLER = {
    "do_sample", "num_beams", "temperature", "top_k", "top_p", "num_return_sequences", "max_length", "max_new_tokens",
}  # fmt: skip


WITHOUT_EFFECT = {  # here: on beams, on speed, on what else is returned
    "early_stopping", "length_penalty", "use_cache", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "return_dict_in_generate", "transformers_version", "_from_model_config", "disable_compile",
    "compile_config", "prefill_chunk_size",
}  # fmt: skip


log = logging.getLogger(__name__)


def why_unsupported(model: PreTrainedModel) -> str | None:
    """What keeps `sample` from this model, in words; None if nothing does.

    Known are the families of `families.py`, and the fields of a generation config that are listed here: whatever else
    is set there, `generate` may act upon.
    """
    fields = unknown_fields(model.generation_config, known=PROCESSED)
    if fields:
        return f"its generation config sets {' '.join(fields)}"
    if not knows_layers(model.config):
        return f"the model type {model.config.model_type!r} is not known"
    if not attends_fully(model):
        return "its cache holds something else than all tokens' keys and values"
    kind: Any = type(model)
    stock = (GenerationMixin.generate, GenerationMixin.prepare_inputs_for_generation)
    if (kind.generate, kind.prepare_inputs_for_generation) != stock:
        return f"{kind.__name__} prepares its inputs in its own way"
    if model.config.is_encoder_decoder and not isinstance(start_token(model.generation_config), int):
        return "its targets have no single start token"
    if model.get_output_embeddings() is None:
        return f"{kind.__name__} names no output projection"
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing keeps no cache in training mode"
    return None


@cache
def warn_of_generate(reason: str) -> None:
    """Say, once for each reason, that `generate` does the work."""
    log.warning("writing by transformers' `generate`, which is slower: %s", reason)


def unknown_fields(ids: GenerationConfig, *, known: Collection[str] = ()) -> list[str]:
    """Fields of a generation config with a value that might matter, but for `known` ones and those listed here."""
    ignored = HONORED | DECIDED_BY_THE_CALLER | WITHOUT_EFFECT | set(known)
    values = {name: value for name, value in ids.to_dict().items() if name not in ignored and value is not None}
    unknown = [name for name, value in values.items() if name not in NEUTRAL or value != NEUTRAL[name]]
    if any(len(words) != 1 for words in ids.bad_words_ids or ()):
        unknown.append("bad_words_ids")
    return unknown


@torch.no_grad()
def sample(
    model: PreTrainedModel, batch: Batch, nucleus: Nucleus | None, *, max_new_tokens: int, targets_per_input: int = 1
) -> Tensor:
    """(B * K, L) new tokens, drawn from the nucleus, or the most probable ones if it is None; the pad token after EOS.

    The K targets of one input are adjacent. The distribution is that of `generate` with the model's generation config;
    `why_unsupported(model)` must be None. Random numbers come from torch's generator of the model's device. As many
    inputs are written for at once as caches and logits of their targets fit into MEMORY.
    """
    at_once = max(1, _rows_that_fit(model, batch, max_new_tokens) // targets_per_input)
    parts = [_sample(model, part, nucleus, max_new_tokens, targets_per_input) for part in _split(batch, at_once)]
    longest = max(part.shape[1] for part in parts)
    pad = model.generation_config.pad_token_id or 0
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=pad) for part in parts])


def _rows_that_fit(model: PreTrainedModel, batch: Batch, max_new_tokens: int) -> int:
    """Rows of the decoder whose keys, values and logits take a share of the device's memory. The same on every call:
    what is drawn depends on it."""
    device = batch.input_ids.device
    memory = MEMORY
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory * SHARE_OF_GPU)
    config = model.config.get_text_config(decoder=True)
    length = _start_length(model, batch) + max_new_tokens
    states = 2 * layer_counts(model.config)["decoder"] * head_shape(config, "dec_sa").width("k") * length
    return memory // (states * model.dtype.itemsize + COPIES_OF_LOGITS * 4 * config.vocab_size)


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch's inputs, `size` at a time."""
    for start in range(0, len(batch.input_ids), size):
        part = slice(start, start + size)
        yield Batch(batch.input_ids[part], batch.attention_mask[part], None, batch.rows[part])


def _sample(model: PreTrainedModel, batch: Batch, nucleus: Nucleus | None, max_new_tokens: int, k: int) -> Tensor:
    ids = model.generation_config
    n_rows = len(batch.input_ids) * k
    targets = batch.input_ids.new_full((n_rows, max_new_tokens), ids.pad_token_id or 0)
    rules = Rules.of(ids, batch.input_ids.device, start=_start_length(model, batch), length=max_new_tokens)
    processors = Processors.of(model, batch)
    rows = _Rows(*(torch.arange(n_rows, device=targets.device) for _ in range(2)))

    def allow(logits: Tensor, part: slice, step: int) -> Tensor:
        """Logits of a part of the live rows after what the generation config forbids."""
        if processors is not None:
            numbers = rows.numbers[rows.live][part]
            logits = processors.apply(logits, numbers // k, targets[numbers, :step])
        return rules.apply(logits, step)

    with _decoder(model, batch, k) as decoder:
        scores = decoder.read()
        memory = _memory(scores)
        for step in range(max_new_tokens):
            tokens = _next_tokens(scores, partial(allow, step=step), nucleus, memory)
            targets[rows.numbers[rows.live], step] = tokens
            rows.end(rules.ends(tokens))
            if step + 1 == max_new_tokens or not len(rows.live):
                break
            if len(rows.live) <= (1 - COMPACTION_THRESHOLD) * len(rows.numbers):
                decoder.keep(rows.live)
                rows.leave()
            scores = decoder.step(targets[rows.numbers, step], rows.live)
    return targets[:, : step + 1]


def _memory(scores: LazyLogits) -> Tensor | None:
    """(C, V) for the logits of all steps; None where something else makes them with memory of their own."""
    if scores.projection is None or scores.projection.layout is not None:
        return None
    size = (min(scores.rows_at_once, len(scores)), scores.vocab_size)
    dtype = torch.promote_types(scores.rows.dtype, torch.float32)
    return torch.empty(size, dtype=dtype, device=scores.rows.device)


def _next_tokens(
    scores: LazyLogits, allow: Callable[[Tensor, slice], Tensor], nucleus: Nucleus | None, memory: Tensor | None
) -> Tensor:
    """(N,) a token for each row of scores (N, V), of whose logits only (C, V) exist at once."""
    scores, tokens = scores.cast(), []
    for part in scores.chunks():
        logits = allow(scores.some(part, None if memory is None else memory[: part.stop - part.start]), part)
        tokens.append(logits.argmax(dim=-1) if nucleus is None else draw(logits, nucleus))
    return torch.cat(tokens)


@dataclass
class _Rows:
    """The rows of the decoder. numbers (R,): which target each writes; live (N,): those that have not ended."""

    numbers: Tensor
    live: Tensor

    def end(self, ended: Tensor | None) -> None:
        """ended (N,): which of the live rows have now ended."""
        if ended is not None:
            self.live = self.live[~ended]

    def leave(self) -> None:
        """The decoder has kept the live rows alone."""
        self.numbers = self.numbers[self.live]
        self.live = torch.arange(len(self.numbers), device=self.live.device)


def _start_length(model: PreTrainedModel, batch: Batch) -> int:
    """The tokens that the decoder reads before the first new one."""
    return 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1]


@contextmanager
def _decoder(model: PreTrainedModel, batch: Batch, k: int) -> Iterator["_Decoder"]:
    """A decoder of the batch; within, the output projection sees the last position of the live rows, nothing else."""
    with attention_by_input() as attention:
        kind = _EncoderDecoder if model.config.is_encoder_decoder else _DecoderOnly
        decoder = kind(model, batch, k, attention)
        handle = model.get_output_embeddings().register_forward_pre_hook(decoder.last_of_live)
        try:
            yield decoder
        finally:
            handle.remove()


class _Decoder:
    """Runs a model one token further, with what it has to remember: first a row per input, then K, then those left."""

    def __init__(self, model: PreTrainedModel, batch: Batch, k: int, attention: AttentionByInput) -> None:
        self._model = model
        self._attention = attention
        self._inputs = torch.arange(len(batch.input_ids), device=batch.input_ids.device).repeat_interleave(k)  # (R,)
        self._mask = batch.attention_mask
        self._live: Tensor | None = None  # while reading: all
        self._projection: OutputProjection | None = None  # while reading, and where it is not understood
        self._seen = Seen()

    def read(self) -> LazyLogits:
        """(B * K, V) scores of the first new token; from now on there are K rows per input."""
        raise NotImplementedError

    def step(self, tokens: Tensor, live: Tensor) -> LazyLogits:
        """(N, V) scores of the next token after tokens (R,), of the rows `live` (N,)."""
        raise NotImplementedError

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, ascending."""
        raise NotImplementedError

    def last_of_live(self, _: Any, args: tuple) -> tuple:
        """A forward pre-hook of the output projection: it gets the rows that are wanted, or none if they are kept."""
        hidden = args[0][:, -1:]
        hidden = hidden if self._live is None else hidden.index_select(0, self._live)
        self._seen = Seen.of(hidden[:, 0])
        return (hidden if self._projection is None else hidden[:0], *args[1:])

    def _first(self, **inputs: Any) -> LazyLogits:
        """As `_scores`; from now on the model's own projection is left out if it is understood."""
        logits = self._run(**inputs)
        projection = output_projection(self._model)
        if projection is None or not agree(self._seen, projection, logits):
            return LazyLogits(logits)
        cast = self._seen.scores(projection).cast().projection
        assert cast is not None
        self._projection = cast.packed()
        return self._seen.scores(self._projection)

    def _scores(self, **inputs: Any) -> LazyLogits:
        logits = self._run(**inputs)
        return LazyLogits(logits) if self._projection is None else self._seen.scores(self._projection)

    def _run(self, **inputs: Any) -> Tensor:
        return self._model(**inputs, attention_mask=self._mask, use_cache=True, return_dict=True).logits[:, -1]


class _EncoderDecoder(_Decoder):
    """Cross-attention's keys and values are kept once per input if the model attends by `AttentionByInput`."""

    def __init__(self, model: PreTrainedModel, batch: Batch, k: int, attention: AttentionByInput) -> None:
        super().__init__(model, batch, k, attention)
        encoder = model.get_encoder()
        self._encoded = encoder(input_ids=batch.input_ids, attention_mask=self._mask, return_dict=True)[0]
        self._own: Any = growing_cache()
        self._cross: Any = DynamicCache()
        self._cache = EncoderDecoderCache(self._own, self._cross)
        self._by_input = False

    def read(self) -> LazyLogits:
        start = single_start(self._model.generation_config)
        self._attention.watch()
        scores = self._first(**self._inputs_of(self._mask.new_full((len(self._mask), 1), start)))
        self._by_input = self._attention.covers(self._cross)
        self._own.reorder_cache(self._inputs)
        if self._by_input:
            self._attention.group(self._inputs)
        else:
            self._keep_source(self._inputs)
        return scores.rows_of(self._inputs)

    def step(self, tokens: Tensor, live: Tensor) -> LazyLogits:
        self._live = live
        return self._scores(**self._inputs_of(tokens[:, None]))

    def keep(self, rows: Tensor) -> None:
        self._own.reorder_cache(rows)
        if not self._by_input:
            self._keep_source(rows)
            return
        left, self._inputs = self._inputs[rows].unique_consecutive(return_inverse=True)
        if len(left) < len(self._mask):
            self._keep_source(left)
        self._attention.group(self._inputs)

    def _keep_source(self, chosen: Tensor) -> None:
        self._cross.reorder_cache(chosen)
        self._encoded, self._mask = self._encoded[chosen], self._mask[chosen]

    def _inputs_of(self, tokens: Tensor) -> dict[str, Any]:
        encoded = BaseModelOutput(last_hidden_state=self._encoded)
        return {"decoder_input_ids": tokens, "encoder_outputs": encoded, "past_key_values": self._cache}


class _DecoderOnly(_Decoder):
    """The prompt is read once per input; its keys and values are then copied to the K rows."""

    def __init__(self, model: PreTrainedModel, batch: Batch, k: int, attention: AttentionByInput) -> None:
        super().__init__(model, batch, k, attention)
        self._prompts = batch.input_ids
        self._cache: Any = growing_cache()
        self._takes_positions = "position_ids" in signature(type(model).forward).parameters
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)

    def read(self) -> LazyLogits:
        scores = self._first(**self._inputs_of(self._prompts))
        self._cache.reorder_cache(self._inputs)
        self._mask = self._mask[self._inputs]
        self._positions = self._positions[self._inputs, -1:]
        return scores.rows_of(self._inputs)

    def step(self, tokens: Tensor, live: Tensor) -> LazyLogits:
        self._live = live
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions + 1
        return self._scores(**self._inputs_of(tokens[:, None]))

    def keep(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _inputs_of(self, tokens: Tensor) -> dict[str, Any]:
        positions = {"position_ids": self._positions} if self._takes_positions else {}
        return {"input_ids": tokens, "past_key_values": self._cache, **positions}
