"""A black-box teacher's completions and log-probabilities, read from every form in which an API's users keep them.

A dataset file with the columns `prediction`, `tokens` and `logprobs` (the published form), one whose `logprobs` are a
chat API's lists, or JSON Lines of raw responses with the text that was asked for. A token is known by its string as
the file has it; what it spells, in bytes, follows from `TeacherBytes`. Nothing in a file is executed.
"""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log1p
from pathlib import Path
from typing import Any

from src.api.spelling import TeacherBytes, TeacherTokens, locate_pieces, placed_text, where_they_part
from src.config.console import progress_bar
from src.config.constants import DEV, DEV_PPL, FINISH_REASON, FT, TARGET, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.data.formats import SPLIT_ALIASES, read_datasets
from src.data.references import Target
from src.data.schema import Columns, Datasets, kind
from src.storage.json_files import iterate_json_lines
from src.tokens.token_bytes import REPLACEMENT

PREDICTION, TOKENS, LOGPROBS = "prediction", "tokens", "logprobs"


RESPONSE, SPLIT = "response", "split"  # of a line of JSON Lines


SPLITS = (TRAIN, UNLABELED, DEV, DEV_PPL, TEST, FT)


CUT_OFF = ("length", "max_tokens")  # reasons that say nothing of where the text ends


FAILED = {"content_filter": "content filter", "refusal": "refused", "error": "error"}  # reasons of no answer at all


ROUNDING = 1e-3  # what a log-probability may be above 0


MINUS_INFINITY = ("-inf", "-infinity")  # JSON has no number for it


@dataclass(frozen=True, slots=True)
class Completion:
    """A text that the teacher wrote, and what the file has of its tokens (`read_tokens` looks at them).

    place: names it in messages; is_cut_off: it ends because a limit was reached, not because the teacher ended it;
    failure: why there is nothing to learn from it, in a few words.
    """

    place: str
    prediction: str
    is_cut_off: bool = False
    tokens: Any = None
    logprobs: Any = None
    failure: str | None = None

    def lacks_logprobs(self) -> bool:
        """Whether it has a text, and nothing is said of its tokens."""
        known = self.logprobs
        if isinstance(known, dict):
            known = known.get("content" if "content" in known else TOKENS)
        return known in (None, [], {}) and bool(self.prediction.strip())


@dataclass(frozen=True, slots=True)
class ApiRow:
    """One request: the input's text, its reference (or several) if known, and the completions of the teacher."""

    place: str
    split: str
    text: str
    reference: Target | None
    completions: tuple[Completion, ...]


# ------------------------------------------------------------------------------------------------------------- files


