"""Which tokens a generation config forces, forbids or penalizes at each step.

Shapes: B inputs, N rows, L tokens written so far, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from src.models.generation_config import changed_settings
from src.tokens.batch import Batch

PROCESSED = {"repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens"}  # by `generate`'s classes


@dataclass(frozen=True)
class StockProcessors:
    """The logits processors of `generate` for the settings in PROCESSED, in its order.

    read (B, ·): what the decoder reads before the first new token. without_padding (B, ·): the same with the prompt's
    last token in place of padding, so that the pad token is not penalized.
    """

    penalty: RepetitionPenaltyLogitsProcessor | None
    others: Any  # a LogitsProcessorList, annotated too narrowly
    read: Tensor
    without_padding: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, batch: Batch) -> "StockProcessors | None":
        settings, eos = changed_settings(model.generation_config), model.generation_config.eos_token_id
        if not settings.keys() & PROCESSED:
            return None
        penalty = settings.get("repetition_penalty")
        if model.config.is_encoder_decoder:
            start = single_start(model.generation_config)
            read = without_padding = batch.input_ids.new_full((len(batch.input_ids), 1), start)
        else:
            read = batch.input_ids
            without_padding = torch.where(batch.attention_mask.bool(), read, read[:, -1:])
        device, others = str(read.device), LogitsProcessorList()
        if "no_repeat_ngram_size" in settings:
            others.append(NoRepeatNGramLogitsProcessor(settings["no_repeat_ngram_size"]))
        if eos is not None and "min_length" in settings:
            others.append(MinLengthLogitsProcessor(settings["min_length"], eos, device=device))
        if eos is not None and "min_new_tokens" in settings:
            least = settings["min_new_tokens"]
            others.append(MinNewTokensLengthLogitsProcessor(read.shape[1], least, eos, device=device))
        return cls(penalty and RepetitionPenaltyLogitsProcessor(penalty), others, read, without_padding)

    def apply(self, logits: Tensor, inputs: Tensor, written: Tensor) -> Tensor:
        """Processed logits (N, V) of rows that read the inputs of these numbers (N,) and have written (N, L) tokens."""
        if self.penalty is not None:
            logits = self.penalty(torch.cat([self.without_padding[inputs], written], dim=1), logits)
        return self.others(torch.cat([self.read[inputs], written], dim=1), logits)


@dataclass(frozen=True)
class TokenRules:
    """Ids of tokens that end a text, that are forbidden, and that are forced at a step.

    bad, suppressed: both forbidden; only a `bad` token may be forced (as in `generate`).
    """

    eos: Tensor | None
    bad: Tensor
    suppressed: Tensor
    forced: dict[int, Tensor]

    @classmethod
    def of(cls, ids: GenerationConfig, device: torch.device, *, start: int, length: int) -> "TokenRules":
        def tensor(tokens: int | list[int] | None) -> Tensor:
            return torch.tensor(_as_list(tokens), dtype=torch.long, device=device)

        eos = _as_list(ids.eos_token_id)
        bad = [token for [token] in ids.bad_words_ids or () if token not in eos]
        forced = {}
        if start == 1 and ids.forced_bos_token_id is not None:
            forced[0] = tensor(ids.forced_bos_token_id)
        if ids.forced_eos_token_id is not None:
            forced[length - 1] = tensor(ids.forced_eos_token_id)
        return cls(tensor(eos) if eos else None, tensor(bad), tensor(ids.suppress_tokens), forced)

    def apply(self, logits: Tensor, step: int) -> Tensor:
        """Set forbidden logits (N, V) of the new token number `step` to −inf, in place."""
        if step in self.forced:
            logits = logits.fill_(-torch.inf).index_fill_(1, self.forced[step], 0)
        elif len(self.bad):
            logits = logits.index_fill_(1, self.bad, -torch.inf)
        return logits.index_fill_(1, self.suppressed, -torch.inf) if len(self.suppressed) else logits


def _as_list(tokens: int | list[int] | None) -> list[int]:
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)


def single_start(ids: GenerationConfig) -> int:
    """The token that all targets start with; `why_unsupported` refuses models without one."""
    token = start_token(ids)
    assert isinstance(token, int)
    return token


def start_token(ids: GenerationConfig) -> int | list[int] | None:
    """The token that an encoder-decoder model's targets start with; a list has one per row."""
    return ids.bos_token_id if ids.decoder_start_token_id is None else ids.decoder_start_token_id
