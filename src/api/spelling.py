"""How a teacher's tokens spell its text, byte by byte."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from src.tokens.token_bytes import BYTE_TOKEN, REPLACEMENT, byte_of_character

BYTE_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


Span = tuple[int, int]


END_OF_TEXT = re.compile(rb"<[^<>\s]+>|\[[A-Z]+\]")  # how tokens that end a text are written: <|endoftext|>, </s>


@dataclass(frozen=True, slots=True)
class TeacherTokens:
    """The tokens of a completion, with what is known at each.

    names: their strings in the file; spans: the bytes of `placed_text` that each spells, empty where it spells none of
    it; top: log-probability by token string, of the token itself too where the file has it.
    """

    names: list[str]
    spans: list[Span]
    top: list[dict[str, float]]


class TeacherBytes(dict[str, bytes]):
    """What a teacher's token spells, by its string: looked up like a dictionary, worked out once for each.

    `bytes:\\xe2\\x80` of completion APIs are bytes. With a `new_word_char` other than a space the strings are a
    vocabulary's own: that character is a space, `<0xE2>` a byte, and with Ġ all are byte-level BPE's characters.
    """

    def __init__(self, new_word_char: str = " ") -> None:
        self._new_word_char = new_word_char

    def __missing__(self, name: str) -> bytes:
        self[name] = spelled = self._spell(name)
        return spelled

    def _spell(self, name: str) -> bytes:
        if name.startswith("bytes:"):
            spelled, n_escapes = BYTE_ESCAPE.subn(_unescaped, name.removeprefix("bytes:").encode())
            if n_escapes:
                return spelled
        if self._new_word_char == "Ġ":
            byte_of = byte_of_character()
            if all(character in byte_of for character in name):
                return bytes(byte_of[character] for character in name)
        elif self._new_word_char != " ":
            byte = BYTE_TOKEN.fullmatch(name)
            if byte:
                return bytes([int(byte[1], 16)])
            name = name.replace(self._new_word_char, " ")
        return name.encode(errors="surrogateescape")  # bytes of a chat API, see `chat_token`


def _unescaped(escape: re.Match) -> bytes:
    return bytes([int(escape[1], 16)])


# ---------------------------------------------------------------------------------------------------------- spelling


def placed_text(text: str) -> bytes:
    """A text in UTF-8 with a space before it, in which tokens of both sides have their places: many a tokenizer has one
    there (`▁The`, or `▁` alone).
    """
    encoded = text.encode()
    return encoded if encoded[:1].isspace() else b" " + encoded


def locate_pieces(pieces: Sequence[bytes], text: bytes) -> list[Span] | None:
    """The bytes of `text` that each piece spells (start, end), or None if they do not spell it together.

    White space around either, and a last piece that ends a text (`</s>`), do not count. Pieces with U+FFFD, which an
    API writes for a part of a character, stand for whatever the others leave: the first of a run for all of it.
    """
    spelled = b"".join(pieces)
    if spelled.strip() != text.strip():
        if pieces and END_OF_TEXT.fullmatch(pieces[-1]):
            located = locate_pieces(pieces[:-1], text)
            return None if located is None else [*located, (len(text), len(text))]
        filled = _without_replacements(pieces, text)
        return None if filled is None else locate_pieces(filled, text)
    end = _n_leading_spaces(text) - _n_leading_spaces(spelled)
    spans = []
    for piece in pieces:
        start, end = end, end + len(piece)
        spans.append((min(max(start, 0), len(text)), min(max(end, 0), len(text))))
    return spans


def _n_leading_spaces(text: bytes) -> int:
    return len(text) - len(text.lstrip())


def _without_replacements(pieces: Sequence[bytes], text: bytes) -> list[bytes] | None:
    """The pieces with the text's own bytes in place of each run of pieces that have U+FFFD; None if that cannot be."""
    mark = REPLACEMENT.encode()
    unknown = [mark in piece for piece in pieces]
    if not any(unknown) or mark in text:
        return None
    rest = text.strip()
    filled: list[bytes] = []
    at, i = 0, 0
    while i < len(pieces):
        n = next((j for j in range(i, len(pieces)) if unknown[j] != unknown[i]), len(pieces))
        if unknown[i]:
            clean = next((j for j in range(n, len(pieces)) if unknown[j]), len(pieces))
            following = b"".join(pieces[n:clean])
            end = rest.find(following, at + 1) if clean < len(pieces) else len(rest) - len(following.rstrip())
            if end <= at:
                return None
            filled += [rest[at:end], *[b""] * (n - i - 1)]
            at = end
        else:
            known = b"".join(pieces[i:n])
            filled += pieces[i:n]
            at += len(known if i else known.lstrip())
        i = n
    return filled


def where_they_part(pieces: Sequence[bytes], text: bytes) -> str:
    """For a message: the first token that the text does not go on with."""
    spelled, rest = b"".join(pieces), text.lstrip()
    at = len(commonprefix([spelled.lstrip(), rest]))
    there = repr(rest[at:][:20].decode(errors="replace"))
    end = -_n_leading_spaces(spelled)
    for i, piece in enumerate(pieces):
        end += len(piece)
        if end > at:
            return f"token {i} is {piece.decode(errors='replace')!r}, where the text goes on with {there}"
    return f"after the last token the text goes on with {there}"