class ApiFile:
    """A file of completions, whose rows can be gone through several times: JSON Lines line by line, JSON in memory."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._datasets = None if Path(path).suffix == ".jsonl" else _read_columns(self.path)

    def rows(self, description: str) -> Iterator[ApiRow]:
        """All rows in the order of the file. Raises UserError, naming the row, for one that cannot be read."""
        if self._datasets is not None:
            total = sum(len(columns[TEXT]) for columns in self._datasets.values())
            with progress_bar(total, description, "rows") as bar:
                for split, columns in self._datasets.items():
                    for row in _rows_of_split(self.path, split, columns):
                        yield row
                        bar.update()
            return
        for number, line in iterate_json_lines(self.path, description):
            yield _row_of_line(line, f"{self.path}: line {number}")


def _read_columns(path: str) -> Datasets:
    datasets = read_datasets(path)
    for split, columns in datasets.items():
        _check_split(split, path)
        needed = (TEXT, TARGET) if split == TEST else (TEXT,)
        for name in needed:
            if name not in columns:
                raise UserError(f"{path}: split '{split}': column '{name}' is missing; it has {list(columns)}")
    return datasets


def _rows_of_split(path: str, split: str, columns: Columns) -> Iterator[ApiRow]:
    for i in range(len(columns[TEXT])):
        yield _row({name: values[i] for name, values in columns.items()}, split, f"{path}: split '{split}', row {i}")


def _row_of_line(line: Any, place: str) -> ApiRow:
    if not isinstance(line, dict):
        raise UserError(f"{place}: expected an object with '{TEXT}' and '{RESPONSE}', found {kind(line)}")
    split = line.get(SPLIT, TRAIN)
    split = SPLIT_ALIASES.get(split, split) if isinstance(split, str) else split
    _check_split(split, place)
    return _row(line, split, place)


def _check_split(split: Any, place: str) -> None:
    if split not in SPLITS:
        hint = "; completions of one input are rows of equal text" if str(split).startswith(f"{TRAIN}_") else ""
        raise UserError(f"{place}: split {split!r} is none of {list(SPLITS)}{hint}")


def _row(fields: dict[str, Any], split: str, place: str) -> ApiRow:
    text, reference = _text(fields, TEXT, place), fields.get(TARGET)
    if reference is not None or split == TEST:
        reference = _reference(fields, place)
    if RESPONSE in fields:
        completions = _of_response(fields, place)
    elif fields.get(PREDICTION) is None:
        failure = _error_of(fields)
        completions = (Completion(place, "", failure=failure),) if failure else ()
    else:
        prediction, is_cut_off = _text(fields, PREDICTION, place), _is_cut_off(fields, place)
        failure = FAILED.get(str(fields.get(FINISH_REASON)))
        completions = (Completion(place, prediction, is_cut_off, fields.get(TOKENS), fields.get(LOGPROBS), failure),)
    return ApiRow(place, split, text, reference, completions)


def _of_response(fields: dict[str, Any], place: str) -> tuple[Completion, ...]:
    """The completions of a response of a completion or a chat API, or of a batch API's wrapping of one.

    A request that failed has one completion, which says why.
    """
    body: Any = {RESPONSE: fields[RESPONSE], "error": fields.get("error")}
    failure = None
    while isinstance(body, dict) and "choices" not in body and failure is None:
        failure = _error_of(body)
        inner = RESPONSE if RESPONSE in body else "body"
        if inner not in body:
            break
        body = body[inner]
    choices = body.get("choices", body) if isinstance(body, dict) else False
    if failure is None and choices in (None, []):
        failure = "no choices"
    if failure is None and body is None:
        failure = "no response"
    if failure:
        return (Completion(place, "", failure=failure),)
    if not isinstance(choices, list):
        raise UserError(f"{place}: its '{RESPONSE}' has no 'choices': not the answer of a completion or chat API")
    several = len(choices) > 1
    return tuple(_of_choice(choice, f"{place}, choice {i}" if several else place) for i, choice in enumerate(choices))


def _error_of(body: dict[str, Any]) -> str | None:
    """What an answer says of its failure: the status, or the code of an error object; None where it says nothing."""
    status = body.get("status_code")
    if isinstance(status, int) and not 200 <= status < 300:
        return f"status {status}"[:40]
    error = body if body.get("object") == "error" else body.get("error")
    if not isinstance(error, dict | str) or not error:
        return None
    code = str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
    return f"error {code}".strip() if code.isprintable() and len(code) <= 40 else "error"


def _of_choice(choice: Any, place: str) -> Completion:
    """One choice; white space around its text belongs to the request ("A: " and " Yes"), not to the target."""
    if not isinstance(choice, dict) or not ("text" in choice or isinstance(choice.get("message"), dict)):
        raise UserError(f"{place}: expected a choice with 'text' or 'message', found {kind(choice)}")
    is_chat = isinstance(choice.get("message"), dict)
    content, name = (choice["message"], "content") if is_chat else (choice, "text")
    is_cut_off = _is_cut_off(choice, place)
    failure = FAILED.get(str(choice.get(FINISH_REASON))) or ("refused" if content.get("refusal") else _error_of(choice))
    if failure is None and content.get(name) is None:
        failure = "no text"
    prediction = "" if failure else _text(content, name, place).strip(string.whitespace)
    return Completion(place, prediction, is_cut_off, None, choice.get(LOGPROBS), failure)


def _is_cut_off(fields: dict[str, Any], place: str) -> bool:
    reason = fields.get(FINISH_REASON)
    if reason is not None and not isinstance(reason, str):
        raise UserError(f"{place}: '{FINISH_REASON}': expected text or null, found {kind(reason)}")
    return reason in CUT_OFF


def _reference(fields: dict[str, Any], place: str) -> Target:
    """The text of `target`, or the texts of a list: several references."""
    target = fields.get(TARGET)
    if isinstance(target, list) and target and set(map(type, target)) == {str}:
        return target
    if isinstance(target, list):
        raise UserError(f"{place}: '{TARGET}': expected text or a list of texts, found another list")
    return _text(fields, TARGET, place)


def _text(fields: dict[str, Any], name: str, place: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise UserError(f"{place}: '{name}': expected text, found {kind(value) if name in fields else 'nothing'}")
    return value


# ------------------------------------------------------------------------------------------------------------ tokens


def read_tokens(completion: Completion, teacher_bytes: TeacherBytes) -> TeacherTokens:
    """The tokens of a completion. None are needed for an empty one.

    Raises UserError, naming the place, if there are none, if they do not spell the text (white space around it, and a
    last token that ends it, do not count), or if a log-probability is none.
    """
    names, top = _names_and_top(completion)
    if not names and completion.prediction.strip():
        raise UserError(
            f"{completion.place}: no log-probabilities of its tokens ('{TOKENS}', '{LOGPROBS}'); ask the API for them"
        )
    pieces = [teacher_bytes[name] for name in names]
    text = placed_text(completion.prediction)
    spans = locate_pieces(pieces, text)
    if spans is None:
        raise UserError(f"{completion.place}: its tokens do not spell its text; {where_they_part(pieces, text)}")
    return TeacherTokens(names, spans, top)


def _names_and_top(completion: Completion) -> tuple[list[str], list[dict[str, float]]]:
    """The tokens' strings and, checked, the known log-probabilities at each."""
    place, logprobs = completion.place, completion.logprobs
    if isinstance(logprobs, dict) and "content" in logprobs:
        logprobs = logprobs["content"]
    if isinstance(logprobs, dict):
        return _of_completion_api(logprobs, place)
    if logprobs is not None and not isinstance(logprobs, list):
        raise UserError(f"{place}: '{LOGPROBS}': expected a list or an object, found {kind(logprobs)}")
    if logprobs and (completion.tokens is None or _is_chat_token(logprobs[0])):
        return _of_chat_api(logprobs, place)
    names = _names(completion.tokens or [], place)
    return names, _tops(names, [None] * len(names), logprobs or [], place)


