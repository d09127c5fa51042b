"""The prompt that a model was trained with, which its folder knows if this suite wrote it."""

from pathlib import Path

from src.config.console import say
from src.config.errors import UserError
from src.config.parsing import shown
from src.models.names import parse_model_name
from src.storage.json_files import read_json
from src.tokens.preprocessing import spelled

PROMPT_FILE = "task_prompt.json"
KEY = "task_prompt"


def known_prompt(model_name: str) -> str | None:
    """What --task_prompt was when the model was trained; None for models that this suite has not trained."""
    file = Path(parse_model_name(model_name)[0]) / PROMPT_FILE
    if not file.is_file():
        return None
    content = read_json(file)
    prompt = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(prompt, str):
        raise UserError(f"{file}: expected an object with the text '{KEY}'")
    return prompt


def warn_of_another_prompt(given: str, model_name: str, flag: str) -> None:
    """Say so if a model is to be used with another prompt than it was trained with."""
    known = known_prompt(model_name)
    if known is not None and spelled(known).strip(" ") != spelled(given).strip(" "):
        say(f"warning: --task_prompt {shown(given)}: --{flag} {model_name} was trained with {shown(known)}")
