"""Answers of a completion API: the models, a request's choices, and the strings of tokens that are named by ids."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from src.api.client import RefusedError, ServerClient, TroubleError
from src.api.responses import CUT_OFF, FAILED
from src.api.simulated import DIGITS, token_string
from src.config.constants import STOP
from src.config.errors import UserError, one_line
from src.tokens.token_bytes import TokenBytes, n_whole

COMPLETIONS, MODELS = "/completions", "/models"
STOPPED = (STOP, "eos_token", "stop_sequence", "eos")  # finish reasons of a completion that ended by itself
ID = "token_id:"  # how vLLM writes a token by its id

T = TypeVar("T")


class Choice(msgspec.Struct):
    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None


class Answer(msgspec.Struct):
    choices: list[Choice]
    usage: Usage | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def names_ids(logprobs: Mapping[str, Any]) -> bool:
    """Whether log-probabilities name all tokens by their ids."""
    names = logprobs.get("tokens")
    return isinstance(names, list) and all(isinstance(name, str) and name.startswith(ID) for name in names)


class Spelling:
    """Replaces the ids of tokens by their strings."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._strings: dict[str, str] = {}  # by the token's name in an answer

    def of(self, logprobs: Mapping[str, Any]) -> tuple[str, dict[str, list]]:
        """The text and log-probabilities of a completion whose tokens are named by ids, with their strings instead.

        Special tokens are left out, and a last character that is not complete. Of two tokens with the same bytes, the
        likelier counts.
        """
        ids = [int(name.removeprefix(ID)) for name in logprobs["tokens"]]
        kept = [i for i, token in enumerate(ids) if token not in self._bytes.special]
        pieces = self._bytes.of([ids[i] for i in kept])
        kept, pieces = kept[: n_whole(pieces)], pieces[: n_whole(pieces)]
        written = {
            "tokens": list(map(token_string, pieces)),
            "token_logprobs": [round(logprobs["token_logprobs"][i], DIGITS) for i in kept],
            "top_logprobs": [self._top(logprobs["top_logprobs"][i]) for i in kept],
        }
        return b"".join(pieces).decode().strip(), written

    def _top(self, entries: Mapping[str, float]) -> dict[str, float]:
        strings = self._strings
        top: dict[str, float] = {}
        for name, value in entries.items():
            string = strings.get(name)
            if string is None:
                [piece] = self._bytes.of([int(name.removeprefix(ID))])
                string = strings[name] = token_string(piece)
            value = round(value, DIGITS)
            if string not in top or top[string] < value:
                top[string] = value
        return top


def server_model(client: ServerClient, name: str | None) -> str:
    """The name of the model to ask for: `name`, or the only one that the server has. Raises UserError without one."""
    try:
        found = client.request(MODELS, None, lambda data: decoded(data, _Models), give_up_after=0.0)
    except RefusedError as error:
        if name is None:
            raise UserError(f"{error}; does --server_url end as the server's base URL does (/v1)?") from None
        return name
    names = [model.id for model in found.data]
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        what = f"no model {name!r}" if name else "several models, or none; give --server_model"
        raise UserError(f"{client.url}: has {what}; possible: {' '.join(names)[:300]}")
    return name


def decoded(data: bytes, kind: type[T]) -> T:
    """JSON as a type; raises TroubleError for what is not: a proxy's page, or an answer that was cut."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TroubleError(f"an answer that cannot be read: {one_line(error)}") from None


def read_answer(data: bytes, *, needs_logprobs: bool) -> Answer:
    """An answer, its choices in order.

    Raises TroubleError if one is not complete, and RefusedError if the server does not answer the input.
    """
    answer = decoded(data, Answer)
    answer.choices.sort(key=lambda choice: choice.index)
    for choice in answer.choices:
        if choice.finish_reason in FAILED:
            raise RefusedError(f"the server does not answer this input: {FAILED[choice.finish_reason]}")
        if choice.finish_reason not in STOPPED + CUT_OFF:
            raise TroubleError(f"a completion that is not complete (finish_reason {choice.finish_reason})")
        if needs_logprobs and not choice.logprobs and choice.text.strip():
            raise TroubleError("a completion without log-probabilities")
    if not answer.choices:
        raise TroubleError("an answer without completions")
    return answer
