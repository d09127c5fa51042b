"""Read the columns of chat datasets, `messages` or `prompt` and `completion`, as inputs and targets."""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

from src.config.constants import TARGET, TEXT
from src.config.errors import UserError
from src.data.conversations import ASSISTANT, SYSTEM, USER, Message, as_text
from src.data.schema import Columns, Datasets, kind
from src.storage.json_files import parse_json

MESSAGES, PROMPT, COMPLETION = "messages", "prompt", "completion"
ROLES = (SYSTEM, USER, ASSISTANT)


def with_texts(datasets: Datasets, source: str) -> Datasets:
    """Make `text` and `target` of `messages`, or of `prompt` and `completion`, where a split has no `text`.

    The target is the last message if it is the assistant's; a split without such has no `target`. The text is what
    comes before (`as_text`). The columns read are left out. Raises UserError with the place of what is no conversation.
    """
    return {split: _with_texts(columns, f"{source}: split '{split}'") for split, columns in datasets.items()}


def _with_texts(columns: Columns, place: str) -> Columns:
    read = {MESSAGES} if MESSAGES in columns else {PROMPT, COMPLETION}
    if TEXT in columns or not read & {MESSAGES, PROMPT} & columns.keys():
        return columns
    if MESSAGES in columns:
        conversations = _conversations(columns, MESSAGES, USER, place)
    else:
        answers = _conversations(columns, COMPLETION, ASSISTANT, place) if COMPLETION in columns else repeat([])
        prompts = _conversations(columns, PROMPT, USER, place)
        conversations = ([*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=False))
    texts, targets = [], []
    for row, messages in enumerate(conversations):
        has_answer = bool(messages) and messages[-1]["role"] == ASSISTANT
        question = messages[:-1] if has_answer else messages
        if not question or question[-1]["role"] != USER:
            raise UserError(
                f"{place}, row {row}: expected a last message of the user, and the assistant's answer to it"
            )
        texts.append(as_text(question))
        targets.append(messages[-1]["content"] if has_answer else None)
    others = {name: values for name, values in columns.items() if name not in read}
    return {TEXT: texts, **({} if set(targets) <= {None} else {TARGET: targets}), **others}


def _conversations(columns: Columns, name: str, role: str, place: str) -> Iterable[list[Message]]:
    """The messages in each row of a column. A text is one message of `role`; in the column `messages`, it is JSON."""
    for row, value in enumerate(columns[name]):
        here = f"{place}, column '{name}', row {row}"
        if isinstance(value, str):
            value = parse_json(value.encode(), here) if name == MESSAGES else [{"role": role, "content": value}]
        if value is None and name == COMPLETION:
            value = []
        if not isinstance(value, list):
            raise UserError(f"{here}: expected a list of messages, found {kind(value)}")
        yield [_message(each, here) for each in value]


def _message(value: Any, place: str) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text")) for part in content)
    if role not in ROLES or not isinstance(content, str):
        raise UserError(
            f"{place}: expected messages with a 'role' ({', '.join(ROLES)}) and a 'content' of text, found "
            f"{kind(value) if not isinstance(value, dict) else f'role {role!r} and {kind(content)}'}"
        )
    return {"role": role, "content": content}
