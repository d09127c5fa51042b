"""Find which bytes of a text each of the teacher's tokens spells."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from os.path import commonprefix

from src.tokens.token_bytes import BYTE_TOKEN, REPLACEMENT, byte_of_character

BYTE_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
END_OF_TEXT = re.compile(rb"<[^<>\s]+>|\[[A-Z]+\]")  # tokens that end a text: <|endoftext|>, </s>, [SEP]

Span = tuple[int, int]  # start and end (not included)


@dataclass(frozen=True, slots=True)
class TeacherTokens:
    """The T tokens of a completion, and what is known at each; three lists of length T.

    names: the tokens' strings in the file; spans: the bytes of `encode_with_leading_space(text)` that each token
    spells, empty for one that spells none; top: log-probability by token string, of the token itself too if known.
    """

    names: list[str]
    spans: list[Span]
    top: list[dict[str, float]]


@cache
def token_bytes(name: str, new_word_char: str = " ") -> bytes:
    """The bytes that a teacher's token spells.

    name: its string in the file; `bytes:\\xe2\\x80`, as completion APIs write a part of a character, is these bytes.
    new_word_char: the character that begins a word. Other than a space, it marks strings of a tokenizer's vocabulary:
    the character becomes a space, `<0xE2>` a byte, and with Ġ all characters are those of byte-level BPE.
    """
    if name.startswith("bytes:"):
        spelled, n_escapes = BYTE_ESCAPE.subn(
            lambda escape: bytes([int(escape[1], 16)]), name.removeprefix("bytes:").encode()
        )
        if n_escapes:
            return spelled
    if new_word_char == "Ġ":
        byte_of = byte_of_character()
        if all(character in byte_of for character in name):
            return bytes(byte_of[character] for character in name)
    elif new_word_char != " ":
        byte = BYTE_TOKEN.fullmatch(name)
        if byte:
            return bytes([int(byte[1], 16)])
        name = name.replace(new_word_char, " ")
    return name.encode(errors="surrogateescape")  # `api/logprobs.py` decodes a chat API's bytes so


def encode_with_leading_space(text: str) -> bytes:
    """A text in UTF-8, after a space unless it begins with white space.

    Many tokenizers put a space there (`▁The`, or `▁` alone). Spans of both teacher and student count its bytes.
    """
    encoded = text.encode()
    return encoded if encoded[:1].isspace() else b" " + encoded


def locate_pieces(pieces: Sequence[bytes], text: bytes) -> list[Span] | None:
    """The span of `text` that each piece spells, or None if the pieces together do not spell it.

    White space around either, and a last piece that ends a text (`</s>`), do not count. A run of pieces with U+FFFD,
    which an API writes for a part of a character, stands for the bytes between its neighbors: the first piece gets all.
    """
    spelled = b"".join(pieces)
    if spelled.strip() != text.strip():
        if pieces and END_OF_TEXT.fullmatch(pieces[-1]):
            located = locate_pieces(pieces[:-1], text)
            return None if located is None else [*located, (len(text), len(text))]
        filled = _fill_replacements(pieces, text)
        return None if filled is None else locate_pieces(filled, text)
    end = _n_leading_spaces(text) - _n_leading_spaces(spelled)
    spans = []
    for piece in pieces:
        start, end = end, end + len(piece)
        spans.append((min(max(start, 0), len(text)), min(max(end, 0), len(text))))
    return spans


def _n_leading_spaces(text: bytes) -> int:
    return len(text) - len(text.lstrip())


def _fill_replacements(pieces: Sequence[bytes], text: bytes) -> list[bytes] | None:
    """The pieces with the text's own bytes in place of each run of pieces that have U+FFFD; None if that cannot be."""
    mark = REPLACEMENT.encode()
    if mark in text or not any(mark in piece for piece in pieces):
        return None
    rest, at = text.strip(), 0
    filled: list[bytes] = []
    runs = [(is_unknown, list(run)) for is_unknown, run in groupby(pieces, lambda piece: mark in piece)]
    for i, (is_unknown, run) in enumerate(runs):
        if is_unknown:
            following = b"".join(piece for _, after in runs[i + 1 : i + 2] for piece in after)
            end = rest.find(following, at + 1) if i + 2 < len(runs) else len(rest) - len(following.rstrip())
            if end <= at:
                return None
            filled += [rest[at:end], *[b""] * (len(run) - 1)]
            at = end
        else:
            known = b"".join(run)
            filled += run
            at += len(known if i else known.lstrip())
    return filled


def describe_mismatch(pieces: Sequence[bytes], text: bytes) -> str:
    """The first token that differs from the text, for an error message."""
    spelled, rest = b"".join(pieces), text.lstrip()
    at = len(commonprefix([spelled.lstrip(), rest]))
    there = repr(rest[at:][:20].decode(errors="replace"))
    end = -_n_leading_spaces(spelled)
    for i, piece in enumerate(pieces):
        end += len(piece)
        if end > at:
            return f"token {i} is {piece.decode(errors='replace')!r}, where the text goes on with {there}"
    return f"after the last token the text goes on with {there}"
