"""Writing text with a model: the eight generation types, on `generate` of stock models.

Shapes: B inputs, S source tokens, K targets per input, L new tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.data.batches import Batch
from src.models.diverse_beams import diverse_beam_search

TOP_P = 0.95
SAMPLING_TEMPERATURES = {"sampling": 1.0, "sampling_low": 0.75, "sampling_high": 1.5}
LENGTH_PENALTIES = {"beam_search": 1.0, "beam_search_short": 0.4, "beam_search_long": 2.0}


@dataclass(frozen=True)
class Decoding:
    """How to write: arguments of `generate`, and the loop that replaces its own where transformers has none."""

    arguments: dict[str, Any]
    max_new_tokens: int
    targets_per_input: int = 1
    loop: Callable | None = None


def decoding_of(generation_type: str, *, num_beams: int, targets_per_input: int, max_new_tokens: int) -> Decoding:
    """The generation types of SPEC §2. Sampling uses top-p 0.95, no top-k, and no beams."""
    nucleus = {"do_sample": True, "top_p": TOP_P, "top_k": 0, "temperature": 1.0}
    if generation_type in SAMPLING_TEMPERATURES:
        arguments = nucleus | {"temperature": SAMPLING_TEMPERATURES[generation_type], "num_beams": 1}
        return Decoding(arguments, max_new_tokens, targets_per_input)
    if generation_type == "diverse_beam_search":
        groups = num_beams // 2
        arguments = {"do_sample": False, "num_beams": num_beams}
        return Decoding(arguments, max_new_tokens, targets_per_input, loop=diverse_beam_search(groups, penalty=0.1))
    if generation_type == "sampling_beam_search":
        return Decoding(nucleus | {"num_beams": num_beams}, max_new_tokens, targets_per_input)
    arguments = {"do_sample": False, "num_beams": num_beams, "length_penalty": LENGTH_PENALTIES[generation_type]}
    return Decoding(arguments, max_new_tokens, targets_per_input)


@torch.no_grad()
def write_tokens(model: PreTrainedModel, batch: Batch, decoding: Decoding) -> Tensor:
    """(B * K, L) new tokens only, the K targets of one input adjacent; padded with the pad token after EOS.

    The model's train/eval mode is the caller's business.
    """
    written = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=decoding.max_new_tokens,
        num_return_sequences=decoding.targets_per_input,
        custom_generate=decoding.loop,
        **decoding.arguments,
    )
    start = 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1]
    return _padded_after_eos(written[:, start:], model.generation_config)


def _padded_after_eos(tokens: Tensor, ids: GenerationConfig) -> Tensor:
    """Tokens (B, L) with the pad token after the first EOS; `generate` fills up with EOS where the pad token is 0."""
    return tokens.masked_fill(behind_eos(tokens, ids), ids.pad_token_id or 0)


def behind_eos(tokens: Tensor, ids: GenerationConfig) -> Tensor:
    """(B, L) where tokens (B, L) are behind the first EOS, whatever fills them up; nowhere if the model has no EOS."""
    if ids.eos_token_id is None:
        return torch.zeros_like(tokens, dtype=torch.bool)
    ends = torch.isin(tokens, torch.tensor(ids.eos_token_id, device=tokens.device)).long()
    return ends.cumsum(dim=1) - ends > 0


def to_texts(tokenizer: PreTrainedTokenizerBase, tokens: Tensor | Sequence[Sequence[int]]) -> list[str]:
    """Token rows as texts without special tokens and without surrounding white space."""
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]
