"""The modules that compute a layer's queries, keys and values.

Shapes: B batch, L sequence, W = heads × head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from src.models.families import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel


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
    plain = {part: Projection(module, _unchanged) for part, module in zip(("k", "v"), modules[1:], strict=True)}
    return {"q": Projection(modules[0], partial(_scaled, scale)), **plain}


def _unchanged(states: "Tensor") -> "Tensor":
    return states


def _scaled(scale: float, states: "Tensor") -> "Tensor":
    return states * scale


def _from_blocks(shape: HeadShape, part: str, joint: "Tensor") -> "Tensor":
    """q, k or v (B, L, W) of a joint output [q | k | v]."""
    widths = [shape.width(each) for each in ("q", "k", "v")]
    return joint.split(widths, dim=-1)["qkv".index(part)]


def _from_heads(shape: HeadShape, part: str, joint: "Tensor") -> "Tensor":
    """q, k or v (B, L, W) of a joint output by heads, [q₀ k₀ v₀ | q₁ k₁ v₁ | …]."""
    by_head = joint.unflatten(-1, (shape.n_heads, 3, shape.head_size))
    return by_head[..., "qkv".index(part), :].flatten(-2)
