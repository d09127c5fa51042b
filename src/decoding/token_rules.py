"""Rules about which tokens may be written next."""

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

from src.models.generation_config import settings_of
from src.tokens.batch import Batch

PROCESSED = {
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
}  # by `generate`'s own classes


@dataclass(frozen=True)
class Processors:
    """Those of `generate`, in its order, for the settings that PROCESSED names.

    read, without_padding (B, ·): what the decoder reads before the first new token, and the same with a token of the
    prompt in place of its padding, which is not to be penalized.
    """

    penalty: RepetitionPenaltyLogitsProcessor | None
    others: Any  # a LogitsProcessorList, whose types are too narrow
    read: Tensor
    without_padding: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, batch: Batch) -> "Processors | None":
        settings, eos = settings_of(model.generation_config), model.generation_config.eos_token_id
        if not settings.keys() & PROCESSED:
            return None
        penalty = settings.get("repetition_penalty")
        read = without_padding = batch.input_ids
        if model.config.is_encoder_decoder:
            start = single_start(model.generation_config)
            read = without_padding = batch.input_ids.new_full((len(batch.input_ids), 1), start)
        else:
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
        """Logits (N, V) of rows that read `inputs` (N,) and have written (N, L) tokens."""
        if self.penalty is not None:
            logits = self.penalty(torch.cat([self.without_padding[inputs], written], dim=1), logits)
        return self.others(torch.cat([self.read[inputs], written], dim=1), logits)


@dataclass(frozen=True)
class Rules:
    """Which tokens a generation config ends on, never allows, and allows alone at a step (in the order of `generate`).

    A forced token may be one of `bad`, but none of `suppressed`.
    """

    eos: Tensor | None
    bad: Tensor
    suppressed: Tensor
    forced: dict[int, Tensor]

    @classmethod
    def of(cls, ids: GenerationConfig, device: torch.device, *, start: int, length: int) -> "Rules":
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
        """Logits (N, V), changed in place, for the new token number `step`."""
        if step in self.forced:
            logits = logits.fill_(-torch.inf).index_fill_(1, self.forced[step], 0)
        elif len(self.bad):
            logits = logits.index_fill_(1, self.bad, -torch.inf)
        return logits.index_fill_(1, self.suppressed, -torch.inf) if len(self.suppressed) else logits

    def ends(self, tokens: Tensor) -> Tensor | None:
        """(N,) whether tokens (N,) end their rows; None if nothing does."""
        return None if self.eos is None else torch.isin(tokens, self.eos)


def _as_list(tokens: int | list[int] | None) -> list[int]:
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)


def single_start(ids: GenerationConfig) -> int:
    """The token that all targets start with; `why_unsupported` has seen to it that there is one."""
    token = start_token(ids)
    assert isinstance(token, int)
    return token


def start_token(ids: GenerationConfig) -> int | list[int] | None:
    return ids.bos_token_id if ids.decoder_start_token_id is None else ids.decoder_start_token_id
