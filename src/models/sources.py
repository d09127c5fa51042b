"""Find a model: a local folder, a copy in the hub's cache, or the hub."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from src.config.errors import UserError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_TIMEOUT = 10  # seconds


@lru_cache(maxsize=64)
def find_model(base: str) -> str:
    """The local folder of a model (`base` itself, or a complete copy in the hub's cache), or `base` if the hub has it.

    Asks the hub once, with a time limit: without a network `from_pretrained` would retry for half a minute per file.
    Raises UserError if there is neither.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    failures: Any = (*HfHubHTTPError.__bases__, OSError, ValueError)  # its bases: the HTTP client's error, and OSError
    what_to_do = "give a local folder made by save_pretrained or create_student_main.py, or a hub name with a network"
    folder = Path(base)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{base}: holds no config.json; {what_to_do}")
        return base
    if folder.exists() or not HUB_NAME.fullmatch(base):
        raise UserError(f"{base}: no such model folder; {what_to_do}")
    try:
        cached = try_to_load_from_cache(base, "config.json")
        if isinstance(cached, str) and any((Path(cached).parent / file).is_file() for file in WEIGHT_FILES):
            return str(Path(cached).parent)
        HfApi().model_info(base, timeout=HUB_TIMEOUT)
    except failures as error:
        raise UserError(f"{base}: no such folder, and the hub does not give it; {what_to_do}") from error
    return base


def file_exists(source: str, file: str) -> bool:
    """Whether a file is in a model folder, or in the hub repository `source`."""
    from huggingface_hub import HfApi

    return (Path(source) / file).is_file() if Path(source).is_dir() else HfApi().file_exists(source, file)


def find_weights(path: Path) -> Path:
    """The file of weights: `path` itself, or the one in that folder. Raises UserError if there is none."""
    for file in (path, *(path / name for name in WEIGHT_FILES)):
        if file.is_file():
            return file
    raise UserError(f"{path}: no weights there; give a .pt or .safetensors file, or a folder with model.safetensors")