def _is_chat_token(entry: Any) -> bool:
    """Whether an entry of `logprobs` is a chat API's object, in a file that may have a column `tokens` besides."""
    return isinstance(entry, dict) and isinstance(entry.get("token"), str)


def _of_completion_api(logprobs: dict[str, Any], place: str) -> tuple[list[str], list[dict[str, float]]]:
    names = _names(logprobs.get(TOKENS) or [], place)
    unknown = [None] * len(names)
    chosen, top = logprobs.get("token_logprobs") or unknown, logprobs.get("top_logprobs") or unknown
    if not isinstance(chosen, list) or len(chosen) != len(names):
        raise UserError(f"{place}: 'token_logprobs' must be a list of {len(names)} numbers, as there are tokens")
    return names, _tops(names, chosen, top, place)


def _of_chat_api(positions: list, place: str) -> tuple[list[str], list[dict[str, float]]]:
    names, tops = [], []
    for i, position in enumerate(positions):
        here = f"{place}, token {i}"
        name, chosen = chat_token(position, here)
        names.append(name)
        tops.append(_with_chosen(_chat_top(position.get("top_logprobs") or (), here), name, chosen))
    return names, tops


def _chat_top(others: Any, place: str) -> dict[str, float]:
    """The known log-probabilities of a position; those of tokens with one string (their bytes not told) are added."""
    if not isinstance(others, list | tuple):
        raise UserError(f"{place}: 'top_logprobs': expected a list, found {kind(others)}")
    try:
        top = {other["token"]: other["logprob"] for other in others}
        written = "".join(top)
        if len(top) == len(others) and "\\x" not in written and REPLACEMENT not in written and _is_usual(top):
            return top
    except (KeyError, TypeError):  # what is wrong is said below
        top = {}
    top.clear()
    for other in others:
        name, value = chat_token(other, place)
        if value is not None:
            top[name] = add_logs(top[name], value) if name in top else value
    return top


