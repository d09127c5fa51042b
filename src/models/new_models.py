"""New models with random weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from src.config.errors import UserError
from src.models.families import FAMILIES, Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelSizes:
    """Sizes, dropout and token ids of a new model. `vocab_size` and the ids are its tokenizer's."""

    vocab_size: int
    pad_token_id: int
    eos_token_id: int
    n_encoder_layers: int = 4
    n_decoder_layers: int = 4
    d_model: int = 256
    d_ff: int = 1024
    n_heads: int = 4
    dropout: float = 0.1
    max_position_embeddings: int = 1024  # tokens; T5 has relative positions and no limit

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_heads


# By family, the config's keys and the fields of `ModelSizes` that they take.
CONFIG_KEYS = {
    "t5": {
        "d_model": "d_model", "d_kv": "head_size", "d_ff": "d_ff", "num_heads": "n_heads",
        "num_layers": "n_encoder_layers", "num_decoder_layers": "n_decoder_layers",
        "decoder_layers": "n_decoder_layers",  # see `set_layer_counts`
        "dropout_rate": "dropout", "decoder_start_token_id": "pad_token_id",
    },
    "bart": {
        "d_model": "d_model", "encoder_ffn_dim": "d_ff", "decoder_ffn_dim": "d_ff",
        "encoder_attention_heads": "n_heads", "decoder_attention_heads": "n_heads",
        "encoder_layers": "n_encoder_layers", "decoder_layers": "n_decoder_layers", "dropout": "dropout",
        "max_position_embeddings": "max_position_embeddings", "decoder_start_token_id": "eos_token_id",
    },
    "gpt2": {
        "n_embd": "d_model", "n_inner": "d_ff", "n_head": "n_heads", "n_layer": "n_decoder_layers",
        "resid_pdrop": "dropout", "embd_pdrop": "dropout", "attn_pdrop": "dropout",
        "n_positions": "max_position_embeddings",
    },
    "opt": {
        "hidden_size": "d_model", "word_embed_proj_dim": "d_model", "ffn_dim": "d_ff",
        "num_attention_heads": "n_heads", "num_hidden_layers": "n_decoder_layers", "dropout": "dropout",
        "max_position_embeddings": "max_position_embeddings",
    },
    "llama": {
        "hidden_size": "d_model", "intermediate_size": "d_ff", "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_decoder_layers",
        "attention_dropout": "dropout",  # the architecture has no other
        "max_position_embeddings": "max_position_embeddings",
    },
}  # fmt: skip
FIXED_VALUES: dict[str, dict[str, Any]] = {
    # T5 1.1's gated GELU with T5 1.0's tied and scaled output: the embedding is a large part of a small model.
    "t5": {"feed_forward_proj": "gated-gelu"},
    "bart": {"bos_token_id": None, "forced_eos_token_id": None},
    "gpt2": {"bos_token_id": None},
    "opt": {"bos_token_id": None},
    "llama": {"bos_token_id": None, "tie_word_embeddings": True},
}


def new_config(family: str, sizes: ModelSizes) -> "PreTrainedConfig":
    """The config of a new model of `family`, one of CONFIG_KEYS."""
    from transformers import AutoConfig

    values = {key: getattr(sizes, field) for key, field in CONFIG_KEYS[family].items()}
    return AutoConfig.for_model(
        family,
        vocab_size=sizes.vocab_size,
        pad_token_id=sizes.pad_token_id,
        eos_token_id=sizes.eos_token_id,
        **values,
        **FIXED_VALUES.get(family, {}),
    )


def family_to_build(name: str) -> Family:
    """The family called `name`. Raises UserError if no new model of it can be built."""
    buildable = {family.name: family for family in FAMILIES if family.name in CONFIG_KEYS}
    if name not in buildable:
        raise UserError(f"--family: unknown family '{name}'; possible: {' '.join(buildable)}")
    return buildable[name]


def build_from_scratch(family: str, sizes: ModelSizes, *, seed: int) -> "PreTrainedModel":
    """A new model of `family`, in eval mode. Its random weights depend on `seed` alone; torch's random state is kept.

    Raises UserError for an unknown family, and if `d_model` cannot be divided among the heads.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    described = family_to_build(family)
    if sizes.d_model % sizes.n_heads or (sizes.head_size % 2 and described.has_rotary_positions):
        even = "an even " if described.has_rotary_positions else "a whole "
        raise UserError(f"--n_heads {sizes.n_heads}: --d_model {sizes.d_model} must give each head {even}number")
    config = new_config(family, sizes)
    auto_class = AutoModelForSeq2SeqLM if described.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto_class.from_config(config).eval()
