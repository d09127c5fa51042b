"""Model folders: write one, and read the task prompt that its model was trained with."""

from pathlib import Path
from typing import TYPE_CHECKING

from src.config.console import say
from src.config.errors import UserError
from src.config.parsing import shown
from src.models.adapters import has_lora, save_lora
from src.models.library_errors import quiet
from src.models.names import parse_model_name
from src.storage.atomic import atomic_folder
from src.storage.json_files import read_json, write_json
from src.tokens.task_prompt import unescape_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT_FILE = "task_prompt.json"
PROMPT_KEY = "task_prompt"


def write_model_folder(
    folder: str | Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    card: str,
    task_prompt: str | None = None,
) -> Path:
    """Write a portable model folder atomically: as `save_model`, with README.md (`card`). Replaces an existing folder.

    task_prompt: the one that the model was trained with.
    """
    with atomic_folder(Path(folder)) as building:
        save_model(building, model, tokenizer)
        (building / "README.md").write_text(card, encoding="utf-8")
        if task_prompt is not None:
            write_json(building / PROMPT_FILE, {PROMPT_KEY: task_prompt})
    return Path(folder)


def save_model(folder: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Fill a folder with safetensors, config, generation config and tokenizer; of `add_lora`, the adapter alone."""
    if has_lora(model):
        save_lora(model, folder)
    else:
        with quiet():
            model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def trained_prompt(model_name: str) -> str | None:
    """The --task_prompt with which this suite trained the model; None if its folder does not say."""
    file = Path(parse_model_name(model_name)[0]) / PROMPT_FILE
    if not file.is_file():
        return None
    content = read_json(file)
    prompt = content.get(PROMPT_KEY) if isinstance(content, dict) else None
    if not isinstance(prompt, str):
        raise UserError(f"{file}: expected an object with the text '{PROMPT_KEY}'")
    return prompt


def warn_if_prompt_differs(given: str, model_name: str, flag: str) -> None:
    """Warn if the model was trained with another prompt than `given`."""
    trained = trained_prompt(model_name)
    if trained is not None and unescape_prompt(trained).strip(" ") != unescape_prompt(given).strip(" "):
        say(f"warning: --task_prompt {shown(given)}: --{flag} {model_name} was trained with {shown(trained)}")