def chat_token(entry: Any, place: str) -> tuple[str, float | None]:
    """String and log-probability of a chat API's token. A part of a character is only told by its `bytes`."""
    name = entry.get("token") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{place}: expected an object with 'token' and 'logprob', found {kind(entry)}")
    if ("\\x" in name or REPLACEMENT in name) and entry.get("bytes"):
        try:
            name = bytes([*entry["bytes"]]).decode(errors="surrogateescape")
        except (TypeError, ValueError):
            raise UserError(f"{place}: 'bytes': expected a list of numbers from 0 to 255") from None
    return name, _checked(entry.get("logprob"), name, place)


def _names(names: Any, place: str) -> list[str]:
    if not isinstance(names, list):
        raise UserError(f"{place}: '{TOKENS}': expected a list, found {kind(names)}")
    if not set(map(type, names)) <= {str}:
        wrong = next(name for name in names if not isinstance(name, str))
        raise UserError(f"{place}: '{TOKENS}': expected texts, found {kind(wrong)}")
    return names


def _tops(names: list[str], chosen: Sequence[Any], top: Any, place: str) -> list[dict[str, float]]:
    if not isinstance(top, list) or len(top) != len(names):
        found = len(top) if isinstance(top, list) else kind(top)
        raise UserError(f"{place}: {len(names)} tokens need a list of as many log-probabilities, found {found}")
    tops = []
    for i, (name, value, known) in enumerate(zip(names, chosen, top, strict=True)):
        known = {} if known is None else _known(known, place, i)
        value = None if name in known else _checked(value, name, f"{place}, token {i}")
        tops.append(_with_chosen(known, name, value))
    return tops


def _with_chosen(top: dict[str, float], name: str, value: float | None) -> dict[str, float]:
    return top if value is None or name in top else {**top, name: value}


def _known(top: Any, place: str, i: int) -> dict[str, float]:
    """The log-probabilities of a position without those that are absent."""
    if not isinstance(top, dict):
        raise UserError(f"{place}, token {i}: expected an object of log-probabilities, found {kind(top)}")
    if _is_usual(top):
        return top
    here = f"{place}, token {i}"
    checked = {name: _checked(value, name, here) for name, value in top.items()}
    return {name: value for name, value in checked.items() if value is not None}


def _is_usual(top: dict[str, Any]) -> bool:
    """Whether all is certainly right, found without a loop of Python's, as there are millions of positions."""
    values = top.values()
    return set(map(type, values)) == {float} and max(values) <= 0 and isfinite(sum(values))


def _checked(value: Any, name: str, place: str) -> float | None:
    """A log-probability; None for one that is absent: null, or minus infinity, in words too."""
    if value is None or value == -inf or (isinstance(value, str) and value.lower() in MINUS_INFINITY):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{place}: the log-probability of {name!r} must be a number or null, not {kind(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = inf
    if not -inf < number <= ROUNDING:
        raise UserError(f"{place}: the log-probability of {name!r} is {number:g}, which must be finite and at most 0")
    return min(number, 0.0)


def add_logs(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), at most 0."""
    return min(0.0, max(a, b) + log1p(exp(-abs(a - b))))
