"""Read and write JSON and JSON Lines: errors name line and column, writes are atomic."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from src.config.errors import UserError, one_line
from src.storage.atomic import append_bytes, atomic_write

MINUS_INFINITY = b"-Infinity"  # how Python writes the logarithm of a probability of 0
NULL = b"null     "  # as long, so that errors keep their places
BEFORE_MINUS_INFINITY = re.compile(rb'((?:[^"-]+|"(?:[^"\\]+|\\.)*+"?|-(?!Infinity))*+)-Infinity|.+', re.DOTALL)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00"}  # first bytes


def read_json(path: str | Path) -> Any:
    """The value in a JSON file (UTF-8). Raises UserError with the line and column of the first mistake."""
    return parse_json(read_bytes(Path(path)), str(path))


def read_json_members(path: str | Path) -> dict[str, Callable[[], Any]]:
    """The members of the object in a JSON file, each as a function that decodes its value.

    Reading a few members of a large file takes a fraction of the time and memory of `read_json`. Raises UserError if
    the file is not JSON, or not an object.
    """
    data = read_bytes(Path(path)).removeprefix(BYTE_ORDER_MARK)
    try:
        members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        members = parse_json(data, str(path))
        if not isinstance(members, dict):
            raise UserError(f"{path}: expected an object of named values") from None
    return {name: partial(_decoded, value, f"{path}: {name}") for name, value in members.items()}


def _decoded(value: Any, source: str) -> Any:
    return parse_json(bytes(value), source) if isinstance(value, msgspec.Raw) else value


def read_bytes(path: Path) -> bytes:
    """All bytes of a text file. Raises UserError as `opened_text`."""
    with opened_text(path) as file:
        return file.read()


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[io.BufferedReader]:
    """Open a text file for reading bytes. Raises UserError if it cannot be opened or is compressed."""
    with opened(path) as file:
        if file.peek(6).startswith(tuple(COMPRESSED.values())):
            raise UserError(f"{path}: is compressed; unpack it first")
        yield file


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading bytes. Raises UserError if it cannot be opened."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    with file:
        yield file


def parse_json(data: bytes, source: str) -> Any:
    """The value of JSON in UTF-8; -Infinity, as many tools write it, becomes null.

    Raises UserError with `source` (a file, or a line of one) and the line and column of the mistake.
    """
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        mistake = error
    if MINUS_INFINITY in data:
        replaced = BEFORE_MINUS_INFINITY.sub(lambda found: found[0] if found[1] is None else found[1] + NULL, data)
        if replaced != data:
            return parse_json(replaced, source)
    raise UserError(f"{source}: not JSON{_place_and_reason(mistake, data)}") from None


def _place_and_reason(error: Exception, data: bytes) -> str:
    """Where and why decoding failed, for the end of a sentence."""
    if isinstance(error, RecursionError):
        return ": nested too deeply"
    try:
        data.decode("utf-8")  # the error's own position is relative to a string inside
    except UnicodeDecodeError as undecodable:
        return f" in UTF-8: {_place(data, undecodable.start)}: {undecodable.reason}"
    message = one_line(error).removeprefix("JSON is malformed: ")
    if message == "Input data was truncated":
        return f": {_place(data, len(data))}: unexpected end"
    found = re.fullmatch(r"(.+) \(byte (\d+)\)", message)
    if found is None:
        return f": {message}"
    line, newline, _ = data[: int(found[2])].partition(b"\n")
    hint = " (one object per line? name it .jsonl)" if newline and _is_json(line) else ""
    return f": {_place(data, int(found[2]))}: {found[1]}{hint}"


def _place(data: bytes, offset: int) -> str:
    """Line and column of a byte, both from 1."""
    line = data.count(b"\n", 0, offset) + 1
    start = data.rfind(b"\n", 0, offset) + 1
    return f"line {line}, column {len(data[start:offset].decode('utf-8', errors='ignore')) + 1}"


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def check_characters(value: Any, data: bytes) -> None:
    """Raise ValueError if `value`, read from `data`, holds half of a surrogate pair, which cannot be written again."""
    if b"\\ud" in data.lower():  # only escapes can be halves
        json.dumps(value, ensure_ascii=False).encode("utf-8")


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """Write any JSON value atomically."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    with atomic_write(path) as file:
        file.write(text + "\n")


def append_json_line(path: Path, value: Any) -> None:
    """Append one line of JSON, which is on disk when this returns."""
    append_bytes(path, (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))


def read_json_lines(path: str | Path, *, repair: bool = True) -> list[Any]:
    """The values of a JSON Lines file, as `located_json_lines` finds them."""
    return [value for _, value in located_json_lines(path, repair=repair)]


def located_json_lines(path: str | Path, *, repair: bool = True) -> Iterator[tuple[int, Any]]:
    """The first byte and the value of each line of a JSON Lines file; none if it is missing.

    The last line is skipped if a kill left it incomplete, that is, without its newline or not JSON; `repair` cuts it
    off. Raises UserError for an earlier line that is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return
    end = 0  # of the good lines, in bytes
    with opened(path) as lines:
        for i, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                value = parse_json(line, f"{path}: line {i}")
            except UserError:
                if b"\n" in lines.read():
                    raise
                break
            yield end, value
            end += len(line)
    if repair and end < path.stat().st_size:
        os.truncate(path, end)


def read_json_line(path: Path, start: int) -> Any:
    """The value of the line that starts at a byte."""
    with opened(path) as file:
        file.seek(start)
        return parse_json(file.readline(), str(path))
