"""New models with random weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from src.config.errors import UserError

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


def new_config(family: str, sizes: ModelSizes) -> "PreTrainedConfig":
    """The config of a new model of `family`: t5, bart, gpt2, opt or llama."""
    from transformers import AutoConfig

    ids = {"vocab_size": sizes.vocab_size, "pad_token_id": sizes.pad_token_id, "eos_token_id": sizes.eos_token_id}
    decoder_only = {
        "hidden_size": sizes.d_model, "num_attention_heads": sizes.n_heads, "num_hidden_layers": sizes.n_decoder_layers,
        "max_position_embeddings": sizes.max_position_embeddings, "bos_token_id": None,
    }  # fmt: skip
    values: dict[str, dict[str, Any]] = {
        "t5": {
            "d_model": sizes.d_model, "d_kv": sizes.head_size, "d_ff": sizes.d_ff, "num_heads": sizes.n_heads,
            "num_layers": sizes.n_encoder_layers, "num_decoder_layers": sizes.n_decoder_layers,
            "decoder_layers": sizes.n_decoder_layers,  # see `models/families.py`
            "dropout_rate": sizes.dropout, "decoder_start_token_id": sizes.pad_token_id,
            # T5 1.1's gated GELU with T5 1.0's tied and scaled output: the embedding is a large part of a small model.
            "feed_forward_proj": "gated-gelu",
        },
        "bart": {
            "d_model": sizes.d_model, "encoder_ffn_dim": sizes.d_ff, "decoder_ffn_dim": sizes.d_ff,
            "encoder_attention_heads": sizes.n_heads, "decoder_attention_heads": sizes.n_heads,
            "encoder_layers": sizes.n_encoder_layers, "decoder_layers": sizes.n_decoder_layers,
            "dropout": sizes.dropout, "max_position_embeddings": sizes.max_position_embeddings,
            "decoder_start_token_id": sizes.eos_token_id, "bos_token_id": None, "forced_eos_token_id": None,
        },
        "gpt2": {
            **decoder_only, "n_inner": sizes.d_ff,
            "resid_pdrop": sizes.dropout, "embd_pdrop": sizes.dropout, "attn_pdrop": sizes.dropout,
        },
        "opt": {
            **decoder_only, "ffn_dim": sizes.d_ff, "word_embed_proj_dim": sizes.d_model, "dropout": sizes.dropout,
        },
        "llama": {  # it has no other dropout
            **decoder_only, "intermediate_size": sizes.d_ff, "attention_dropout": sizes.dropout,
            "tie_word_embeddings": True,
        },
    }  # fmt: skip
    return AutoConfig.for_model(family, **ids, **values[family])


def build_from_scratch(family: str, sizes: ModelSizes, *, seed: int) -> "PreTrainedModel":
    """A new model of `family`, in eval mode. Its random weights depend on `seed` alone; torch's random state is kept.

    Raises UserError if `d_model` cannot be divided among the heads.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    has_rotary_positions = family == "llama"  # which need an even number of dimensions per head
    if sizes.d_model % sizes.n_heads or (has_rotary_positions and sizes.head_size % 2):
        even = "an even " if has_rotary_positions else "a whole "
        raise UserError(f"--n_heads {sizes.n_heads}: --d_model {sizes.d_model} must give each head {even}number")
    config = new_config(family, sizes)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto_class.from_config(config).eval()
