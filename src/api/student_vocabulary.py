"""The student's tokens by what they spell."""

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from src.api.spelling import Span, TeacherBytes, locate_pieces, placed_text
from src.config.errors import UserError
from src.tokens.token_bytes import ANCHOR, BYTE_TOKEN, TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


WORD_MODELS = ("WordPiece", "WordLevel")  # whose tokens do not say whether a space is before them


def canonical_tokens(text: bytes, spans: Sequence[Span]) -> list[bytes]:
    """What each token spells, without white space around it, after a space if it begins a word."""
    tokens = []
    for start, end in spans:
        piece = text[start:end]
        body = piece.strip()
        tokens.append(b" " + body if body and begins_word(text, start, end) else body or piece)
    return tokens


def begins_word(text: bytes, start: int, end: int) -> bool:
    """Whether a token there is the first of its word."""
    return start == 0 or text[start - 1 : start].isspace() or text[start:end][:1].isspace()


def without_spaces(text: bytes, span: Span) -> Span:
    """A span without white space at its ends; one that is nothing else stays as it is."""
    start, end = span
    piece = text[start:end]
    if not piece.strip():
        return span
    return end - len(piece.lstrip()), start + len(piece.rstrip())


# ------------------------------------------------------------------------------------------------- student's vocabulary


class StudentTokens:
    """A student's vocabulary: which token a string is, and where the tokens of a text are.

    end_of_text: how its EOS is written. Raises UserError for a slow tokenizer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError("--student_name: its tokenizer is a slow one (no tokenizer.json), which locates no tokens")
        self._backend = backend
        self._bytes = TokenBytes(tokenizer)
        self.end_of_text = tokenizer.eos_token.encode()
        self._eos = tokenizer.eos_token_id
        model = json.loads(backend.to_str())["model"]
        self._spells_spaces = model["type"] not in WORD_MODELS  # in its tokens, as `▁cat` and `Ġcat`
        vocabulary = {token: name for name, token in tokenizer.get_vocab().items() if token not in self._bytes.special}
        ids = sorted(vocabulary, key=lambda token: (BYTE_TOKEN.fullmatch(vocabulary[token]) is not None, token))
        if self._spells_spaces:
            spelled = self._bytes.of(ids)
        else:
            goes_on = model.get("continuing_subword_prefix")
            spelled = [_spelled_word(vocabulary[token], goes_on) for token in ids]
        self._id_of: dict[bytes, int] = {}
        for token, one in zip(ids, spelled, strict=True):
            self._id_of.setdefault(one, token)  # a byte's token only where it is the only one
        self._id_of.pop(b"", None)

    def id_of(self, spelled: bytes) -> int | None:
        """The token that spells this by itself, after the tokenizer's own normalization; None if there is none.

        Of the special tokens only EOS is found, by its name: something a teacher, too, may say.
        """
        if spelled == self.end_of_text:
            return self._eos
        if self._spells_spaces and spelled in self._id_of:
            return self._id_of[spelled]
        return self._id_of.get(self._normalized(spelled))

    def _normalized(self, spelled: bytes) -> bytes:
        """As it is inside a text after the tokenizer's normalization; nothing where that leaves no single token."""
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            return b""  # a part of a character
        body = text.lstrip(" ")
        head = text[: len(text) - len(body)]
        if self._spells_spaces:
            body = self._in_normal_form(body).replace("▁", " ").strip(" ")
            return (head + body).encode() if body else b""
        words = self._words(ANCHOR + body)
        if words and words[0] == ANCHOR:  # a word of its own, without a space before it: punctuation
            return f" {words[1]}".encode() if len(words) == 2 else b""
        return (head + words[0].removeprefix(ANCHOR)).encode() if len(words) == 1 else b""

    def _in_normal_form(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def _words(self, text: str) -> list[str]:
        text = self._in_normal_form(text)
        splitter = self._backend.pre_tokenizer
        return text.split() if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]

    def begins_with_space(self, token: int, text: bytes, span: Span) -> bool:
        """Whether a token of a text includes the space before it, or stands for a word's beginning without one."""
        if self._spells_spaces:
            return self._bytes.of([token])[0][:1] == b" "
        return begins_word(text, *span)

    def locate(self, tokens: Sequence[int], characters: Sequence[Span], target: str) -> list[Span]:
        """The bytes of `placed_text(target)` that each token spells, from the characters that the tokenizer says.

        Exact where the tokens spell the target themselves, parts of characters too.
        """
        text = placed_text(target)
        special = self._bytes.special
        pieces = [b"" if token in special else one for token, one in zip(tokens, self._bytes.of(tokens), strict=True)]
        spans = locate_pieces(pieces, text) if self._spells_spaces else None
        if spans is not None:
            return spans
        starts = [0, *accumulate(len(character.encode()) for character in target)]
        n_before = len(text) - starts[-1]
        places = [(starts[start] + n_before, starts[end] + n_before) for start, end in characters]
        # A word's beginning `▁` has its first letter's place.
        is_space = [self._spells_spaces and one.isspace() for one in pieces]
        return [
            (start, start) if space and text[start:end].strip() else (start, end)
            for (start, end), space in zip(places, is_space, strict=True)
        ]


def _spelled_word(name: str, goes_on: str | None) -> bytes:
    """A word's token, or the token that goes on with one: without the prefix that says so."""
    return name.removeprefix(goes_on).encode() if goes_on and name.startswith(goes_on) else f" {name}".encode()


class Ids(dict[str, int | None]):
    """Student tokens by the teacher's token strings, each worked out once; `respell` adapts the space before them."""

    def __init__(self, student: StudentTokens, teacher_bytes: TeacherBytes, respell: Callable[[bytes], bytes]) -> None:
        self._student, self._teacher_bytes, self._respell = student, teacher_bytes, respell

    def __missing__(self, name: str) -> int | None:
        spelled = self._teacher_bytes[name]
        if spelled != self._student.end_of_text:
            spelled = self._respell(spelled)
        self[name] = token = self._student.id_of(spelled)
        return token


def as_it_is(spelled: bytes) -> bytes:
    return spelled


def with_space(spelled: bytes) -> bytes:
    return spelled if spelled[:1] == b" " else b" " + spelled


def without_space(spelled: bytes) -> bytes:
    return spelled[1:] if spelled[:1] == b" " else b""
