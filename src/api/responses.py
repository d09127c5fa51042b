"""Read an API file: its rows, and the teacher's completions of each.

Three forms are read: a dataset file with the columns `prediction`, `tokens` and `logprobs` (the published form), the
same with a chat API's lists in `logprobs`, and JSON Lines of raw responses beside the text that was asked for. Fields
that are not named here are ignored. Of JSON Lines, tokens and log-probabilities stay JSON text until `api/logprobs.py`
reads them: a first pass over several GB does not parse them.
"""

import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, ValidationError, convert
from msgspec.json import Decoder, encode

from src.config.console import progress_bar
from src.config.constants import DEV, DEV_PPL, FT, TARGET, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError, one_line
from src.data.formats import SPLIT_ALIASES, read_datasets
from src.data.references import Target
from src.data.schema import Datasets
from src.storage.json_files import opened_text, parse_json

NULL = Raw(b"null")
LATER = ("tokens", "logprobs", "response")  # fields of a row that are not checked with the others
SPLITS = (TRAIN, UNLABELED, DEV, DEV_PPL, TEST, FT)
CUT_OFF = ("length", "max_tokens")  # finish reasons of a completion that reached a limit
FAILED = {"content_filter": "content filter", "refusal": "refused", "error": "error"}  # finish reasons of no answer


class Completion(Struct, frozen=True):
    """One text that the teacher wrote.

    place: the file and row, for messages; is_cut_off: it reached a limit of length, so its end is not the teacher's;
    tokens, logprobs: as the file has them, parsed or in a `Raw`, not checked yet; failure: why there is no answer, in a
    few words; path: the JSON path of the object that holds `logprobs`, within the row.
    """

    place: str
    prediction: str
    is_cut_off: bool = False
    tokens: Any = None
    logprobs: Any = None
    failure: str | None = None
    path: str = "$"


class ApiRow(Struct, frozen=True):
    """One request: its text, its reference (or several) if known, and the teacher's completions."""

    place: str
    split: str
    text: str
    reference: Target | None
    completions: tuple[Completion, ...]


class _Answer(Struct):
    """The fields in which an answer tells its failure."""

    status_code: Any = None
    error: Any = None
    object: Any = None
    code: Any = None
    type: Any = None

    def failure(self) -> str | None:
        """The status, or the code of the error; None if there is none."""
        if isinstance(self.status_code, int) and not 200 <= self.status_code < 300:
            return f"status {self.status_code}"[:40]
        error = {"code": self.code, "type": self.type} if self.object == "error" else self.error
        if not isinstance(error, dict | str) or not error:
            return None
        code = str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
        return f"error {code}".strip() if code.isprintable() and len(code) <= 40 else "error"


class _Message(Struct):
    content: Any = None
    refusal: Any = None


class _Choice(_Answer):
    """A completion in a response: with `text` from a completion API, with `message` from a chat API."""

    text: Any = UNSET
    message: _Message | str | None = None
    logprobs: Raw = NULL
    finish_reason: str | None = None


class _Body(_Answer):
    """A response of a completion or chat API, or of a batch API that wraps one."""

    choices: list[_Choice] | UnsetType | None = UNSET
    response: "_Wrapped" = UNSET
    body: "_Wrapped" = UNSET


_Wrapped = _Body | list | str | float | UnsetType | None  # a failed request may have anything there


_Reference = str | Annotated[list[str], Meta(min_length=1)]


class _Row(_Answer, kw_only=True):
    """A row of a dataset file, or a line of JSON Lines."""

    text: str
    target: _Reference | None = None
    split: Any = TRAIN
    response: _Wrapped = UNSET
    prediction: str | None = None
    tokens: Raw = NULL
    logprobs: Raw = NULL
    finish_reason: str | None = None


def checked(value: Any, kind: Any, place: str, path: str = "$") -> Any:
    """A JSON value (parsed, or JSON text in a `Raw`) as the type `kind`.

    Raises UserError with the place and the JSON path of the first part that does not fit.
    """
    try:
        return _decoder(kind).decode(value) if isinstance(value, Raw) else convert(value, kind)
    except ValidationError as error:
        expected, _, inner = str(error).partition(" - at `$")
        raise UserError(f"{place}: {expected} - at `{path}{inner or '`'}") from None
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{place}: not JSON in UTF-8: {one_line(error)} - at `{path}`") from None


@cache
def _decoder(kind: Any) -> Decoder:
    return Decoder(kind)


