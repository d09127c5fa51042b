"""Write model folders."""

from pathlib import Path
from typing import TYPE_CHECKING

from src.models.library_errors import quiet
from src.storage.atomic import atomic_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_model_folder(
    folder: str | Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", card: str
) -> Path:
    """Write a portable model folder atomically: safetensors, config, generation config, tokenizer, README.md (`card`).

    Replaces an existing folder.
    """
    folder = Path(folder)
    with atomic_folder(folder) as building:
        with quiet():
            model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        (building / "README.md").write_text(card, encoding="utf-8")
    return folder
