"""Stage: make the file that a completion or chat API would give, with a local model in the API's place.

Shapes: R rows of a batch, C completions of a row, N tokens written in some completions, K most likely tokens, T tokens
of one completion, V vocabulary.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.config.arguments import SimulateApiArguments
from src.config.constants import DEV_PPL, IGNORE_INDEX, TARGET, TEXT, UNLABELED
from src.config.errors import UserError
from src.data.files import write_datasets
from src.data.schema import Columns, Datasets, is_training_split
from src.decoding.generate import Decoding, behind_eos, decoding_of
from src.models.forward import target_labels, target_logits
from src.preflight.dry_run import write_or_report
from src.storage.atomic import atomic_write
from src.tokens.batches import Batch, pad_sequences
from src.tokens.token_bytes import TokenBytes, n_whole
from src.training.writing import Job, WriteBatch, Writer, Writing

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


def simulate(config: SimulateApiArguments, datasets: Datasets) -> Path:
    """Write completions of every row with their tokens and log-probabilities; returns the path of the file.

    Raises UserError for what is wrong with flags, data or model.
    """

    def make(writing: Writing, path: Path) -> str:
        completions: Completions = {split: [[] for _ in columns[TEXT]] for split, columns in writing.datasets.items()}
        for split, row, records in writing.results():
            completions[split][row] = [_completion(record) for record in records]
        token_bytes = TokenBytes(writing.writer.tokenizer)
        if config.form == "jsonl":
            with atomic_write(path) as file:
                file.writelines(_response_lines(writing.datasets, completions, token_bytes))
        else:
            write_datasets(path, _dataset_form(config.form, writing.datasets, completions, token_bytes))
        return f"{writing.n_targets} completions"

    job = Job(
        RESULTS[config.form], (DEV_PPL,), lambda chosen: n_completions(config, chosen), partial(_load, config), make
    )
    return write_or_report(config, datasets, job)


def _decoding(config: SimulateApiArguments) -> Decoding:
    is_greedy = config.generation_type == "greedy"
    return decoding_of(
        "beam_search" if is_greedy else config.generation_type,
        num_beams=1 if is_greedy else config.num_beams,
        targets_per_input=config.n_completions,
        max_new_tokens=config.max_labels_length,
        nucleus=config.nucleus,
    )


# ----------------------------------------------------------------------------------------------------- model → numbers


def _load(config: SimulateApiArguments, datasets: Datasets) -> tuple[Writer, WriteBatch]:
    """The model, and what makes records of the completions of a batch."""
    writer = Writer.of(config, _decoding(config), datasets)
    writer.model.generation_config.forced_eos_token_id = None  # an API's completion that is cut has no EOS
    known = torch.tensor(sorted(writer.tokenizer.get_vocab().values()))

    def write(batch: Batch, k: int) -> list[dict[str, Any]]:
        tokens = writer.write(batch, k)
        lengths = (~behind_eos(tokens, writer.model.generation_config)).sum(dim=1).tolist()
        written = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
        sources = [i // k for i in range(len(written))]
        size = config.batch_size
        parts = [slice(start, start + size) for start in range(0, len(written), size)]
        scored = ((written[part], _with_labels(batch, sources[part], written[part])) for part in parts)
        return [record for rows, labeled in scored for record in _records(config, writer, rows, labeled, known)]

    return writer, write


def n_completions(config: SimulateApiArguments, splits: Iterable[str]) -> dict[str, int]:
    """By split: several of inputs that are trained on, one of others (a row of test is scored once)."""
    return {split: config.n_completions if split == UNLABELED or is_training_split(split) else 1 for split in splits}


def _eos_ids(writer: Writer) -> set[int]:
    """The tokens with which the model ends a text: one, or several in a list."""
    return set(np.atleast_1d(writer.model.generation_config.eos_token_id).tolist())


def _with_labels(batch: Batch, sources: list[int], written: list[list[int]]) -> Batch:
    """A batch of the inputs of the rows `sources` with the tokens that were written as labels, on the same device."""
    labels, _ = pad_sequences([np.asarray(row) for row in written], IGNORE_INDEX, on_the_left=False)
    rows = tuple(batch.rows[source] for source in sources)
    return Batch(batch.input_ids[sources], batch.attention_mask[sources], labels.to(batch.input_ids.device), rows)


@torch.no_grad()
def top_logprobs(model: torch.nn.Module, batch: Batch, known: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """(N, K + 1) token ids, and their log-probabilities: the `top` most likely ones in falling order, then the label.

    Of the model's own distribution (temperature 1, nothing cut), over its whole vocabulary; only `known` tokens (of
    those that the tokenizer has) are among the K.
    """
    logits = target_logits(model, batch).float()
    labels = target_labels(batch)[:, None]
    total = logits.logsumexp(dim=-1, keepdim=True)
    label_logits = logits.gather(1, labels)
    unknown = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    unknown[known.to(logits.device)] = False
    best = logits.masked_fill_(unknown, -torch.inf).topk(top, dim=-1)
    logprobs = torch.cat([best.values, label_logits], dim=1) - total
    return torch.cat([best.indices, labels], dim=1), logprobs.clamp_(min=IMPOSSIBLE, max=0)


def _records(
    config: SimulateApiArguments, writer: Writer, rows: list[list[int]], labeled: Batch, known: Tensor
) -> list[dict[str, Any]]:
    """`Completion`s as JSON values; `rows` of tokens are the batch's labels."""
    with writer.accelerator.autocast():
        tokens, logprobs = top_logprobs(writer.model, labeled, known, min(config.top_logprobs, len(known)))
    if logprobs.isnan().any():
        raise UserError(f"{config.model_name}: its log-probabilities are not numbers; try --mixed_precision no")
    rounded = np.round(logprobs.cpu().numpy().astype(np.float64), DIGITS) + 0.0  # -0.0 becomes 0.0
    ends = np.cumsum([len(row) for row in rows])
    ended = [row[-1] in _eos_ids(writer) for row in rows]
    places = [slice(end - len(row), end - has_eos) for row, end, has_eos in zip(rows, ends, ended, strict=True)]
    return [
        {"tokens": tokens[place].tolist(), "logprobs": rounded[place].tolist(), "ended": has_eos}
        for place, has_eos in zip(places, ended, strict=True)
    ]


def _completion(record: dict[str, Any]) -> Completion:
    n = len(record["tokens"])
    tokens = np.asarray(record["tokens"], dtype=np.int32).reshape(n, -1 if n else 0)
    return Completion(tokens, np.asarray(record["logprobs"], dtype=np.float32).reshape(tokens.shape), record["ended"])


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


def _dataset_form(form: str, datasets: Datasets, completions: Completions, token_bytes: TokenBytes) -> Datasets:
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


def _response_lines(datasets: Datasets, completions: Completions, token_bytes: TokenBytes) -> Iterator[str]:
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
