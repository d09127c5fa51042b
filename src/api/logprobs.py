"""Read a completion's tokens and log-probabilities, in the form of a completion API, a chat API or the published file.

A token is known by its string in the file; `token_bytes` gives the bytes that it spells.
"""

from collections.abc import Sequence
from math import exp, log1p
from typing import Annotated, Any, cast

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from src.api.responses import Completion, checked
from src.api.spelling import TeacherTokens, describe_mismatch, encode_with_leading_space, locate_pieces, token_bytes
from src.config.errors import UserError
from src.tokens.token_bytes import REPLACEMENT

ROUNDING = 1e-3  # how far rounding may put a log-probability above 0

# JSON has no number for minus infinity: APIs write null or a string.
LogProb = Annotated[float, Meta(le=ROUNDING)] | Annotated[str, Meta(pattern=r"(?i)^-inf(inity)?\Z")] | None
Position = dict[str, LogProb] | None  # log-probability by token string
Byte = Annotated[int, Meta(ge=0, le=255)]


class _TopToken(Struct, gc=False):
    """A token of a chat API. Of a part of a character, only `bytes` tells what it spells."""

    token: str
    logprob: LogProb = None
    bytes: list[Byte] | None = None


class _ChatToken(_TopToken, gc=False):
    """The token that was written at a position, and the most likely ones there."""

    top_logprobs: list[_TopToken] | None = None


class _Logprobs(Struct):
    """The `logprobs` of a response: `content` from a chat API, otherwise three lists of one length."""

    content: list[_ChatToken] | UnsetType | None = UNSET
    tokens: list[str] | None = None
    token_logprobs: list[LogProb] | None = None
    top_logprobs: list[Position] | None = None


def lacks_logprobs(completion: Completion) -> bool:
    """Whether a completion has a text, but the file has no log-probabilities of its tokens."""
    known = completion.logprobs
    if isinstance(known, Raw) and bytes(known).startswith(b"{"):
        known = checked(known, dict[str, Raw], completion.place, f"{completion.path}.logprobs")
    if isinstance(known, dict):
        known = known.get("content", known.get("tokens"))
    return _is_empty(known) and bool(completion.prediction.strip())


def _is_empty(value: Any) -> bool:
    """Whether a value, parsed or as JSON text, is null, [] or {}."""
    if isinstance(value, Raw):
        return len(value) < 100 and bytes(value).translate(None, b" \t\r\n") in (b"null", b"[]", b"{}")
    return value in (None, [], {})


def read_tokens(completion: Completion, new_word_char: str = " ") -> TeacherTokens:
    """The tokens of a completion; an empty completion needs none. For `new_word_char` see `token_bytes`.

    Raises UserError, naming the place, if there are none, if a value has the wrong type, if a log-probability is above
    0 or not a number, or if the tokens do not spell the text (white space around it and a last token that ends the
    text do not count).
    """
    names, top = _names_and_top(completion)
    if not names and completion.prediction.strip():
        raise UserError(
            f"{completion.place}: no log-probabilities of its tokens ('tokens', 'logprobs'); ask the API for them"
        )
    pieces = [token_bytes(name, new_word_char) for name in names]
    text = encode_with_leading_space(completion.prediction)
    spans = locate_pieces(pieces, text)
    if spans is None:
        raise UserError(f"{completion.place}: its tokens do not spell its text; {describe_mismatch(pieces, text)}")
    return TeacherTokens(names, spans, top)


def _names_and_top(completion: Completion) -> tuple[list[str], list[dict[str, float]]]:
    """The tokens' strings, and the known log-probabilities at each."""
    logprobs, place, path = completion.logprobs, completion.place, f"{completion.path}.logprobs"
    entry = Raw if isinstance(logprobs, Raw) else Any
    read = checked(logprobs, _Logprobs | list[entry] | None, place, path)  # type: ignore[valid-type]
    if isinstance(read, _Logprobs):
        if read.content is not UNSET:
            return _of_chat_api(read.content or [])
        return _with_tops(read.tokens or [], read.token_logprobs or None, read.top_logprobs or None, place)
    first = checked(read[0], Any, place, path) if read else None
    if isinstance(first, dict) and isinstance(
        first.get("token"), str
    ):  # a chat API's; a column `tokens` may be there too
        return _of_chat_api(checked(logprobs, list[_ChatToken], place, path))
    names = checked(completion.tokens, list[str] | None, place, f"{completion.path}.tokens") or []
    return _with_tops(names, None, checked(logprobs, list[Position] | None, place, path) or [], place)


def _with_tops(
    names: list[str], chosen: Sequence[LogProb] | None, tops: Sequence[Position] | None, place: str
) -> tuple[list[str], list[dict[str, float]]]:
    """The tokens with the log-probabilities at each, that of the token itself (`chosen`) included if it is known."""
    for values in (chosen, tops):
        if values is not None and len(values) != len(names):
            raise UserError(f"{place}: {len(names)} tokens need as many log-probabilities, found {len(values)}")
    known = [{} if top is None else _known(top) for top in tops or [None] * len(names)]
    for name, value, top in zip(names, chosen or (), known, strict=False):
        if name not in top:
            top |= _known({name: value})
    return names, known


def _known(top: dict[str, LogProb]) -> dict[str, float]:
    """The log-probabilities without those that are absent or minus infinity; rounding errors above 0 become 0."""
    values: Any = top.values()
    if set(map(type, values)) == {float} and max(values) <= 0:  # nearly always, and fast
        return cast(dict[str, float], top)
    return {name: min(value, 0.0) for name, value in top.items() if isinstance(value, float)}


def _of_chat_api(positions: list[_ChatToken]) -> tuple[list[str], list[dict[str, float]]]:
    names, tops = [], []
    for position in positions:
        top: dict[str, float] = {}
        for entry in position.top_logprobs or ():
            if isinstance(entry.logprob, float):
                name, value = _name(entry), min(entry.logprob, 0.0)
                top[name] = add_logs(top[name], value) if name in top else value  # parts of characters without bytes
        name = _name(position)
        if name not in top:
            top |= _known({name: position.logprob})
        names.append(name)
        tops.append(top)
    return names, tops


def _name(entry: _TopToken) -> str:
    """The token's string, in which `bytes` replace a part of a character."""
    name = entry.token
    if entry.bytes and ("\\x" in name or REPLACEMENT in name):
        return bytes(entry.bytes).decode(errors="surrogateescape")
    return name


def add_logs(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), at most 0."""
    return min(0.0, max(a, b) + log1p(exp(-abs(a - b))))
