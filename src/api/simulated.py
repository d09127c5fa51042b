"""Write a local model's completions in the three forms of an API file."""

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
STOP, LENGTH = "stop", "length"  # an API's finish reasons
DIGITS = 6  # decimals of a log-probability
IMPOSSIBLE = -9999.0  # APIs write this for minus infinity


@dataclass(frozen=True)
class GeneratedCompletion:
    """A completion as numbers.

    tokens, logprobs: (T, K + 1) int32 and float32, at each position the K most likely tokens, then the one written;
    EOS has no position. ended: whether the model wrote EOS.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    ended: bool


GeneratedCompletions = dict[str, list[list[GeneratedCompletion]]]  # by split, row and number


@dataclass(frozen=True)
class Position:
    """A token that was written: its bytes, its log-probability, and those of the most likely tokens by their bytes.

    top: falling, the token itself included; of two tokens with the same bytes it has the likelier.
    """

    piece: bytes
    logprob: float
    top: dict[bytes, float]


@dataclass(frozen=True)
class Spelled:
    """A completion as an API gives it; the positions' pieces together are its text in UTF-8."""

    text: str
    positions: list[Position]
    finish_reason: str


def spell(completion: GeneratedCompletion, token_bytes: TokenBytes) -> Spelled:
    """A completion as text, without special tokens and the space before the first word.

    A broken character (bytes that are not UTF-8, or that the limit of length cut) and what follows it are left out.
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
    """tokens, logprobs: (K + 1,), the K most likely ones, falling, then the one written (which may be among the K)."""
    pieces = token_bytes.of(tokens)
    if is_first:
        pieces = [piece.removeprefix(b" ") for piece in pieces]
    rounded = [round(logprob, DIGITS) for logprob in logprobs]
    top: dict[bytes, float] = {}
    for piece, logprob in zip(pieces, rounded, strict=True):
        top.setdefault(piece, logprob)
    return Position(pieces[-1], rounded[-1], top)


def dataset_form(form: str, datasets: Datasets, completions: GeneratedCompletions, token_bytes: TokenBytes) -> Datasets:
    """A dataset with a row per completion, those of one input adjacent."""
    encode = {"published": _as_object, "chat": _as_chat}[form]
    return {
        split: _given(columns, completions[split]) | _columns(completions[split], token_bytes, encode)
        for split, columns in datasets.items()
    }


def _given(columns: Columns, rows: list[list[GeneratedCompletion]]) -> Columns:
    """The columns `text` and `target`, if there is one, with a row per completion."""
    names = [name for name in (TEXT, TARGET) if name in columns]
    return {name: [value for value, row in zip(columns[name], rows, strict=True) for _ in row] for name in names}


def _columns(
    rows: list[list[GeneratedCompletion]], token_bytes: TokenBytes, encode: Callable[[Position], Any]
) -> Columns:
    spelled = [spell(completion, token_bytes) for row in rows for completion in row]
    return {
        "prediction": [each.text for each in spelled],
        "tokens": [[token_string(position.piece) for position in each.positions] for each in spelled],
        "logprobs": [[encode(position) for position in each.positions] for each in spelled],
        "finish_reason": [each.finish_reason for each in spelled],
    }


def response_lines(datasets: Datasets, completions: GeneratedCompletions, token_bytes: TokenBytes) -> Iterator[str]:
    """A line of JSON per input: its text, and a chat API's response with its completions as choices."""
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
    """Log-probability by token string, as completion APIs have it."""
    return {token_string(piece): logprob for piece, logprob in position.top.items()}


def _as_chat(position: Position) -> dict[str, Any]:
    top = [_chat_entry(piece, logprob) for piece, logprob in position.top.items()]
    return _chat_entry(position.piece, position.logprob) | {"top_logprobs": top}


def _chat_entry(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_string(piece, mark=""), "logprob": logprob, "bytes": _numbers(piece)}


@cache
def _numbers(piece: bytes) -> tuple[int, ...]:
    return tuple(piece)


@cache
def token_string(piece: bytes, *, mark: str = "bytes:") -> str:
    """A token as APIs write it: its text, or `bytes:\\xe6\\xbc` for part of a character (chat APIs: without mark)."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in piece)
