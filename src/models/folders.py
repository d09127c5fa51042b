"""Write model folders."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from src.storage.atomic import atomic_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
from src.models.library_errors import quiet


def source_name(name: str, places: dict[str, tuple[int, ...]], source: dict[str, torch.Tensor]) -> str:
    """The name, in the whole model, of a pruned model's tensor."""
    for path, kept in places.items():
        if name.startswith(path + "."):
            number, _, rest = name.removeprefix(path + ".").partition(".")
            old = f"{path}.{kept[int(number)]}.{rest}"
            return old if old in source else f"{path}.0.{rest}"
    return name


# ------------------------------------------------------------------------------------------------------- model folders


def write_model_folder(
    folder: str | Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", card: str
) -> Path:
    """Write a portable model folder: safetensors, config, generation config, tokenizer, README.md.

    Whole or not at all; replaces a folder that is there.
    """
    folder = Path(folder)
    with atomic_folder(folder) as building:
        with quiet():
            model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        (building / "README.md").write_text(card, encoding="utf-8")
    return folder
