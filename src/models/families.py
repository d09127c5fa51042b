"""All that is known of a model family, in one place: where its layers and projections lie, how to configure one.

Shapes: B batch, L sequence, H heads, W = H × head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from src.config.arguments import SharedArguments
from src.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

LLAMA_LIKE = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "smollm3", "olmo",
    "olmo2", "granite", "starcoder2", "stablelm", "cohere", "cohere2", "glm", "helium",
)  # fmt: skip
PER_LAYER_KEYS = ("layer_types", "no_rope_layers", "mlp_layer_types")  # config lists with one entry per decoder layer


@dataclass(frozen=True)
class Sizes:
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


@dataclass(frozen=True)
class Family:
    """Models that share a layout. Paths are dotted, from the model with the output projection on top.

    `encoder_layers` / `decoder_layers` name the `ModuleList`s, `n_encoder_layers` / `n_decoder_layers` the config keys
    that count them (None for the encoder of a decoder-only family). `attention` has, by kind (enc_sa, dec_sa, dec_ca:
    self-attention of the encoder and the decoder, cross-attention), the path of the attention inside a layer, and
    `projections` those of queries, keys and values inside the attention: three, or one that gives them together.
    """

    name: str
    model_types: tuple[str, ...]
    decoder_layers: str
    n_decoder_layers: str
    attention: dict[str, str]
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused_by_head: bool = False  # a joint projection holds q, k, v of one head, then of the next
    scales_queries: bool = False  # queries count × head size ** -0.5, as the published BART has them; T5's, × 1
    encoder_layers: str | None = None
    n_encoder_layers: str | None = None
    build_config: "Callable[[Sizes], PreTrainedConfig] | None" = None
    has_rotary_positions: bool = False  # an even number of dimensions per head
    has_position_table: bool = False  # of config.max_position_embeddings entries, beyond which the model fails
    n_cache_layers: str | None = None  # config key, see `set_layer_counts`

    @property
    def is_encoder_decoder(self) -> bool:
        return self.encoder_layers is not None


def family_of(config: "PreTrainedConfig") -> Family:
    """The family of a model's config; UserError for a layout that nobody has described here yet."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = " ".join(model_type for family in FAMILIES for model_type in family.model_types)
    raise UserError(
        f"model type '{config.model_type}': its layers cannot be located, so pruning and hidden or attention losses "
        f"are unavailable; supported: {known}"
    )


def layer_counts(config: "PreTrainedConfig") -> dict[str, int]:
    """{"encoder": n, "decoder": n}; a decoder-only model has 0 encoder layers. UserError as in `family_of`."""
    family = family_of(config)
    n_encoder = getattr(config, family.n_encoder_layers) if family.n_encoder_layers else 0
    return {"encoder": n_encoder, "decoder": getattr(config, family.n_decoder_layers)}


def set_layer_counts(config: "PreTrainedConfig", counts: dict[str, int]) -> None:
    """Write `counts`, as `layer_counts` gives them, into a config.

    `generate` sizes the decoder's cache by T5's number of *encoder* layers and fails if they are fewer, unless the
    config holds `decoder_layers` (transformers 5.23, `PreTrainedConfig.get_text_config`).
    """
    family = family_of(config)
    if family.n_encoder_layers:
        setattr(config, family.n_encoder_layers, counts["encoder"])
    setattr(config, family.n_decoder_layers, counts["decoder"])
    if family.n_cache_layers:
        setattr(config, family.n_cache_layers, counts["decoder"])


@dataclass(frozen=True)
class HeadShape:
    """Heads of an attention and the dimensions of each; grouped-query attention has fewer heads of keys and values."""

    n_heads: int
    n_key_value_heads: int
    head_size: int

    def heads(self, part: str) -> int:
        """The heads of q, k or v."""
        return self.n_heads if part == "q" else self.n_key_value_heads

    def width(self, part: str) -> int:
        """W of q, k or v."""
        return self.heads(part) * self.head_size


