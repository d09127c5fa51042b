"""Run a model token by token for K targets or beams of each input, reading the input once.

Shapes: B inputs, S source tokens, K targets per input, R rows of the decoder, N of them not ended, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from src.decoding.beam_cache import BeamTree
from src.decoding.grouped_attention import AttentionByInput, attention_by_input
from src.decoding.kv_cache import growing_cache
from src.decoding.token_rules import single_start
from src.models.lazy_logits import LazyLogits, OutputProjection, agree, as_seen, output_projection
from src.tokens.batch import Batch


@contextmanager
def open_decoder(model: PreTrainedModel, batch: Batch, k: int, *, beams: bool = False) -> Iterator["Decoder"]:
    """Within: a decoder that writes K targets per input; the model's output projection reads what the decoder needs.

    beams: whether the K are beams, which `follow` reorders, and of which `keep` keeps whole inputs.
    """
    with attention_by_input() as attention:
        kind = _EncoderDecoder if model.config.is_encoder_decoder else _DecoderOnly
        decoder = kind(model, batch, k, attention)
        decoder.has_beams = beams
        handle = model.get_output_embeddings().register_forward_pre_hook(decoder.last_of_live)
        try:
            yield decoder
        finally:
            handle.remove()


class Decoder:
    """Runs a model token by token with a cache: first one row per input, then K, then those that have not ended."""

    has_beams = False

    def __init__(self, model: PreTrainedModel, batch: Batch, k: int, attention: AttentionByInput) -> None:
        self._model = model
        self._attention = attention
        self._k = k
        self._own: Any = growing_cache()  # self-attention's keys and values
        self._inputs = torch.arange(len(batch.input_ids), device=batch.input_ids.device).repeat_interleave(k)  # (R,)
        self._mask = batch.attention_mask
        self._live: Tensor | None = None  # None: all rows, in `read`
        self._projection: OutputProjection | None = None  # None: the model's own module computes the logits
        self._seen = LazyLogits(torch.empty(0))

    def read(self) -> LazyLogits:
        """(B * K, V) logits of the first new token. Afterwards there are K rows per input."""
        raise NotImplementedError

    def step(self, tokens: Tensor, live: Tensor) -> LazyLogits:
        """(N, V) logits of the token after tokens (R,), for the rows `live` (N,) of the R."""
        raise NotImplementedError

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending)."""
        raise NotImplementedError

    def follow(self, parents: Tensor) -> None:
        """Row r goes on from what row parents[r] (R,), of the same input, has written. To be called before each step
        with beams."""
        if self._attention.tree is None:
            self._own.reorder_cache(parents)
        else:
            self._attention.tree.follow(parents)

    def _branch(self, read: Tensor) -> None:
        """From one row of self-attention per input to K. read (B, T): 0 where padding was read."""
        if self.has_beams and self._attention.covers(self._own, with_bias=True):
            self._attention.tree = BeamTree(self._own, self._k, read)
        else:
            self._own.reorder_cache(self._inputs)

    def _keep_own(self, rows: Tensor) -> None:
        if self._attention.tree is None:
            self._own.reorder_cache(rows)
        else:
            self._attention.tree.keep(rows[:: self._k] // self._k)

    def last_of_live(self, _: Any, args: tuple) -> tuple:
        """A forward pre-hook of the output projection: keeps the last position of the live rows, and passes it on only
        if the model's own module computes the logits."""
        hidden = args[0][:, -1:]
        hidden = hidden if self._live is None else hidden.index_select(0, self._live)
        self._seen = as_seen(hidden[:, 0])
        return (hidden if self._projection is None else hidden[:0], *args[1:])

    def _first(self, **inputs: Any) -> LazyLogits:
        """As `_logits`; afterwards `OutputProjection` computes the logits, if it gives those of the model here."""
        logits = self._run(**inputs)
        projection = output_projection(self._model)
        if projection is None or not agree(self._seen, projection, logits):
            return LazyLogits(logits)
        cast = replace(self._seen, projection=projection).cast().projection
        assert cast is not None
        self._projection = cast.packed()
        return replace(self._seen, projection=self._projection)

    def _logits(self, **inputs: Any) -> LazyLogits:
        logits = self._run(**inputs)
        return LazyLogits(logits) if self._projection is None else replace(self._seen, projection=self._projection)

    def _run(self, **inputs: Any) -> Tensor:
        return self._model(**inputs, attention_mask=self._mask, use_cache=True, return_dict=True).logits[:, -1]


class _EncoderDecoder(Decoder):
    """Stores cross-attention's keys and values once per input, if the model attends through `AttentionByInput`."""

    def __init__(self, model: PreTrainedModel, batch: Batch, k: int, attention: AttentionByInput) -> None:
        super().__init__(model, batch, k, attention)
        encoder = model.get_encoder()
        self._encoded = encoder(input_ids=batch.input_ids, attention_mask=self._mask, return_dict=True)[0]
        self._cross: Any = DynamicCache()
        self._cache = EncoderDecoderCache(self._own, self._cross)
        self._by_input = False

    def read(self) -> LazyLogits:
        start = self._mask.new_full((len(self._mask), 1), single_start(self._model.generation_config))
        with self._attention.watching():
            logits = self._first(**self._inputs_of(start))
        self._by_input = self._attention.covers(self._cross)
        self._branch(torch.ones_like(start))
        if self._by_input:
            self._attention.group(self._inputs)
        else:
            self._keep_source(self._inputs)
        return logits.rows_of(self._inputs)

    def step(self, tokens: Tensor, live: Tensor) -> LazyLogits:
        self._live = live
        return self._logits(**self._inputs_of(tokens[:, None]))

    def keep(self, rows: Tensor) -> None:
        self._keep_own(rows)
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


class _DecoderOnly(Decoder):
    """Reads each prompt once; K targets then copy its keys and values, and K beams share them."""

    def __init__(self, model: PreTrainedModel, batch: Batch, k: int, attention: AttentionByInput) -> None:
        super().__init__(model, batch, k, attention)
        self._prompts = batch.input_ids
        self._takes_positions = "position_ids" in signature(type(model).forward).parameters
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)

    def read(self) -> LazyLogits:
        with self._attention.watching():
            logits = self._first(**self._inputs_of(self._prompts))
        self._branch(self._mask)
        self._mask = self._mask[self._inputs]
        self._positions = self._positions[self._inputs, -1:]
        return logits.rows_of(self._inputs)

    def step(self, tokens: Tensor, live: Tensor) -> LazyLogits:
        self._live = live
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions + 1
        return self._logits(**self._inputs_of(tokens[:, None]))

    def keep(self, rows: Tensor) -> None:
        self._keep_own(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _inputs_of(self, tokens: Tensor) -> dict[str, Any]:
        positions = {"position_ids": self._positions} if self._takes_positions else {}
        return {"input_ids": tokens, "past_key_values": self._own, **positions}
