"""Parse model names: a folder or hub name, and the layers that a `_prune` suffix keeps."""

import re
from collections.abc import Sequence
from pathlib import Path

from src.config.errors import UserError

KeptLayers = tuple[int, ...]


def parse_model_name(name: str) -> tuple[str, KeptLayers | None, KeptLayers | None]:
    """`NAME_prune0_1:0_5` → (NAME, encoder layers to keep, decoder layers to keep); None keeps all.

    `NAME_prune` keeps decoder layers 0 and −1. If a folder has the full name, the name is that folder. Raises UserError
    for a suffix that is not a list of layers.
    """
    match = re.fullmatch(r"(.+)_prune([-\d_:,.]*)", name.rstrip("/"))
    if match is None or Path(name).is_dir():
        return name, None, None
    base, kept = match.groups()
    if not kept:
        return base, None, (0, -1)
    encoder, colon, decoder = kept.rpartition(":")
    if colon and not encoder and not decoder:
        raise UserError(f"{name}: nothing before or after the colon; write e.g. {base}_prune0_1:0_5")
    return base, _parse_layers(name, encoder), _parse_layers(name, decoder)


def _parse_layers(name: str, text: str) -> KeptLayers | None:
    if not text:
        return None
    if not re.fullmatch(r"-?\d+(_-?\d+)*", text):
        base = name.rpartition("_prune")[0]
        raise UserError(
            f"{name}: '{text}' is not a list of layers; write {base}_prune, {base}_prune0_2_5 or {base}_prune0_1:0_5"
        )
    return tuple(int(number) for number in text.split("_"))


def resolve_layers(layers: Sequence[int] | None, n_total: int, what: str) -> tuple[int, ...]:
    """Layer numbers from 0 to n_total − 1 in the order given; negative ones count from the end, None means all.

    `0 -1` of a model with one layer is that layer. Raises UserError for numbers out of range or given twice.
    """
    if layers is None:
        return tuple(range(n_total))
    for number in layers:
        if not -n_total <= number < n_total:
            raise UserError(f"{what} layer {number}: the model has {n_total} layers, 0 to {n_total - 1}")
    resolved = tuple(dict.fromkeys(number % n_total for number in layers))
    if not resolved or len(set(layers)) < len(layers) or (len(resolved) < len(layers) and n_total > 1):
        raise UserError(f"{what} layers {' '.join(map(str, layers))}: name each layer once, and at least one")
    return resolved
