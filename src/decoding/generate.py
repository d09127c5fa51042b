"""Writing text with a model: the eight generation types, by our own loop where it can, else by `generate`.

Shapes: B inputs, S source tokens, K targets per input, L new tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from src.config.constants import LENGTH, STOP
from src.config.errors import NotFiniteError
from src.decoding.diverse_beams import diverse_beam_search
from src.decoding.nucleus import Nucleus
from src.decoding.sampling import sample, warn_of_generate, why_not
from src.models.compiled import as_it_is
from src.models.packed_linear import packed_head
from src.tokens.batches import Batch

TOP_P = 0.95
SAMPLING_TEMPERATURES = {"sampling": 1.0, "sampling_low": 0.75, "sampling_high": 1.5}
DEFAULT_NUCLEUS: Mapping[str, Any] = MappingProxyType({})
LENGTH_PENALTIES = {"beam_search": None, "beam_search_short": 0.4, "beam_search_long": 2.0}  # None: the model's own


@dataclass(frozen=True)
class Decoding:
    """How to write: the most probable tokens (num_beams 1), beams, or draws from a nucleus.

    `loop` replaces the beam search of `generate` where transformers has none.
    """

    max_new_tokens: int
    targets_per_input: int = 1
    num_beams: int = 1
    nucleus: Nucleus | None = None
    length_penalty: float | None = None
    loop: Callable | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `generate`."""
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_return_sequences": self.targets_per_input,
            "num_beams": self.num_beams,
            "do_sample": self.nucleus is not None,
            "custom_generate": self.loop,
        }
        if self.num_beams > 1 and self.length_penalty is not None:
            arguments["length_penalty"] = self.length_penalty
        if self.nucleus is not None:
            nucleus = self.nucleus
            arguments |= {"top_p": nucleus.top_p, "top_k": nucleus.top_k, "temperature": nucleus.temperature}
        return arguments


def decoding_of(
    generation_type: str,
    *,
    num_beams: int,
    targets_per_input: int,
    max_new_tokens: int,
    nucleus: Mapping[str, Any] = DEFAULT_NUCLEUS,
) -> Decoding:
    """The generation types of SPEC §2. Sampling uses top-p 0.95, no top-k, and no beams.

    nucleus: top_p, top_k, temperature of a type that samples; what is None or missing is the type's own.
    """
    plain = Decoding(max_new_tokens, targets_per_input, num_beams)
    given = {name: value for name, value in nucleus.items() if value is not None}
    if generation_type in SAMPLING_TEMPERATURES:
        usual = Nucleus(TOP_P, SAMPLING_TEMPERATURES[generation_type])
        return replace(plain, num_beams=1, nucleus=replace(usual, **given))
    if generation_type == "sampling_beam_search":
        return replace(plain, nucleus=replace(Nucleus(TOP_P), **given))
    if generation_type == "diverse_beam_search":
        return replace(plain, loop=diverse_beam_search(num_beams // 2, penalty=0.1))
    return replace(plain, length_penalty=LENGTH_PENALTIES[generation_type])


@torch.no_grad()
def write_tokens(model: PreTrainedModel, batch: Batch, decoding: Decoding) -> Tensor:
    """(B * K, L) new tokens only, the K targets of one input adjacent; padded with the pad token after EOS.

    The model's train/eval mode is the caller's business. Raises NotFiniteError if it computes no numbers.
    """
    with as_it_is(model), _finite_states(model):
        return _written(model, batch, decoding)


def _written(model: PreTrainedModel, batch: Batch, decoding: Decoding) -> Tensor:
    if decoding.num_beams == 1 and decoding.loop is None:
        reason = why_not(model)
        if reason is None:
            return sample(
                model,
                batch,
                decoding.nucleus,
                max_new_tokens=decoding.max_new_tokens,
                targets_per_input=decoding.targets_per_input,
            )
        warn_of_generate(reason)
    with packed_head(model):
        generate: Any = model.generate
        written = generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **decoding.arguments)
    start = 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1]
    return _padded_after_eos(written[:, start:], model.generation_config)


@contextmanager
def _finite_states(model: PreTrainedModel) -> Iterator[None]:
    """Raises NotFiniteError at the end if what the output projection read to write the next token was not finite.

    Beams and the most probable token would be chosen from NaN all the same. An accelerator is asked once, at the end.
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
            raise NotFiniteError("the model computes no finite numbers")


def _padded_after_eos(tokens: Tensor, ids: GenerationConfig) -> Tensor:
    """Tokens (B, L) with the pad token after the first EOS; `generate` fills up with EOS where the pad token is 0."""
    return tokens.masked_fill(behind_eos(tokens, ids), ids.pad_token_id or 0)


def behind_eos(tokens: Tensor, ids: GenerationConfig) -> Tensor:
    """(B, L) where tokens (B, L) are behind the first EOS, whatever fills them up; nowhere if the model has no EOS."""
    if ids.eos_token_id is None:
        return torch.zeros_like(tokens, dtype=torch.bool)
    ends = torch.isin(tokens, torch.tensor(ids.eos_token_id, device=tokens.device)).long()
    return ends.cumsum(dim=1) - ends > 0


def finish_reasons(tokens: Tensor, ids: GenerationConfig, max_new_tokens: int) -> list[str]:
    """(R,) why each row of tokens (R, L) ends: "stop" with an EOS, "length" at the limit.

    An EOS that the config forces at the limit ends nothing by itself.
    """
    if ids.eos_token_id is None:
        return [LENGTH] * len(tokens)
    is_end = torch.isin(tokens, torch.tensor(ids.eos_token_id, device=tokens.device))
    if ids.forced_eos_token_id is not None:
        is_end = is_end[:, : max_new_tokens - 1]
    return [STOP if ended else LENGTH for ended in is_end.any(dim=1).tolist()]


def to_texts(tokenizer: PreTrainedTokenizerBase, tokens: Tensor | list[list[int]]) -> list[str]:
    """Token rows as texts without special tokens and without surrounding white space."""
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]
