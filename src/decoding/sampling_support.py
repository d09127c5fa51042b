"""Which models and generation configs our sampling and beam search support; `generate` writes for all others."""

import logging
from collections.abc import Collection
from functools import cache
from typing import Any

from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from src.decoding.grouped_attention import attends_fully
from src.decoding.token_rules import PROCESSED, start_token
from src.models.families import has_family
from src.models.generation_config import NEUTRAL

HONORED = {
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "bad_words_ids",
}  # fmt: skip


DECIDED_BY_THE_CALLER = {
    "do_sample", "num_beams", "temperature", "top_k", "top_p", "num_return_sequences", "max_length", "max_new_tokens",
}  # fmt: skip


WITHOUT_EFFECT = {  # on sampled tokens: fields about beams (`beam_search` reads them), speed, and what else is returned
    "early_stopping", "length_penalty", "use_cache", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "return_dict_in_generate", "transformers_version", "_from_model_config", "disable_compile",
    "compile_config", "prefill_chunk_size",
}  # fmt: skip


log = logging.getLogger(__name__)


def why_unsupported(model: PreTrainedModel) -> str | None:
    """Why `sample` and `beam_search` do not support this model, in words; None if they do.

    They support the families of `models/families.py`, and of a generation config only the fields listed in this file:
    `generate` may act on any other.
    """
    fields = unknown_fields(model.generation_config, known=PROCESSED)
    if fields:
        return f"its generation config sets {' '.join(fields)}"
    if not has_family(model.config):
        return f"the model type {model.config.model_type!r} is not known"
    if not attends_fully(model):
        return "its cache does not hold the keys and values of all tokens"
    kind: Any = type(model)
    stock = (GenerationMixin.generate, GenerationMixin.prepare_inputs_for_generation)
    if (kind.generate, kind.prepare_inputs_for_generation) != stock:
        return f"{kind.__name__} prepares its inputs in its own way"
    if model.config.is_encoder_decoder and not isinstance(start_token(model.generation_config), int):
        return "its targets have no single start token"
    if model.get_output_embeddings() is None:
        return f"{kind.__name__} has no output projection"
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing keeps no cache in training mode"
    return None


@cache
def warn_of_generate(reason: str) -> None:
    """Warn, once for each reason, that `generate` writes instead."""
    log.warning("generating with transformers' `generate`, which is slower: %s", reason)


def unknown_fields(ids: GenerationConfig, *, known: Collection[str] = ()) -> list[str]:
    """Fields of a generation config whose values may change what is written, and that are neither `known` nor listed
    here."""
    ignored = HONORED | DECIDED_BY_THE_CALLER | WITHOUT_EFFECT | set(known)
    values = {name: value for name, value in ids.to_dict().items() if name not in ignored and value is not None}
    unknown = [name for name, value in values.items() if name not in NEUTRAL or value != NEUTRAL[name]]
    if any(len(words) != 1 for words in ids.bad_words_ids or ()):
        unknown.append("bad_words_ids")
    return unknown
