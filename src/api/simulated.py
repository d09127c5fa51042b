"""Write a local model's completions in the three forms of an API file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from src.config.constants import FINISH_REASON, ID, LENGTH, STOP, TARGET, TEXT
from src.data.schema import Columns, Datasets
from src.tokens.token_bytes import TokenBytes, n_whole

RESULTS = {"published": "api_completions.json", "chat": "api_completions.json", "jsonl": "api_completions.jsonl"}
COLUMNS = ("prediction", "tokens", "logprobs", FINISH_REASON)  # those of a completion in a dataset file
DIGITS = 6  # decimals of a log-probability
IMPOSSIBLE = -9999.0  # APIs write this for minus infinity


@dataclass(frozen=True)
class GeneratedCompletion:
    """A completion as numbers.

    tokens, logprobs: (T, K + 1) int32 and float32, at each position the K most likely tokens, falling, then the one
    written (which may be among the K); EOS has no position. ended: whether the model wrote EOS.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    ended: bool


GeneratedCompletions = dict[str, list[list[GeneratedCompletion]]]  # by split, row and number


def chat_choice(completion: GeneratedCompletion, token_bytes: TokenBytes) -> dict[str, Any]:
    """A completion as a choice of a chat API, without special tokens and the space before the first word.

    A broken character (bytes that are not UTF-8, or that the limit of length cut) and what follows it are left out.
    """
    positions: list[tuple[list[bytes], list[float]]] = []
    for tokens, logprobs in zip(completion.tokens.tolist(), completion.logprobs.tolist(), strict=True):
        if tokens[-1] not in token_bytes.special:
            pieces = token_bytes.of(tokens)
            if not positions:
                pieces = [piece.removeprefix(b" ") for piece in pieces]
            positions.append((pieces, [round(logprob, DIGITS) for logprob in logprobs]))
    written = [pieces[-1] for pieces, _ in positions]
    n = n_whole(written)
    return {
        "message": {"role": "assistant", "content": b"".join(written[:n]).decode()},
        "logprobs": {"content": [_chat_token(*position) for position in positions[:n]]},
        FINISH_REASON: STOP if completion.ended and n == len(positions) else LENGTH,
    }


def _chat_token(pieces: list[bytes], logprobs: list[float]) -> dict[str, Any]:
    """A position of a chat API; of two tokens with the same bytes, `top_logprobs` has the likelier."""
    top: dict[bytes, float] = {}
    for piece, logprob in zip(pieces, logprobs, strict=True):
        top.setdefault(piece, logprob)
    entries = [_chat_entry(piece, logprob) for piece, logprob in top.items()]
    return _chat_entry(pieces[-1], logprobs[-1]) | {"top_logprobs": entries}


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


def response_lines(datasets: Datasets, completions: GeneratedCompletions, token_bytes: TokenBytes) -> Iterator[str]:
    """A line of JSON per input: its columns, and a chat API's response with its completions as choices."""
    for split, columns in datasets.items():
        for i, row in enumerate(completions[split]):
            choices = [chat_choice(completion, token_bytes) for completion in row]
            yield response_line(columns, i, split, choices)


def api_columns(datasets: Datasets, *, with_ids: bool) -> Datasets:
    """The columns of a dataset that an API file has beside the completions."""
    names = (ID, TEXT, TARGET) if with_ids else (TEXT, TARGET)
    return {split: {name: columns[name] for name in names if name in columns} for split, columns in datasets.items()}


def response_line(columns: Columns, row: int, split: str, choices: Sequence[dict[str, Any]]) -> str:
    """A line of JSON: the columns of a row, and a response with these choices."""
    numbered = [{"index": k} | choice for k, choice in enumerate(choices)]
    line = {name: values[row] for name, values in columns.items()}
    line |= {"split": split, "response": {"choices": numbered}}
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def dataset_form(form: str, datasets: Datasets, completions: GeneratedCompletions, token_bytes: TokenBytes) -> Datasets:
    """A dataset with a row per completion, those of one input adjacent; `form` is published or chat."""
    results: Datasets = {}
    for split, columns in datasets.items():
        rows = completions[split]
        result = {
            name: [value for value, row in zip(values, rows, strict=True) for _ in row]
            for name, values in columns.items()
        }
        cells = [_cells(form, chat_choice(completion, token_bytes)) for row in rows for completion in row]
        results[split] = result | {name: [each[name] for each in cells] for name in COLUMNS}
    return results


def _cells(form: str, choice: dict[str, Any]) -> dict[str, Any]:
    """A completion's values in `COLUMNS`."""
    content = choice["logprobs"]["content"]
    names = [token_string(bytes(token["bytes"])) for token in content]
    if form == "published":
        tops = [token["top_logprobs"] for token in content]
        content = [{token_string(bytes(each["bytes"])): each["logprob"] for each in top} for top in tops]
    return dict(zip(COLUMNS, (choice["message"]["content"], names, content, choice[FINISH_REASON]), strict=True))
