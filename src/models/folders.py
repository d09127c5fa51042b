"""Model folders: write one, and read the prompt that its model was trained with."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from src.config.console import say
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.config.parsing import shown
from src.devices.data_parallel import whole_state
from src.models.adapters import has_lora, save_lora
from src.models.library_errors import quiet
from src.models.names import parse_model_name
from src.storage.atomic import atomic_folder
from src.storage.json_files import read_json, write_json
from src.tokens.task_prompt import unescape_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT_FILE = "task_prompt.json"


class TrainedPrompt(msgspec.Struct, omit_defaults=True):
    """The prompt flags that a model was trained with, as its folder stores them."""

    task_prompt: str
    chat_template: bool = False
    system_prompt: str = ""

    @classmethod
    def of(cls, config: SharedArguments) -> "TrainedPrompt":
        return cls(config.task_prompt, bool(config.chat_template), config.system_prompt or "")

    def __str__(self) -> str:
        chat = f" --chat_template True --system_prompt {shown(self.system_prompt)}" if self.chat_template else ""
        return f"--task_prompt {shown(self.task_prompt)}{chat}"

    @property
    def _meaning(self) -> tuple[str, bool, str]:
        return unescape_prompt(self.task_prompt).strip(" "), self.chat_template, self.system_prompt

    def means(self, other: "TrainedPrompt") -> bool:
        """Whether both make the same inputs."""
        return self._meaning == other._meaning


def write_model_folder(
    folder: str | Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    card: str,
    prompt: TrainedPrompt | None = None,
) -> Path:
    """Write a portable model folder atomically: as `save_model`, with README.md (`card`). Replaces an existing folder.

    prompt: the one that the model was trained with.
    """
    with atomic_folder(Path(folder)) as building:
        save_model(building, model, tokenizer)
        (building / "README.md").write_text(card, encoding="utf-8")
        if prompt is not None:
            write_json(building / PROMPT_FILE, msgspec.to_builtins(prompt))
    return Path(folder)


def save_model(folder: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Fill a folder with safetensors, config, generation config and tokenizer; of `add_lora`, the adapter alone."""
    if has_lora(model):
        save_lora(model, folder)
    else:
        with quiet():
            model.save_pretrained(folder, state_dict=whole_state(model))
    tokenizer.save_pretrained(folder)


def trained_prompt(model_name: str) -> TrainedPrompt | None:
    """The prompt flags with which this suite trained the model; None if its folder does not say."""
    file = Path(parse_model_name(model_name)[0]) / PROMPT_FILE
    if not file.is_file():
        return None
    try:
        return msgspec.convert(read_json(file), TrainedPrompt)
    except msgspec.ValidationError as error:
        raise UserError(f"{file}: not the prompt of a model: {error}") from None


def warn_if_prompt_differs(config: SharedArguments, model_name: str, flag: str) -> None:
    """Warn if the model was trained with another prompt than the flags'."""
    given = TrainedPrompt.of(config)
    trained = trained_prompt(model_name)
    if trained is None or trained.means(given):
        return
    with_what = shown(trained.task_prompt)
    if trained.chat_template or given.chat_template:
        with_what = str(trained) if trained.chat_template else f"{trained} --chat_template False"
    say(f"warning: {given}: --{flag} {model_name} was trained with {with_what}")