class ApiFile:
    """An API file whose rows can be read several times: JSON Lines line by line, other formats in memory."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._datasets = None if Path(path).suffix == ".jsonl" else _read_columns(self.path)

    def rows(self, description: str) -> Iterator[ApiRow]:
        """All rows in the order of the file. Raises UserError, naming the row, for one that cannot be read."""
        if self._datasets is None:
            yield from _rows_of_lines(self.path, description)
            return
        total = sum(len(columns[TEXT]) for columns in self._datasets.values())
        with progress_bar(total, description, "rows") as bar:
            for split, columns in self._datasets.items():
                for i, values in enumerate(zip(*columns.values(), strict=True)):
                    fields = dict(zip(columns, values, strict=True)) | {"split": split}
                    place = f"{self.path}: split '{split}', row {i}"
                    yield _api_row(_parsed_row(fields, place), place)
                    bar.update()


def _rows_of_lines(path: str, description: str) -> Iterator[ApiRow]:
    with opened_text(Path(path)) as lines, progress_bar(Path(path).stat().st_size, description, "B") as bar:
        for number, line in enumerate(lines, start=1):
            place = f"{path}: line {number}"
            if line.strip():
                try:
                    row = _decoder(_Row).decode(line)
                except (DecodeError, UnicodeDecodeError, RecursionError):  # a mistake, or Python's -Infinity
                    row = checked(Raw(encode(parse_json(line, place))), _Row, place)
                yield _api_row(row, place)
            bar.update(len(line))


def _parsed_row(fields: dict[str, Any], place: str) -> _Row:
    """A row of a dataset file, whose tokens and log-probabilities stay parsed; raises as `checked`."""
    row: _Row = checked({name: value for name, value in fields.items() if name not in LATER}, _Row, place)
    row.tokens, row.logprobs = (cast(Raw, fields.get(name)) for name in ("tokens", "logprobs"))
    if "response" in fields:
        row.response = checked(Raw(encode(fields["response"])), _Wrapped, place, "$.response")
    return row


def _read_columns(path: str) -> Datasets:
    datasets = read_datasets(path)
    for split, columns in datasets.items():
        _check_split(split, path)
        needed = (TEXT, TARGET) if split == TEST else (TEXT,)
        for name in needed:
            if name not in columns:
                raise UserError(f"{path}: split '{split}': column '{name}' is missing; it has {list(columns)}")
    return datasets


def _check_split(split: Any, place: str) -> None:
    if split not in SPLITS:
        hint = "; completions of one input are rows of equal text" if str(split).startswith(f"{TRAIN}_") else ""
        raise UserError(f"{place}: split {split!r} is none of {list(SPLITS)}{hint}")


def _api_row(row: _Row, place: str) -> ApiRow:
    split = SPLIT_ALIASES.get(row.split, row.split) if isinstance(row.split, str) else row.split
    _check_split(split, place)
    if row.target is None and split == TEST:
        raise UserError(f"{place}: '{TARGET}' is missing or null; rows of '{TEST}' need a reference")
    completions: tuple[Completion, ...] = ()
    if row.response is not UNSET:
        completions = _of_response(row, place)
    elif row.prediction is not None:
        failure, is_cut_off = FAILED.get(row.finish_reason or ""), row.finish_reason in CUT_OFF
        completions = (Completion(place, row.prediction, is_cut_off, row.tokens, row.logprobs, failure),)
    elif failure := row.failure():
        completions = (Completion(place, "", failure=failure),)
    return ApiRow(place, split, row.text, row.target, completions)


def _of_response(row: _Row, place: str) -> tuple[Completion, ...]:
    """The completions of a row's response. A request that failed has one completion, which says why."""
    body, path, failure = row.response, "$.response", row.failure()
    while failure is None and isinstance(body, _Body) and body.choices is UNSET:
        failure = body.failure()
        name = "body" if body.response is UNSET else "response"
        body, path = getattr(body, name), f"{path}.{name}"
    if failure is None and body is None:
        failure = "no response"
    if failure is None and isinstance(body, _Body):
        choices, path = body.choices or [], f"{path}.choices"
        if choices:
            return tuple(_of_choice(choice, i, len(choices), place, path) for i, choice in enumerate(choices))
        failure = "no choices"
    if failure is None:
        raise UserError(f"{place}: its 'response' has no 'choices': not the answer of a completion or chat API")
    return (Completion(place, "", failure=failure),)


def _of_choice(choice: _Choice, i: int, n_choices: int, place: str, path: str) -> Completion:
    """One choice. White space around its text belongs to the request ("A: " and " Yes"), not to the target."""
    place, path = f"{place}, choice {i}" if n_choices > 1 else place, f"{path}[{i}]"
    message = choice.message if isinstance(choice.message, _Message) else None
    if message is None and choice.text is UNSET:
        raise UserError(f"{place}: expected a choice with 'text' or 'message' - at `{path}`")
    text, name = (choice.text, "text") if message is None else (message.content, "message.content")
    failure = FAILED.get(choice.finish_reason or "") or ("refused" if message and message.refusal else choice.failure())
    if failure is None and text is None:
        failure = "no text"
    prediction = "" if failure else checked(text, str, place, f"{path}.{name}").strip(string.whitespace)
    return Completion(place, prediction, choice.finish_reason in CUT_OFF, None, choice.logprobs, failure, path)
