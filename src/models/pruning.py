"""Prune a model: copy some of its layers into a smaller one."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from src.config.errors import UserError
from src.models.families import PER_LAYER_KEYS, family_of, layer_counts, set_layer_counts
from src.models.library_errors import quiet
from src.models.names import resolve_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def spaced_layers(n_total: int, n_keep: int) -> tuple[int, ...]:
    """`n_keep` of `n_total` layers, maximally spaced: first and last included; only the first if one is kept.

    The usual start of a shallow student (Shleifer & Rush 2020, arXiv 2010.13002). Raises UserError if `n_keep` is not
    between 1 and `n_total`.
    """
    if not 1 <= n_keep <= n_total:
        raise UserError(f"cannot keep {n_keep} layers of {n_total}")
    if n_keep == 1:
        return (0,)
    return tuple((i * (n_total - 1) + (n_keep - 1) // 2) // (n_keep - 1) for i in range(n_keep))


def pruned_config(
    config: "PreTrainedConfig", encoder_layers: Sequence[int] | None, decoder_layers: Sequence[int] | None
) -> "PreTrainedConfig":
    """A copy of a config for the layers kept (None: all): its counts, and its lists with one entry per layer.

    Raises UserError as `prune`.
    """
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
    """A new model with copies of the layers kept (None: all) and of all other weights, in the mode of `model`.

    It has its own pruned config: its saved folder can be loaded alone, and caches count its layers from 0. Weights that
    only the first layer has (T5's relative positions) go to the new first layer.
    Raises UserError for a layer that does not exist, and for a model type without a family.
    """
    family = family_of(model.config)
    kept = _kept_layers(model.config, encoder_layers, decoder_layers)
    paths = {"encoder": family.encoder_layers, "decoder": family.decoder_layers}
    places = {path: kept[side] for side, path in paths.items() if path}
    config = pruned_config(model.config, encoder_layers, decoder_layers)
    with torch.device("meta"):
        names = type(model)(config).state_dict().keys()
    source = model.state_dict()
    weights = {name: source[_source_name(name, places, source)].clone() for name in names}
    with quiet():
        pruned = use_file_names(type(model).from_pretrained(None, config=config, state_dict=weights, dtype=model.dtype))
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.config._name_or_path = model.config._name_or_path
    return pruned.to(model.device).train(model.training)  # type: ignore[arg-type]


def _source_name(name: str, places: dict[str, tuple[int, ...]], source: dict[str, torch.Tensor]) -> str:
    """The name in the unpruned model of a pruned model's tensor. `places`: path of a stack of layers → layers kept."""
    for path, kept in places.items():
        if name.startswith(path + "."):
            number, _, rest = name.removeprefix(path + ".").partition(".")
            old = f"{path}.{kept[int(number)]}.{rest}"
            return old if old in source else f"{path}.0.{rest}"
    return name


def use_file_names(model: "PreTrainedModel") -> "PreTrainedModel":
    """Make `save_pretrained` write the weight names that model files have, which other tools know.

    Without this, transformers saves weights under the names with which they were given: here, those of modules.
    """
    if not getattr(model, "_weight_conversions", True):
        model._weight_conversions = None  # type: ignore[assignment]
    return model


def _kept_layers(
    config: "PreTrainedConfig", encoder: Sequence[int] | None, decoder: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    named = {"encoder": encoder, "decoder": decoder}
    return {side: resolve_layers(named[side], n, side) for side, n in layer_counts(config).items()}
