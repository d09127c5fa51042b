"""Look up the student's tokens: by the bytes that they spell, and by their place in a text."""

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from src.api.spelling import Span, encode_with_leading_space, locate_pieces
from src.config.errors import UserError
from src.tokens.token_bytes import ANCHOR, BYTE_TOKEN, TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_MODELS = ("WordPiece", "WordLevel")  # models whose tokens do not include the space before a word


def canonical_tokens(text: bytes, spans: Sequence[Span]) -> list[bytes]:
    """The bytes of each span of `text` without white space around them, after one space if they begin a word."""
    tokens = []
    for start, end in spans:
        piece = text[start:end]
        body = piece.strip()
        tokens.append(b" " + body if body and begins_word(text, start, end) else body or piece)
    return tokens


def begins_word(text: bytes, start: int, end: int) -> bool:
    """Whether a token at text[start:end] is the first of its word."""
    return start == 0 or text[start - 1 : start].isspace() or text[start:end][:1].isspace()


def strip_span(text: bytes, span: Span) -> Span:
    """A span without white space at its ends; a span of nothing else is returned unchanged."""
    start, end = span
    piece = text[start:end]
    if not piece.strip():
        return span
    return end - len(piece.lstrip()), start + len(piece.rstrip())


class StudentTokens:
    """A student's vocabulary: which token spells some bytes, and which bytes the tokens of a text spell.

    end_of_text: the name of its EOS, in UTF-8. Raises UserError for a slow tokenizer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                "--student_name: its tokenizer is a slow one (no tokenizer.json), which cannot locate tokens in "
                "a text; choose a student with a fast tokenizer"
            )
        self._backend = backend
        self._bytes = TokenBytes(tokenizer)
        self.end_of_text = tokenizer.eos_token.encode()
        self._eos = tokenizer.eos_token_id
        model = json.loads(backend.to_str())["model"]
        self._spells_spaces = model["type"] not in WORD_MODELS  # its tokens include them: `▁cat`, `Ġcat`
        vocabulary = {token: name for name, token in tokenizer.get_vocab().items() if token not in self._bytes.special}
        ids = sorted(vocabulary, key=lambda token: (BYTE_TOKEN.fullmatch(vocabulary[token]) is not None, token))
        if self._spells_spaces:
            spelled = self._bytes.of(ids)
        else:
            prefix = model.get("continuing_subword_prefix")
            spelled = [_spelled_word(vocabulary[token], prefix) for token in ids]
        self._id_of: dict[bytes, int] = {}
        for token, one in zip(ids, spelled, strict=True):
            self._id_of.setdefault(one, token)  # a byte's token, last in `ids`, only if no other spells it
        self._id_of.pop(b"", None)

    def id_of(self, spelled: bytes) -> int | None:
        """The one token that spells these bytes, after the tokenizer's normalization; None if there is none.

        Of the special tokens only EOS is found, by its name, because a teacher may write it too.
        """
        if spelled == self.end_of_text:
            return self._eos
        if self._spells_spaces and spelled in self._id_of:
            return self._id_of[spelled]
        return self._id_of.get(self._normal_form(spelled))

    def _normal_form(self, spelled: bytes) -> bytes:
        """The bytes as normalization leaves them inside a text; b"" if they are not a single word afterwards."""
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            return b""  # part of a character
        body = text.lstrip(" ")
        head = text[: len(text) - len(body)]
        if self._spells_spaces:
            body = self._normalize(body).replace("▁", " ").strip(" ")
            return (head + body).encode() if body else b""
        words = self._words(ANCHOR + body)
        if words and words[0] == ANCHOR:  # the pre-tokenizer splits it from a word: punctuation
            return f" {words[1]}".encode() if len(words) == 2 else b""
        return (head + words[0].removeprefix(ANCHOR)).encode() if len(words) == 1 else b""

    def _normalize(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def _words(self, text: str) -> list[str]:
        text = self._normalize(text)
        splitter = self._backend.pre_tokenizer
        return text.split() if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]

    def begins_with_space(self, token: int, text: bytes, span: Span) -> bool:
        """Whether the token at this span of `text` includes the space before it (WordPiece: begins a word)."""
        if self._spells_spaces:
            return self._bytes.of([token])[0][:1] == b" "
        return begins_word(text, *span)

    def locate(self, tokens: Sequence[int], characters: Sequence[Span], target: str) -> list[Span]:
        """The span of `encode_with_leading_space(target)` that each of T tokens spells.

        characters: T spans in characters of `target`, from the tokenizer, used if the tokens' bytes do not spell the
        target. If they do, the result is exact within characters too.
        """
        text = encode_with_leading_space(target)
        special = self._bytes.special
        pieces = [b"" if token in special else one for token, one in zip(tokens, self._bytes.of(tokens), strict=True)]
        spans = locate_pieces(pieces, text) if self._spells_spaces else None
        if spans is not None:
            return spans
        starts = [0, *accumulate(len(character.encode()) for character in target)]
        n_before = len(text) - starts[-1]
        places = [(starts[start] + n_before, starts[end] + n_before) for start, end in characters]
        # The tokenizer puts a `▁` of its own on the first letter of its word.
        is_space = [self._spells_spaces and one.isspace() for one in pieces]
        return [
            (start, start) if space and text[start:end].strip() else (start, end)
            for (start, end), space in zip(places, is_space, strict=True)
        ]


def _spelled_word(name: str, prefix: str | None) -> bytes:
    """The bytes of a token that begins a word, after a space, or of one that continues it, without its `prefix`."""
    return name.removeprefix(prefix).encode() if prefix and name.startswith(prefix) else f" {name}".encode()
