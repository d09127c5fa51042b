"""Conversations as texts: the messages that a model reads are one string, so that equal inputs are equal texts."""

import json
from collections.abc import Sequence

Message = dict[str, str]  # "role" and "content"

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
START = '[{"role": "'


def as_text(messages: Sequence[Message]) -> str:
    """The text of messages, the last of which is the user's: its content if it is the only one, otherwise JSON."""
    return messages[0]["content"] if len(messages) == 1 else _as_json(messages)


def messages_of(text: str) -> list[Message]:
    """The messages of a text of `as_text`; any other text is one message of the user."""
    messages = [{"role": USER, "content": text}]
    if not text.startswith(START):
        return messages
    try:
        several = json.loads(text)
        is_ours = len(several) > 1 and several[-1]["role"] == USER and text == _as_json(several)
    except (ValueError, LookupError, TypeError, RecursionError):  # it only begins like a conversation
        is_ours = False
    return several if is_ours else messages


def is_conversation(text: str) -> bool:
    """Whether a text has several messages."""
    return text.startswith(START) and len(messages_of(text)) > 1


def contents_of(text: str) -> str:
    """What the messages of a text say, one after the other."""
    return "\n".join(message["content"] for message in messages_of(text)) if text.startswith(START) else text


def _as_json(messages: Sequence[Message]) -> str:
    pairs = [{"role": message["role"], "content": message["content"]} for message in messages]
    return json.dumps(pairs, ensure_ascii=False)
