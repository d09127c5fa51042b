"""Convert text to typed values, check them against limits, and find the known name nearest to a misspelled one."""

import math
import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from types import GenericAlias, NoneType, UnionType
from typing import Any

from src.config.errors import UserError

LARGEST_INTEGER = 2**32  # libraries fail late, and unclearly, on integers beyond 64 bits
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # characters that neither a UTF-8 file nor a file name can hold
Annotation = Any  # a type, tuple[a type, ...], or either `| None`
Written = str | list[Any] | dict[str, Any] | None


def nearest(name: str, known: Iterable[str]) -> str:
    """The entry of `known` whose spelling is most similar to `name`."""
    known = list(known)
    if name in known:
        return name
    return max(known, key=lambda candidate: SequenceMatcher(None, name.lower(), candidate.lower()).ratio())


def base_type(annotation: Annotation) -> tuple[Any, bool]:
    """The type without `| None`, and whether None is allowed: `int | None` gives (int, True)."""
    if not isinstance(annotation, UnionType):
        return annotation, False
    (kind,) = (member for member in annotation.__args__ if member is not NoneType)
    return kind, True


def is_list(annotation: Annotation) -> bool:
    """Whether values of `annotation` are tuples."""
    return isinstance(base_type(annotation)[0], GenericAlias)


def convert(written: Written, annotation: Annotation, where: str) -> Any:
    """Convert what the user wrote to a value of type `annotation`.

    written: a text, a list of texts, or None. where: the flag, or the file and key; it begins the message of the
    UserError that a wrong type raises. Booleans are True or False in any case. A list may also be one text, separated
    by spaces. The text None, or an empty value in YAML, gives None if the type allows it.
    """
    kind, optional = base_type(annotation)
    if written is None or written in ("None", ["None"]):
        if optional:
            return None
        raise UserError(f"{where}: needs a value, not None")
    if isinstance(kind, GenericAlias):
        return _tuple(written, kind.__args__[0], where)
    if not isinstance(written, str):
        raise UserError(f"{where}: needs one value, not a {'mapping' if isinstance(written, dict) else 'list'}")
    return _scalar(written, kind, where)


def check_value(value: Any, limits: Mapping[str, Any], where: str) -> None:
    """Raise a UserError if `value`, or a member of a tuple, is not among the choices or is out of bounds.

    `limits` may have `choices`, `minimum`, `maximum` (both inclusive) and `above` (exclusive). None always passes.
    """
    for member in value if isinstance(value, tuple) else (value,):
        choices = limits.get("choices")
        if member is None:
            continue
        if choices and member not in choices:
            named = ", ".join(choice or '""' for choice in choices)
            raise UserError(f"{where}: {shown(member)} is not one of {named}; nearest: {nearest(member, choices)!r}")
        if limits.get("minimum") is not None and member < limits["minimum"]:
            raise UserError(f"{where}: must be at least {limits['minimum']}, not {member}")
        if limits.get("maximum") is not None and member > limits["maximum"]:
            raise UserError(f"{where}: must be at most {limits['maximum']}, not {member}")
        if limits.get("above") is not None and member <= limits["above"]:
            raise UserError(f"{where}: must be greater than {limits['above']}, not {member}")


def _tuple(written: str | list[Any] | dict[str, Any], member: type, where: str) -> tuple[Any, ...]:
    parts = [written] if isinstance(written, str) else written
    if isinstance(parts, dict) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{where}: needs a list of single values")
    words = [word for part in parts for word in part.split()]
    if not words:
        raise UserError(f"{where}: needs at least one value")
    return tuple(_scalar(word, member, where) for word in words)


def _scalar(word: str, kind: type, where: str) -> Any:
    if kind is str:
        if UNWRITABLE.search(word):
            raise UserError(f"{where}: {shown(word)} contains a NUL character or is not text in UTF-8")
        return word
    if kind is bool:
        if word.lower() not in ("true", "false"):
            raise UserError(f"{where}: {shown(word)} is neither True nor False")
        return word.lower() == "true"
    try:
        number = kind(word)
    except ValueError as error:
        raise UserError(f"{where}: {shown(word)} is not {'an integer' if kind is int else 'a number'}") from error
    if kind is int and abs(number) > LARGEST_INTEGER:
        raise UserError(f"{where}: {shown(word)} is too large; the largest integer is {LARGEST_INTEGER}")
    if not math.isfinite(number):
        raise UserError(f"{where}: {shown(word)} is not a finite number")
    return number


def shown(word: str) -> str:
    """The word in quotes for a message; the middle is left out if it is longer than 80 characters."""
    return repr(word) if len(word) <= 80 else f"{word[:40]!r} … {word[-20:]!r}"
