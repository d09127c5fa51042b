"""API files in three forms, spelled from a model's tokens."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from src.config.constants import TARGET, TEXT
from src.data.schema import Columns, Datasets
from src.tokens.token_bytes import TokenBytes, n_whole

RESULTS = {"published": "api_completions.json", "chat": "api_completions.json", "jsonl": "api_completions.jsonl"}


STOP, LENGTH = "stop", "length"  # why a completion ended, in an API's words


DIGITS = 6  # of a log-probability


IMPOSSIBLE = -9999.0  # what an API writes for a log-probability of minus infinity


@dataclass(frozen=True)
class Completion:
    """tokens, logprobs: (T, K + 1), at each position the K most likely tokens, and last the one written: 8 bytes each.

    EOS has no position; ended: whether the model wrote one.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    ended: bool


Completions = dict[str, list[list[Completion]]]  # by split, row and number


# ---------------------------------------------------------------------------------------------------- numbers → strings


@dataclass(frozen=True)
class Position:
    """A token in an API's terms: its bytes, its log-probability, and by bytes those of the most likely ones.

    `top` falls and holds the token itself; of two tokens with the same bytes the likelier counts.
    """

    piece: bytes
    logprob: float
    top: dict[bytes, float]


@dataclass(frozen=True)
class Spelled:
    """A completion in an API's terms; its positions' pieces together are its text in UTF-8."""

    text: str
    positions: list[Position]
    finish_reason: str


def spell(completion: Completion, token_bytes: TokenBytes) -> Spelled:
    """Special tokens are no positions, the space before the first word is no text, and a broken character ends it all.

    Such a character (bytes that are not UTF-8, or that the limit of length cut) and what follows it are left out.
    """
    rows = [
        row
        for row in zip(completion.tokens.tolist(), completion.logprobs.tolist(), strict=True)
        if row[0][-1] not in token_bytes.special
    ]
    positions = [_position(*row, token_bytes, is_first=i == 0) for i, row in enumerate(rows)]
    whole = positions[: n_whole([position.piece for position in positions])]
    text = b"".join(position.piece for position in whole).decode()
    return Spelled(text, whole, STOP if completion.ended and len(whole) == len(positions) else LENGTH)


def _position(tokens: list[int], logprobs: list[float], token_bytes: TokenBytes, *, is_first: bool) -> Position:
    """`tokens`, `logprobs`: the most likely ones in falling order, and last the one written, again or for once."""
    pieces = token_bytes.of(tokens)
    if is_first:
        pieces = [piece.removeprefix(b" ") for piece in pieces]
    rounded = [round(logprob, DIGITS) for logprob in logprobs]
    top: dict[bytes, float] = {}
    for piece, logprob in zip(pieces, rounded, strict=True):
        top.setdefault(piece, logprob)
    return Position(pieces[-1], rounded[-1], top)


# ------------------------------------------------------------------------------------------------------ strings → forms


def dataset_form(form: str, datasets: Datasets, completions: Completions, token_bytes: TokenBytes) -> Datasets:
    """A dataset with a row per completion, those of one input adjacent."""
    encode = {"published": _as_object, "chat": _as_chat}[form]
    return {
        split: _given(columns, completions[split]) | _columns(completions[split], token_bytes, encode)
        for split, columns in datasets.items()
    }


def _given(columns: Columns, rows: list[list[Completion]]) -> Columns:
    """The original text, and target if there is one, a row per completion."""
    names = [name for name in (TEXT, TARGET) if name in columns]
    return {name: [value for value, row in zip(columns[name], rows, strict=True) for _ in row] for name in names}


def _columns(rows: list[list[Completion]], token_bytes: TokenBytes, encode: Callable[[Position], Any]) -> Columns:
    spelled = [spell(completion, token_bytes) for row in rows for completion in row]
    return {
        "prediction": [each.text for each in spelled],
        "tokens": [[name_of(position.piece) for position in each.positions] for each in spelled],
        "logprobs": [[encode(position) for position in each.positions] for each in spelled],
        "finish_reason": [each.finish_reason for each in spelled],
    }


def response_lines(datasets: Datasets, completions: Completions, token_bytes: TokenBytes) -> Iterator[str]:
    """A line of JSON per input: its text, and a chat API's response with all completions as choices."""
    for split, columns in datasets.items():
        names = [name for name in (TEXT, TARGET) if name in columns]
        for i, row in enumerate(completions[split]):
            choices = [_choice(number, spell(completion, token_bytes)) for number, completion in enumerate(row)]
            line = {name: columns[name][i] for name in names} | {"split": split, "response": {"choices": choices}}
            yield json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _choice(number: int, spelled: Spelled) -> dict[str, Any]:
    return {
        "index": number,
        "message": {"role": "assistant", "content": spelled.text},
        "logprobs": {"content": [_as_chat(position) for position in spelled.positions]},
        "finish_reason": spelled.finish_reason,
    }


def _as_object(position: Position) -> dict[str, float]:
    """String → log-probability, as completion APIs have it."""
    return {name_of(piece): logprob for piece, logprob in position.top.items()}


def _as_chat(position: Position) -> dict[str, Any]:
    top = [_chat_entry(piece, logprob) for piece, logprob in position.top.items()]
    return _chat_entry(position.piece, position.logprob) | {"top_logprobs": top}


def _chat_entry(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": name_of(piece, mark=""), "logprob": logprob, "bytes": _numbers(piece)}


@cache
def _numbers(piece: bytes) -> tuple[int, ...]:
    return tuple(piece)


@cache
def name_of(piece: bytes, *, mark: str = "bytes:") -> str:
    """A token as APIs write it: its text, or for a part of a character `bytes:\\xe6\\xbc`; chat APIs have no mark."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in piece)
