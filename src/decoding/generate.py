"""Generate text with a model: by sampling or beam search of our own if they support it, otherwise by `generate`.

Shapes: B inputs, S source tokens, K targets per input, L new tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.config.constants import LENGTH, STOP
from src.config.errors import NotFiniteError
from src.decoding.beams import beam_search
from src.decoding.hypotheses import BeamSettings
from src.decoding.sampling import sample
from src.decoding.sampling_support import warn_of_generate, why_unsupported
from src.decoding.settings import Decoding
from src.models.compiled import run_eagerly
from src.models.packed_linear import packed_head
from src.tokens.batch import Batch


@torch.no_grad()
def write_tokens(model: PreTrainedModel, batch: Batch, decoding: Decoding) -> Tensor:
    """Generate (B * K, L) new tokens, the K targets of one input adjacent; the pad token after EOS.

    Does not set the model's train/eval mode. Raises NotFiniteError if the model computes NaN or infinity.
    """
    with run_eagerly(model), _finite_states(model):
        return _written(model, batch, decoding)


def _written(model: PreTrainedModel, batch: Batch, decoding: Decoding) -> Tensor:
    if decoding.loop is None and (decoding.num_beams == 1 or decoding.nucleus is None):
        reason = why_unsupported(model)
        if reason is None:
            return _written_by_us(model, batch, decoding)
        warn_of_generate(reason)
    with packed_head(model):
        generate: Any = model.generate
        written = generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **decoding.arguments)
    start = 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1]
    return _padded_after_eos(written[:, start:], model.generation_config)


def _written_by_us(model: PreTrainedModel, batch: Batch, decoding: Decoding) -> Tensor:
    length, k = decoding.max_new_tokens, decoding.targets_per_input
    if decoding.num_beams == 1:
        return sample(model, batch, decoding.nucleus, max_new_tokens=length, targets_per_input=k)
    ids = model.generation_config
    own = 1.0 if ids.length_penalty is None else ids.length_penalty
    penalty = own if decoding.length_penalty is None else decoding.length_penalty
    settings = BeamSettings(decoding.num_beams, k, length, penalty, ids.early_stopping or False)
    return beam_search(model, batch, settings)[0]


@contextmanager
def _finite_states(model: PreTrainedModel) -> Iterator[None]:
    """Raise NotFiniteError at the end if the output projection has read NaN or infinity.

    Greedy and beam search would choose tokens from NaN without an error. An accelerator is read once, at the end.
    """
    projection = model.get_output_embeddings()
    seen: list[Tensor] = []

    def look(_: Any, args: tuple) -> None:
        seen[:] = [torch.stack([*seen, args[0][:, -1].isfinite().all()]).all()]

    handle = None if projection is None else projection.register_forward_pre_hook(look)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        if not all(seen):
            raise NotFiniteError("the model computes NaN or infinity")


def _padded_after_eos(tokens: Tensor, ids: GenerationConfig) -> Tensor:
    """Tokens (B, L) with the pad token after the first EOS; `generate` pads with EOS if the pad token is 0."""
    return tokens.masked_fill(behind_eos(tokens, ids), ids.pad_token_id or 0)


def behind_eos(tokens: Tensor, ids: GenerationConfig) -> Tensor:
    """(B, L) whether each token of (B, L) comes after the first EOS; all False if the model has no EOS."""
    if ids.eos_token_id is None:
        return torch.zeros_like(tokens, dtype=torch.bool)
    ends = torch.isin(tokens, torch.tensor(ids.eos_token_id, device=tokens.device)).long()
    return ends.cumsum(dim=1) - ends > 0


def finish_reasons(tokens: Tensor, ids: GenerationConfig, max_new_tokens: int) -> list[str]:
    """Why each row of tokens (R, L) ends: "stop" with an EOS, "length" at the limit.

    An EOS that the config forces at the limit counts as "length".
    """
    if ids.eos_token_id is None:
        return [LENGTH] * len(tokens)
    is_end = torch.isin(tokens, torch.tensor(ids.eos_token_id, device=tokens.device))
    if ids.forced_eos_token_id is not None:
        is_end = is_end[:, : max_new_tokens - 1]
    return [STOP if ended else LENGTH for ended in is_end.any(dim=1).tolist()]


def to_texts(tokenizer: PreTrainedTokenizerBase, tokens: Tensor | list[list[int]]) -> list[str]:
    """The text of each row of tokens, without special tokens and surrounding white space."""
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]
