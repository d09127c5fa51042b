"""Find a model: a local folder, a copy in the hub's cache, or the hub."""

import json
import re
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError
from src.models.library_errors import in_one_line
from src.storage.json_files import check_characters

if TYPE_CHECKING:
    pass


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
    """A local folder (`base` itself, or a complete copy in the hub's cache), else a name that the hub answers to.

    Asks the hub once, with a time limit: without a network `from_pretrained` would retry for half a minute per file.
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


def has_file(source: str, file: str) -> bool:
    """Whether the folder, or the hub's repository, has the file."""
    from huggingface_hub import HfApi

    return (Path(source) / file).is_file() if Path(source).is_dir() else HfApi().file_exists(source, file)


def find_weights(path: Path) -> Path:
    """`path` itself if it is a file, or the file of weights in a folder."""
    for file in (path, *(path / name for name in WEIGHT_FILES)):
        if file.is_file():
            return file
    raise UserError(f"{path}: no weights there; give a .pt or .safetensors file, or a folder with model.safetensors")


def read_json_object(place: str, source: str, file: str) -> dict:
    """What a JSON file of a local model folder holds; nothing of one that is not there, or of a hub's."""
    path = Path(source) / file
    if not path.is_file():
        return {}
    part = "tokenizer" if file.startswith("tokenizer") else file
    with one_line_errors(place, part, "cannot be read"):
        data = path.read_bytes()
        content = json.loads(data.decode("utf-8"))
        check_characters(content, data)
    if not isinstance(content, dict):
        kind = type(content).__name__.removesuffix("Type")
        raise UserError(f"{place}: {part} cannot be read: {file} must hold an object, not a {kind}")
    return content


def one_line_errors(place: str, part: str, problem: str) -> AbstractContextManager[None]:
    return in_one_line(place, f"{part} {problem}")
