"""Model names: a folder, GGUF file or hub name and the layers that a `_prune` suffix keeps, and where the model is."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from src.config.errors import UserError
from src.models.library_errors import read_json_object
from src.models.quantized import GGUF, check_packages, is_gguf

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_CONFIG = "adapter_config.json"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_TIMEOUT = 10  # seconds
KeptLayers = tuple[int, ...]
LAYERS = r"-?\d+(?:_-?\d+)*"


def parse_model_name(name: str) -> tuple[str, KeptLayers | None, KeptLayers | None]:
    """`NAME_prune0_1:0_5` → (NAME, encoder layers to keep, decoder layers to keep); None keeps all.

    `NAME_prune` keeps decoder layers 0 and −1. If a folder has the full name, the name is that folder. Raises UserError
    for a suffix that is not a list of layers.
    """
    base, _, kept = name.rstrip("/").rpartition("_prune")
    if not base or not re.fullmatch(r"[-\d_:,.]*", kept) or Path(name).is_dir():
        return name, None, None
    if not kept:
        return base, None, (0, -1)
    match = re.fullmatch(rf"(?:({LAYERS})?:)?({LAYERS})?", kept)
    if match is None or kept == ":":
        raise UserError(
            f"{name}: '{kept}' is not a list of layers; write {base}_prune, {base}_prune0_2_5 or {base}_prune0_1:0_5"
        )
    encoder, decoder = (tuple(map(int, layers.split("_"))) if layers else None for layers in match.groups())
    return base, encoder, decoder


def resolve_layers(layers: Sequence[int] | None, n_total: int, what: str) -> tuple[int, ...]:
    """Layer numbers from 0 to n_total − 1 in the order given; negative ones count from the end, None means all.

    `0 -1` of a model with one layer is that layer. Raises UserError for numbers out of range or given twice.
    """
    if layers is None:
        return tuple(range(n_total))
    if not n_total:
        raise UserError(f"{what} layers {' '.join(map(str, layers))}: the model has no {what}")
    for number in layers:
        if not -n_total <= number < n_total:
            raise UserError(f"{what} layer {number}: the model has {n_total} layers, 0 to {n_total - 1}")
    resolved = tuple(dict.fromkeys(number % n_total for number in layers))
    if not resolved or len(set(layers)) < len(layers) or (len(resolved) < len(layers) and n_total > 1):
        raise UserError(f"{what} layers {' '.join(map(str, layers))}: name each layer once, and at least one")
    return resolved


@lru_cache(maxsize=64)
def find_model(base: str) -> str:
    """The local folder of a model (`base` itself, or a complete copy in the hub's cache), or `base` if the hub has it.

    Of an adapter: that of its base model. A GGUF file is a place of its own.
    Asks the hub once, with a time limit: without a network `from_pretrained` would retry for half a minute per file.
    Raises UserError if there is neither.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    failures: Any = (*HfHubHTTPError.__bases__, OSError, ValueError)  # its bases: the HTTP client's error, and OSError
    what_to_do = "give a local folder made by save_pretrained or create_student_main.py, or a hub name with a network"
    folder = Path(base)
    under = adapter_base(base)
    if under is not None:
        return find_model(parse_model_name(under)[0])
    if is_gguf(base):
        check_packages(GGUF, base)
        return base
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{base}: holds no config.json; {what_to_do}")
        return base
    if folder.exists() or not HUB_NAME.fullmatch(base):
        raise UserError(f"{base}: no such model folder or file; {what_to_do}")
    try:
        cached = try_to_load_from_cache(base, "config.json")
        if isinstance(cached, str) and any((Path(cached).parent / file).is_file() for file in WEIGHT_FILES):
            return str(Path(cached).parent)
        HfApi().model_info(base, timeout=HUB_TIMEOUT)
    except failures as error:
        raise UserError(f"{base}: no such folder, and the hub does not give it; {what_to_do}") from error
    return base


def adapter_base(base: str) -> str | None:
    """The model name of an adapter folder's base; None if `base` is no adapter. Raises UserError if it has none.

    A relative path starts where the user is, or else in the adapter's folder.
    """
    folder = Path(base)
    if not folder.is_dir() or not (folder / ADAPTER_CONFIG).is_file():
        return None
    if (folder / "config.json").is_file():
        raise UserError(
            f"{base}: holds a model (config.json) and an adapter ({ADAPTER_CONFIG}); keep one of them there"
        )
    name = read_json_object(base, base, ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{base}: {ADAPTER_CONFIG}: base_model_name_or_path must name the model of this adapter")
    root = Path(parse_model_name(name)[0])
    if not (root / "config.json").is_file() and (folder / root / "config.json").is_file():
        return str(folder / name)
    if (root / ADAPTER_CONFIG).is_file():
        raise UserError(f"{base}: its base model {name} is an adapter too; merge that one into a model folder first")
    return name


def file_exists(source: str, file: str) -> bool:
    """Whether a file is in a model folder, or in the hub repository `source`; a GGUF file holds none."""
    from huggingface_hub import HfApi

    return (Path(source) / file).is_file() if Path(source).exists() else HfApi().file_exists(source, file)