def head_shape(config: "PreTrainedConfig", kind: str) -> HeadShape:
    """The heads of an attention kind (enc_sa, dec_sa, dec_ca), as the config says."""
    side = "encoder" if kind.startswith("enc") else "decoder"
    n_heads = getattr(config, f"{side}_attention_heads", None) or config.num_attention_heads
    n_key_value_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return HeadShape(n_heads, n_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // n_heads)


@dataclass(frozen=True)
class Projection:
    """Where queries, keys or values come from: a module, and how its output (B, L, ·) gives the states (B, L, W)."""

    module: "nn.Module"
    states: "Callable[[Tensor], Tensor]"


def attention_projections(model: "PreTrainedModel", kind: str, layer: int) -> dict[str, Projection]:
    """{"q", "k", "v"} of an attention kind (enc_sa, dec_sa, dec_ca) in a layer, −1 the last.

    Queries and keys are those before rotary positions and before any norm of their own.
    """
    family, shape = family_of(model.config), head_shape(model.config, kind)
    layers = family.encoder_layers if kind.startswith("enc") else family.decoder_layers
    assert layers is not None
    stack: Any = model.get_submodule(layers)
    attention = stack[layer].get_submodule(family.attention[kind])
    modules = [attention.get_submodule(name) for name in family.projections]
    if len(modules) == 1:
        joint = _of_head if family.fused_by_head else _of_block
        return {part: Projection(modules[0], partial(joint, shape, part)) for part in ("q", "k", "v")}
    scale = shape.head_size**-0.5 if family.scales_queries else 1.0
    plain = {part: Projection(module, _unchanged) for part, module in zip(("k", "v"), modules[1:], strict=True)}
    return {"q": Projection(modules[0], partial(_scaled, scale)), **plain}


def _unchanged(states: "Tensor") -> "Tensor":
    return states


def _scaled(scale: float, states: "Tensor") -> "Tensor":
    return states * scale


def _of_block(shape: HeadShape, part: str, joint: "Tensor") -> "Tensor":
    """One of [q | k | v]."""
    widths = [shape.width(each) for each in ("q", "k", "v")]
    return joint.split(widths, dim=-1)["qkv".index(part)]


def _of_head(shape: HeadShape, part: str, joint: "Tensor") -> "Tensor":
    """One of [q₀ k₀ v₀ | q₁ k₁ v₁ | …]."""
    by_head = joint.unflatten(-1, (shape.n_heads, 3, shape.head_size))
    return by_head[..., "qkv".index(part), :].flatten(-2)


def knows_layers(config: "PreTrainedConfig") -> bool:
    """Whether `family_of` knows where this model's layers lie."""
    return any(config.model_type in family.model_types for family in FAMILIES)


def has_position_table(config: "PreTrainedConfig") -> bool:
    """Whether a model of a family here fails beyond the positions that its config states."""
    return any(family.has_position_table and config.model_type in family.model_types for family in FAMILIES)


def beyond_positions(config: "PreTrainedConfig", flags: SharedArguments) -> list[tuple[str, int, int]]:
    """(flags, the length they allow, the positions that the config states) of each side for which these are fewer."""
    if config.is_encoder_decoder:
        lengths = {
            "encoder": ("--max_input_length", flags.max_input_length),
            "decoder": ("--max_labels_length", flags.max_labels_length),
        }
    else:
        together = flags.max_input_length + flags.max_labels_length
        lengths = {"decoder": ("--max_input_length plus --max_labels_length", together)}
    limits = {side: _stated_positions(config, side) for side in lengths}
    return [(*asked, limit) for side, asked in lengths.items() if (limit := limits[side]) and asked[1] > limit]


def _stated_positions(config: "PreTrainedConfig", side: str) -> int | None:
    """Tokens that a sequence may have, or was trained to have; None for relative positions without a limit."""
    part = config.get_text_config(encoder=side == "encoder", decoder=side == "decoder")
    names = (f"max_{side}_position_embeddings", "max_position_embeddings", "max_seq_len")
    limits = (getattr(each, name, None) for each in (part, config) for name in names)
    return next((limit for limit in limits if isinstance(limit, int)), None)


def family_to_build(name: str) -> Family:
    """The family `name`, if a model of it can be built from scratch; UserError otherwise."""
    buildable = {family.name: family for family in FAMILIES if family.build_config}
    if name not in buildable:
        raise UserError(f"--family: unknown family '{name}'; possible: {' '.join(buildable)}")
    return buildable[name]


def _t5_config(sizes: Sizes) -> "PreTrainedConfig":
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


def _bart_config(sizes: Sizes) -> "PreTrainedConfig":
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


def _gpt2_config(sizes: Sizes) -> "PreTrainedConfig":
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


def _opt_config(sizes: Sizes) -> "PreTrainedConfig":
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


def _llama_config(sizes: Sizes) -> "PreTrainedConfig":
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


FAMILIES = (
    Family(
        name="t5",
        model_types=("t5", "mt5", "umt5"),
        encoder_layers="encoder.block",
        decoder_layers="decoder.block",
        n_encoder_layers="num_layers",
        n_decoder_layers="num_decoder_layers",
        n_cache_layers="decoder_layers",
        attention={
            "enc_sa": "layer.0.SelfAttention",
            "dec_sa": "layer.0.SelfAttention",
            "dec_ca": "layer.1.EncDecAttention",
        },
        projections=("q", "k", "v"),
        build_config=_t5_config,
    ),
    Family(
        name="bart",
        model_types=("bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "plbart"),
        encoder_layers="model.encoder.layers",
        decoder_layers="model.decoder.layers",
        n_encoder_layers="encoder_layers",
        n_decoder_layers="decoder_layers",
        attention={"enc_sa": "self_attn", "dec_sa": "self_attn", "dec_ca": "encoder_attn"},
        scales_queries=True,
        build_config=_bart_config,
        has_position_table=True,
    ),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        decoder_layers="transformer.h",
        n_decoder_layers="n_layer",
        attention={"dec_sa": "attn"},
        projections=("c_attn",),
        build_config=_gpt2_config,
        has_position_table=True,
    ),
    Family(
        name="gptj",
        model_types=("gptj",),
        decoder_layers="transformer.h",
        n_decoder_layers="n_layer",
        attention={"dec_sa": "attn"},
        has_position_table=True,
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        decoder_layers="gpt_neox.layers",
        n_decoder_layers="num_hidden_layers",
        attention={"dec_sa": "attention"},
        projections=("query_key_value",),
        fused_by_head=True,
    ),
    Family(
        name="opt",
        model_types=("opt",),
        decoder_layers="model.decoder.layers",
        n_decoder_layers="num_hidden_layers",
        attention={"dec_sa": "self_attn"},
        scales_queries=True,
        build_config=_opt_config,
        has_position_table=True,
    ),
    Family(
        name="llama",
        model_types=LLAMA_LIKE,
        decoder_layers="model.layers",
        n_decoder_layers="num_hidden_layers",
        attention={"dec_sa": "self_attn"},
        build_config=_llama_config,
        has_rotary_positions=True,
    ),
    Family(
        name="phi3",
        model_types=("phi3",),
        decoder_layers="model.layers",
        n_decoder_layers="num_hidden_layers",
        attention={"dec_sa": "self_attn"},
        projections=("qkv_proj",),
        has_rotary_positions=True,
    ),
)
