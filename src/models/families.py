"""Model families: the paths of their layers and attention projections, and the config keys that count layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.config.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LLAMA_LIKE = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "smollm3", "olmo",
    "olmo2", "granite", "starcoder2", "stablelm", "cohere", "cohere2", "glm", "helium",
)  # fmt: skip
PER_LAYER_KEYS = ("layer_types", "no_rope_layers", "mlp_layer_types")  # config lists with one entry per decoder layer


@dataclass(frozen=True)
class Family:
    """Models with the same module paths. Paths are dotted and start at the model with the output projection.

    encoder_layers, decoder_layers: paths of the `ModuleList`s; n_encoder_layers, n_decoder_layers: the config keys that
    count them. The encoder's are None for a decoder-only family. attention: by kind (enc_sa and dec_sa: self-attention
    of encoder and decoder; dec_ca: cross-attention), the path inside a layer. projections: paths inside an attention,
    either queries, keys and values, or one module that computes all three.
    """

    name: str
    model_types: tuple[str, ...]
    decoder_layers: str
    n_decoder_layers: str
    attention: dict[str, str]
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused_by_head: bool = False  # one module computes q, k, v of the first head, then of the second, …
    scales_queries: bool = False  # by head size ** -0.5 before they are compared, as the published BART; T5 does not
    encoder_layers: str | None = None
    n_encoder_layers: str | None = None
    has_rotary_positions: bool = False  # they need an even number of dimensions per head
    has_position_table: bool = False  # the model fails beyond max_position_embeddings
    n_cache_layers: str | None = None  # a config key, see `set_layer_counts`

    @property
    def is_encoder_decoder(self) -> bool:
        return self.encoder_layers is not None


def family_of(config: "PreTrainedConfig") -> Family:
    """The family of a model's config. Raises UserError if FAMILIES does not have its model type."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = " ".join(model_type for family in FAMILIES for model_type in family.model_types)
    raise UserError(
        f"model type '{config.model_type}': its layers cannot be located, so pruning and hidden or attention losses "
        f"are unavailable; supported: {known}"
    )


def layer_counts(config: "PreTrainedConfig") -> dict[str, int]:
    """{"encoder": n, "decoder": n}; a decoder-only model has 0 encoder layers. Raises UserError as `family_of`."""
    family = family_of(config)
    n_encoder = getattr(config, family.n_encoder_layers) if family.n_encoder_layers else 0
    return {"encoder": n_encoder, "decoder": getattr(config, family.n_decoder_layers)}


def set_layer_counts(config: "PreTrainedConfig", counts: dict[str, int]) -> None:
    """Write layer counts, as `layer_counts` returns them, into a config.

    Unless T5's config has `decoder_layers`, `generate` takes the number of *encoder* layers for the size of the
    decoder's cache, and fails if they are fewer (transformers 5.23, `PreTrainedConfig.get_text_config`).
    """
    family = family_of(config)
    if family.n_encoder_layers:
        setattr(config, family.n_encoder_layers, counts["encoder"])
    setattr(config, family.n_decoder_layers, counts["decoder"])
    if family.n_cache_layers:
        setattr(config, family.n_cache_layers, counts["decoder"])


def has_family(config: "PreTrainedConfig") -> bool:
    """Whether FAMILIES has the model type of a config."""
    return any(config.model_type in family.model_types for family in FAMILIES)


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
        has_position_table=True,
    ),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        decoder_layers="transformer.h",
        n_decoder_layers="n_layer",
        attention={"dec_sa": "attn"},
        projections=("c_attn",),
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
        has_position_table=True,
    ),
    Family(
        name="llama",
        model_types=LLAMA_LIKE,
        decoder_layers="model.layers",
        n_decoder_layers="num_hidden_layers",
        attention={"dec_sa": "self_attn"},
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
