"""Students made by keeping some layers of a teacher."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from src.config.errors import UserError
from src.models.families import PER_LAYER_KEYS, family_of, layer_counts, set_layer_counts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
from src.models.folders import source_name
from src.models.library_errors import quiet
from src.models.names import resolve_layers

# ------------------------------------------------------------------------------------------------------ fewer layers


def spaced_layers(n_total: int, n_keep: int) -> tuple[int, ...]:
    """`n_keep` of `n_total` layers as far apart as possible, first and last included (the first alone if one is kept).

    Maximally spaced layers are the usual start of a shallow student (Shleifer & Rush 2020, arXiv 2010.13002).
    """
    if not 1 <= n_keep <= n_total:
        raise UserError(f"cannot keep {n_keep} layers of {n_total}")
    if n_keep == 1:
        return (0,)
    return tuple((i * (n_total - 1) + (n_keep - 1) // 2) // (n_keep - 1) for i in range(n_keep))


def pruned_config(
    config: "PreTrainedConfig", encoder_layers: Sequence[int] | None, decoder_layers: Sequence[int] | None
) -> "PreTrainedConfig":
    """A copy of `config` with the layer counts, and the lists with an entry per layer, of the layers kept."""
    n_layers = layer_counts(config)
    kept = _kept_layers(config, encoder_layers, decoder_layers)
    pruned = copy.deepcopy(config)
    for key in PER_LAYER_KEYS:
        entries = getattr(config, key, None)
        if isinstance(entries, list) and len(entries) == n_layers["decoder"]:
            setattr(pruned, key, [entries[number] for number in kept["decoder"]])
    set_layer_counts(pruned, {side: len(layers) for side, layers in kept.items()})
    return pruned


def prune(
    model: "PreTrainedModel", encoder_layers: Sequence[int] | None, decoder_layers: Sequence[int] | None
) -> "PreTrainedModel":
    """A model of the layers named (None: all), with copies of `model`'s weights and `model`'s mode.

    It is built from its own pruned config, so its saved folder reloads by itself, and caches count its layers from 0.
    What only a first layer has (T5's relative positions) stays with the first layer.
    Raises UserError for a layer that does not exist, or a family whose layout is not known.
    """
    family = family_of(model.config)
    kept = _kept_layers(model.config, encoder_layers, decoder_layers)
    paths = {"encoder": family.encoder_layers, "decoder": family.decoder_layers}
    places = {path: kept[side] for side, path in paths.items() if path}
    config = pruned_config(model.config, encoder_layers, decoder_layers)
    with torch.device("meta"):
        names = type(model)(config).state_dict().keys()
    source = model.state_dict()
    weights = {name: source[source_name(name, places, source)].clone() for name in names}
    with quiet():
        pruned = saved_as_usual(type(model).from_pretrained(None, config=config, state_dict=weights, dtype=model.dtype))
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.config._name_or_path = model.config._name_or_path
    return pruned.to(model.device).train(model.training)  # type: ignore[arg-type]


def saved_as_usual(model: "PreTrainedModel") -> "PreTrainedModel":
    """A model whose weights were given under the names that they have in memory, to be saved under those of files.

    The library saves a model under the names that it was read by; other tools know only those of files.
    """
    if not getattr(model, "_weight_conversions", True):
        model._weight_conversions = None  # type: ignore[assignment]
    return model


def _kept_layers(
    config: "PreTrainedConfig", encoder: Sequence[int] | None, decoder: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    n_layers = layer_counts(config)
    if encoder is not None and not n_layers["encoder"]:
        raise UserError(f"encoder layers {' '.join(map(str, encoder))}: a {config.model_type} model has no encoder")
    named = {"encoder": encoder, "decoder": decoder}
    return {side: resolve_layers(named[side], n, side) for side, n in n_layers.items() if n}
