"""Run the model and capture logits, hidden states, queries, keys and values.

Forward hooks on stock models, removed after the pass. Shapes: N valid target positions, V vocabulary, B targets, L
positions of a stack, D its width, W = heads × head size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from src.config.console import say
from src.config.errors import UserError
from src.config.experiments.schema import Experiment, LossEntry
from src.models.families import HeadShape, attention_projections, head_shape, layer_counts
from src.models.forward import lazy_target_logits, read_positions, teacher_forced
from src.models.lazy_logits import LazyLogits
from src.tokens.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DECODER_ONLY = ("dec_hidden", "dec_sa")  # the places of a LayerMap that a decoder-only model has
LayerIndices = Mapping[str, int]  # one model's, by enc_hidden, dec_hidden, enc_sa, dec_sa, dec_ca; −1: the last layer


@dataclass(frozen=True)
class HeadStates:
    """Queries, keys or values (B, L, W) and the number of heads that W is cut into."""

    states: Tensor
    n_heads: int


@dataclass(frozen=True)
class States:
    """What one forward pass computed, as far as a loss entry compares it.

    logits: (N, V) at the valid target positions. hidden: (B, L, D) by stack ("enc", "dec"). heads: by attention kind
    and part ("enc_sa_q", "dec_ca_v", …). positions: (B, L) by stack, True for tokens and False for padding.
    """

    logits: LazyLogits
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, HeadStates] = field(default_factory=dict)
    positions: Mapping[str, Tensor] = field(default_factory=dict)

    def on(self, device: torch.device) -> "States":
        """The same on a device; logits are computed where they were, a chunk at a time."""
        if self.logits.rows.device == device:
            return self
        return States(
            replace(self.logits, device=device),
            {stack: states.to(device) for stack, states in self.hidden.items()},
            {name: replace(head, states=head.states.to(device)) for name, head in self.heads.items()},
            {stack: positions.to(device) for stack, positions in self.positions.items()},
        )


def attention_kinds(*, is_encoder_decoder: bool) -> tuple[str, ...]:
    """The attentions of a model; a decoder-only model has one stack, called the decoder."""
    return ("dec_sa", "dec_ca", "enc_sa") if is_encoder_decoder else ("dec_sa",)


def hidden_stacks(*, is_encoder_decoder: bool) -> tuple[str, ...]:
    return ("enc", "dec") if is_encoder_decoder else ("dec",)


def check_comparable(experiment: Experiment, student: "PreTrainedConfig", teacher: "PreTrainedConfig") -> None:
    """Raise UserError if a model lacks a layer that the experiment compares, or if heads cannot be regrouped.

    For decoder-only models, say that encoder and cross-attention terms are left out.
    """
    weights = {name for entry in experiment.losses for name in entry.weights}
    if not any(entry.compares_layers for entry in experiment.losses):
        return
    kind = student.is_encoder_decoder
    for role, config in (("student", student), ("teacher", teacher)):
        try:
            counts = layer_counts(config)
        except UserError as error:
            raise UserError(f"experiment '{experiment.key}' compares layers: --{role}_name: {error}") from None
        for place, layer in experiment.layers.of(role).items():
            side = "encoder" if place.startswith("enc") else "decoder"
            is_hidden = place.endswith("hidden")
            used = ("hidden" if is_hidden else "attention_relation") in weights and (kind or place in DECODER_ONLY)
            n_states = counts[side] + is_hidden  # hidden states include the embeddings
            if used and not -n_states <= layer < n_states:
                raise UserError(
                    f"experiment '{experiment.key}': {role}_{place}_layer {layer}: the {role}'s {side} has "
                    f"{counts[side]} layers"
                )
    if "attention_relation" in weights:
        for attention in attention_kinds(is_encoder_decoder=kind):
            _check_heads(head_shape(student, attention), head_shape(teacher, attention), attention)
    if not kind:
        say(f"experiment '{experiment.key}': decoder-only models, so no encoder and no cross-attention terms")


def keep_all_layers(model: "PreTrainedModel", role: str) -> None:
    """Switch off LayerDrop (layers skipped at random in training): a skipped layer has no states to compare.

    The model's config keeps its rates.
    """
    dropping: list[Any] = [module for module in model.modules() if getattr(module, "layerdrop", 0)]
    if dropping:
        rate = max(module.layerdrop for module in dropping)
        say(f"--{role}_name: LayerDrop ({rate:g}) is off, since the experiment compares layers")
    for module in dropping:
        module.layerdrop = 0.0


def _check_heads(student: HeadShape, teacher: HeadShape, attention: str) -> None:
    for part, what in (("q", "queries"), ("k", "keys and values")):
        if student.width(part) % teacher.heads(part):
            raise UserError(
                f"--student_name: {what} of {attention} have {student.width(part)} dimensions, which cannot be "
                f"regrouped to the teacher's {teacher.heads(part)} heads"
            )


def capture_states(model: "PreTrainedModel", batch: Batch, entry: LossEntry, layers: LayerIndices) -> States:
    """Run one forward pass on a batch with labels and keep what the loss entry compares."""
    if not entry.compares_layers:
        return States(lazy_target_logits(model, batch))
    wants_hidden, wants_heads = entry.hidden_weight > 0, entry.attention_relation_weight > 0
    with _captured_heads(model, layers if wants_heads else {}) as heads:
        output = teacher_forced(model, batch, with_hidden_states=wants_hidden)
    hidden = {stack: states[layers[f"{stack}_hidden"]] for stack, states in output.hidden.items()}
    return States(output.logits, hidden, heads, read_positions(model, batch))


@contextmanager
def _captured_heads(core: "PreTrainedModel", layers: LayerIndices) -> Iterator[dict[str, HeadStates]]:
    """Within: a dict that a forward pass fills with the queries, keys and values of these layers."""
    captured: dict[str, HeadStates] = {}

    def keep(
        name: str, states: Callable[[Tensor], Tensor], n_heads: int, _module: nn.Module, _args: tuple, out: Tensor
    ):
        captured[name] = HeadStates(states(out), n_heads)

    with ExitStack() as hooks:
        for kind in attention_kinds(is_encoder_decoder=core.config.is_encoder_decoder) if layers else ():
            shape = head_shape(core.config, kind)
            for part, projection in attention_projections(core, kind, layers[kind]).items():
                hook = partial(keep, f"{kind}_{part}", projection.states, shape.heads(part))
                hooks.callback(projection.module.register_forward_hook(hook).remove)
        yield captured
