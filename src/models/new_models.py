"""Students with random weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from src.config.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
from src.models.families import FAMILIES, Family


@dataclass(frozen=True)
class ModelSizes:
    """The shape of a model that is built from scratch; token ids come from its tokenizer."""

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


def t5_config(sizes: ModelSizes) -> "PreTrainedConfig":
    """T5 1.1's gated GELU with T5 1.0's tied and scaled output: the embedding is a large part of a small model."""
    from transformers import T5Config

    return T5Config(  # type: ignore[call-arg]
        vocab_size=sizes.vocab_size,
        d_model=sizes.d_model,
        d_kv=sizes.d_model // sizes.n_heads,
        d_ff=sizes.d_ff,
        num_layers=sizes.n_encoder_layers,
        num_decoder_layers=sizes.n_decoder_layers,
        decoder_layers=sizes.n_decoder_layers,  # see `set_layer_counts`
        num_heads=sizes.n_heads,
        dropout_rate=sizes.dropout,
        feed_forward_proj="gated-gelu",
        pad_token_id=sizes.pad_token_id,
        eos_token_id=sizes.eos_token_id,
        decoder_start_token_id=sizes.pad_token_id,
    )


def bart_config(sizes: ModelSizes) -> "PreTrainedConfig":
    from transformers import BartConfig

    return BartConfig(
        vocab_size=sizes.vocab_size,
        d_model=sizes.d_model,
        encoder_layers=sizes.n_encoder_layers,
        decoder_layers=sizes.n_decoder_layers,
        encoder_ffn_dim=sizes.d_ff,
        decoder_ffn_dim=sizes.d_ff,
        encoder_attention_heads=sizes.n_heads,
        decoder_attention_heads=sizes.n_heads,
        dropout=sizes.dropout,
        max_position_embeddings=sizes.max_position_embeddings,
        pad_token_id=sizes.pad_token_id,
        bos_token_id=None,
        eos_token_id=sizes.eos_token_id,
        decoder_start_token_id=sizes.eos_token_id,
        forced_eos_token_id=None,
    )


def gpt2_config(sizes: ModelSizes) -> "PreTrainedConfig":
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=sizes.vocab_size,
        n_embd=sizes.d_model,
        n_inner=sizes.d_ff,
        n_layer=sizes.n_decoder_layers,
        n_head=sizes.n_heads,
        n_positions=sizes.max_position_embeddings,
        resid_pdrop=sizes.dropout,
        embd_pdrop=sizes.dropout,
        attn_pdrop=sizes.dropout,
        pad_token_id=sizes.pad_token_id,
        bos_token_id=None,
        eos_token_id=sizes.eos_token_id,
    )


def opt_config(sizes: ModelSizes) -> "PreTrainedConfig":
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.d_model,
        word_embed_proj_dim=sizes.d_model,
        ffn_dim=sizes.d_ff,
        num_hidden_layers=sizes.n_decoder_layers,
        num_attention_heads=sizes.n_heads,
        dropout=sizes.dropout,
        max_position_embeddings=sizes.max_position_embeddings,
        pad_token_id=sizes.pad_token_id,
        bos_token_id=None,
        eos_token_id=sizes.eos_token_id,
    )


def llama_config(sizes: ModelSizes) -> "PreTrainedConfig":
    """Llama with tied embeddings; the architecture has no dropout but the attention's."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.d_model,
        intermediate_size=sizes.d_ff,
        num_hidden_layers=sizes.n_decoder_layers,
        num_attention_heads=sizes.n_heads,
        attention_dropout=sizes.dropout,
        max_position_embeddings=sizes.max_position_embeddings,
        tie_word_embeddings=True,
        pad_token_id=sizes.pad_token_id,
        bos_token_id=None,
        eos_token_id=sizes.eos_token_id,
    )


BUILDERS: "dict[str, Callable[[ModelSizes], PreTrainedConfig]]" = {
    "t5": t5_config,
    "bart": bart_config,
    "gpt2": gpt2_config,
    "opt": opt_config,
    "llama": llama_config,
}


def family_to_build(name: str) -> Family:
    """The family `name`, if a model of it can be built from scratch; UserError otherwise."""
    buildable = {family.name: family for family in FAMILIES if family.name in BUILDERS}
    if name not in buildable:
        raise UserError(f"--family: unknown family '{name}'; possible: {' '.join(buildable)}")
    return buildable[name]


def build_from_scratch(family: str, sizes: ModelSizes, *, seed: int) -> "PreTrainedModel":
    """A model of `family` with random weights that follow from `seed` alone; torch's random state is left as it was."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    described = family_to_build(family)
    head_size, rest = divmod(sizes.d_model, sizes.n_heads)
    if rest or (head_size % 2 and described.has_rotary_positions):
        even = "an even " if described.has_rotary_positions else "a whole "
        raise UserError(f"--n_heads {sizes.n_heads}: --d_model {sizes.d_model} must give each head {even}number")
    config = BUILDERS[family](sizes)
    auto_class = AutoModelForSeq2SeqLM if described.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto_class.from_config(config).eval()
