"""Model families: where a model's layers, queries, keys and values are, and the config keys that count layers.

Shapes: B batch, L sequence, W = heads × head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

PER_LAYER_KEYS = ("layer_types", "no_rope_layers", "mlp_layer_types")  # config lists with one entry per decoder layer


@dataclass(frozen=True)
class Family:
    """Models with the same module paths, by default those of Llama. The first of `model_types` is the family's name.

    decoder_layers, encoder_layers: dotted paths of the `ModuleList`s, from the model with the output projection; a
    decoder-only family has no encoder. decoder_keys: the config keys that count decoder layers. attention: by kind
    (enc_sa and dec_sa: self-attention of encoder and decoder; dec_ca: cross-attention), the path inside a layer.
    projections: paths inside an attention, either queries, keys and values, or one module that computes all three.
    """

    model_types: tuple[str, ...]
    decoder_layers: str = "model.layers"
    encoder_layers: str | None = None
    decoder_keys: tuple[str, ...] = ("num_hidden_layers",)
    attention: dict[str, str] = field(default_factory=lambda: {"dec_sa": "self_attn"})
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused_by_head: bool = False  # one module computes q, k, v of the first head, then of the second, …
    scales_queries: bool = False  # by head size ** -0.5 before they are compared, as the published BART; T5 does not
    has_position_table: bool = False  # the model fails beyond max_position_embeddings

    @property
    def name(self) -> str:
        return self.model_types[0]

    @property
    def is_encoder_decoder(self) -> bool:
        return self.encoder_layers is not None


FAMILIES = (
    Family(
        ("t5", "mt5", "umt5"),
        "decoder.block",
        "encoder.block",
        # Without `decoder_layers`, `generate` takes the number of *encoder* layers for the size of the decoder's cache,
        # and fails if they are fewer (transformers 5.23, `PreTrainedConfig.get_text_config`).
        decoder_keys=("num_decoder_layers", "decoder_layers"),
        attention={
            "enc_sa": "layer.0.SelfAttention",
            "dec_sa": "layer.0.SelfAttention",
            "dec_ca": "layer.1.EncDecAttention",
        },
        projections=("q", "k", "v"),
    ),
    Family(
        ("bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "plbart"),
        "model.decoder.layers",
        "model.encoder.layers",
        decoder_keys=("decoder_layers",),
        attention={"enc_sa": "self_attn", "dec_sa": "self_attn", "dec_ca": "encoder_attn"},
        scales_queries=True,
        has_position_table=True,
    ),
    Family(
        ("gpt2",), "transformer.h", attention={"dec_sa": "attn"}, projections=("c_attn",), has_position_table=True
    ),
    Family(("gptj",), "transformer.h", attention={"dec_sa": "attn"}, has_position_table=True),
    Family(
        ("gpt_neox",),
        "gpt_neox.layers",
        attention={"dec_sa": "attention"},
        projections=("query_key_value",),
        fused_by_head=True,
    ),
    Family(("opt",), "model.decoder.layers", scales_queries=True, has_position_table=True),
    Family(
        (
            "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "smollm3",
            "olmo", "olmo2", "granite", "starcoder2", "stablelm", "cohere", "cohere2", "glm", "helium",
        ),
    ),
    Family(("phi3",), projections=("qkv_proj",)),
)  # fmt: skip
FAMILY_OF_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def has_family(config: "PreTrainedConfig") -> bool:
    """Whether FAMILIES has the model type of a config."""
    return config.model_type in FAMILY_OF_TYPE


def family_of(config: "PreTrainedConfig") -> Family:
    """The family of a model's config. Raises UserError if FAMILIES does not have its model type."""
    if not has_family(config):
        raise UserError(
            f"model type '{config.model_type}': its layers cannot be located, so pruning and hidden or attention "
            f"losses are unavailable; supported: {' '.join(FAMILY_OF_TYPE)}"
        )
    return FAMILY_OF_TYPE[config.model_type]


def layer_counts(config: "PreTrainedConfig") -> dict[str, int]:
    """{"encoder": n, "decoder": n}; a decoder-only model has 0 encoder layers. Raises UserError as `family_of`."""
    family = family_of(config)
    n_encoder = config.num_hidden_layers if family.is_encoder_decoder else 0
    return {"encoder": n_encoder, "decoder": getattr(config, family.decoder_keys[0])}


def set_layer_counts(config: "PreTrainedConfig", counts: dict[str, int]) -> None:
    """Write layer counts, as `layer_counts` returns them, into a config."""
    family = family_of(config)
    if family.is_encoder_decoder:
        config.num_hidden_layers = counts["encoder"]
    for key in family.decoder_keys:
        setattr(config, key, counts["decoder"])


@dataclass(frozen=True)
class HeadShape:
    """Number and size of an attention's heads. Grouped-query attention has fewer heads for keys and values."""

    n_heads: int
    n_key_value_heads: int
    head_size: int

    def heads(self, part: str) -> int:
        """The number of heads of q, k or v."""
        return self.n_heads if part == "q" else self.n_key_value_heads

    def width(self, part: str) -> int:
        """W of q, k or v: heads × head size."""
        return self.heads(part) * self.head_size


def head_shape(config: "PreTrainedConfig", kind: str) -> HeadShape:
    """The heads of an attention kind (enc_sa, dec_sa, dec_ca) according to the config."""
    side = "encoder" if kind.startswith("enc") else "decoder"
    n_heads = getattr(config, f"{side}_attention_heads", None) or config.num_attention_heads
    n_key_value_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return HeadShape(n_heads, n_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // n_heads)


@dataclass(frozen=True)
class Projection:
    """A module, and the function that makes queries, keys or values (B, L, W) of its output (B, L, ·)."""

    module: "nn.Module"
    states: "Callable[[Tensor], Tensor]"


def attention_projections(model: "PreTrainedModel", kind: str, layer: int) -> dict[str, Projection]:
    """{"q", "k", "v"} of an attention kind (enc_sa, dec_sa, dec_ca) in a layer; −1 is the last layer.

    Queries and keys come before rotary positions and before norms of their own. Raises UserError for a model type
    without a family.
    """
    family, shape = family_of(model.config), head_shape(model.config, kind)
    layers = family.encoder_layers if kind.startswith("enc") else family.decoder_layers
    assert layers is not None
    stack: Any = model.get_submodule(layers)
    attention = stack[layer].get_submodule(family.attention[kind])
    modules = [attention.get_submodule(name) for name in family.projections]
    if len(modules) == 1:
        part_of = _from_heads if family.fused_by_head else _from_blocks
        return {part: Projection(modules[0], partial(part_of, shape, part)) for part in ("q", "k", "v")}
    scale = shape.head_size**-0.5 if family.scales_queries else 1.0
    plain = {part: Projection(module, lambda states: states) for part, module in zip("kv", modules[1:], strict=True)}
    return {"q": Projection(modules[0], lambda states: states * scale), **plain}


def _from_blocks(shape: HeadShape, part: str, joint: "Tensor") -> "Tensor":
    """q, k or v (B, L, W) of a joint output [q | k | v]."""
    return joint.split([shape.width(each) for each in "qkv"], dim=-1)["qkv".index(part)]


def _from_heads(shape: HeadShape, part: str, joint: "Tensor") -> "Tensor":
    """q, k or v (B, L, W) of a joint output by heads, [q₀ k₀ v₀ | q₁ k₁ v₁ | …]."""
    by_head = joint.unflatten(-1, (shape.n_heads, 3, shape.head_size))
    return by_head[..., "qkv".index(part), :].flatten(-2)
