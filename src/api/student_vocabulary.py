"""Look up the student's tokens: by the bytes that they spell, and by their place in a text."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from src.api.spelling import Span, encode_with_leading_space, locate_pieces
from src.config.errors import UserError
from src.tokens.token_bytes import BYTE_TOKEN, TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD_MODELS = ("WordPiece", "WordLevel")  # models whose tokens do not include the space before a word


class StudentTokens:
    """A student's vocabulary: which token spells some bytes, and which bytes the tokens of a text spell.

    end: the token that ends labels; EOS if None. end_of_text: its name, in UTF-8. Raises UserError for a tokenizer that
    is slow or whose tokens do not spell the spaces of a text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", end: int | None = None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                "--student_name: its tokenizer is a slow one (no tokenizer.json), which cannot locate tokens in "
                "a text; choose a student with a fast tokenizer"
            )
        kind = type(backend.model).__name__
        if kind in WORD_MODELS:
            raise UserError(
                f"--student_name: the tokens of a {kind} tokenizer do not include the spaces of a text, so a teacher's "
                "tokens cannot be aligned with them; choose a student with a SentencePiece or byte-level BPE tokenizer"
            )
        self._normalizer = backend.normalizer
        self._bytes = TokenBytes(tokenizer)
        self._eos = tokenizer.eos_token_id if end is None else end
        self.end_of_text = str(tokenizer.convert_ids_to_tokens(self._eos)).encode()
        vocabulary = {token: name for name, token in tokenizer.get_vocab().items() if token not in self._bytes.special}
        ids = sorted(vocabulary, key=lambda token: (BYTE_TOKEN.fullmatch(vocabulary[token]) is not None, token))
        self._id_of: dict[bytes, int] = {}
        for token, spelled in zip(ids, self._bytes.of(ids), strict=True):
            self._id_of.setdefault(spelled, token)  # a byte's token, last in `ids`, only if no other spells it
        self._id_of.pop(b"", None)

    def id_of(self, spelled: bytes) -> int | None:
        """The one token that spells these bytes, as they are or after the tokenizer's normalization; None without one.

        Of the special tokens only EOS is found, by its name, because a teacher may write it too.
        """
        if spelled == self.end_of_text:
            return self._eos
        if spelled in self._id_of:
            return self._id_of[spelled]
        return self._id_of.get(self._normal_form(spelled))

    def _normal_form(self, spelled: bytes) -> bytes:
        """The bytes as normalization leaves them inside a text; b"" if nothing is left of them."""
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            return b""  # part of a character
        body = text.lstrip(" ")
        spaces = text[: len(text) - len(body)]
        if self._normalizer is not None:
            body = self._normalizer.normalize_str(body)
        body = body.replace("▁", " ").strip(" ")
        return (spaces + body).encode() if body else b""

    def begins_with_space(self, token: int) -> bool:
        """Whether the token includes the space before its word."""
        return self._bytes.of([token])[0][:1] == b" "

    def locate(self, tokens: Sequence[int], characters: Sequence[Span], target: str) -> list[Span]:
        """The span of `encode_with_leading_space(target)` that each of T tokens spells.

        characters: T spans in characters of `target`, from the tokenizer, used if the tokens' bytes do not spell the
        target. If they do, the result is exact within characters too.
        """
        text = encode_with_leading_space(target)
        special = self._bytes.special
        pieces = [b"" if token in special else one for token, one in zip(tokens, self._bytes.of(tokens), strict=True)]
        spans = locate_pieces(pieces, text)
        if spans is not None:
            return spans
        starts = [0, *accumulate(len(character.encode()) for character in target)]
        n_before = len(text) - starts[-1]
        places = [(starts[start] + n_before, starts[end] + n_before) for start, end in characters]
        # The tokenizer puts a `▁` of its own on the first letter of its word.
        return [
            (start, start) if piece.isspace() and text[start:end].strip() else (start, end)
            for (start, end), piece in zip(places, pieces, strict=True)
        ]
