"""Tokens of a text in its surroundings: after other text, and between the special tokens that a tokenizer adds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.config.errors import UserError
from src.tokens.token_bytes import ANCHOR

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import BatchEncoding, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LocatedTokens:
    """The tokens of a text, and where a fast tokenizer found them.

    encoding: of a longer text, in which these tokens begin at token `first` and the text at character `n_before`; None
    for a slow tokenizer.
    """

    ids: list[int]
    encoding: "Encoding | None" = None
    first: int = 0
    n_before: int = 0

    def spans(self) -> list[tuple[int, int]]:
        """The characters (start, end) of the text for each token; empty spans for tokens without text.

        Raises UserError for a slow tokenizer.
        """
        if self.encoding is None:
            raise UserError("the student's tokenizer is a slow one (no tokenizer.json), which locates no tokens")
        offsets = self.encoding.offsets[self.first : self.first + len(self.ids)]
        return [(max(0, start - self.n_before), max(0, end - self.n_before)) for start, end in offsets]


def encodings_of(encoded: "BatchEncoding") -> "Sequence[Encoding | None]":
    """The encoding of each text; None for each with a slow tokenizer."""
    return encoded.encodings or [None] * len(encoded["input_ids"])


def plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of a text without the special tokens around it."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def continued_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, separator: str = " "
) -> list[LocatedTokens]:
    """The tokens of each text when it follows a word and a separator, without special tokens.

    A space belongs to the tokens of the text after it, as in tokenizers; other separators do not. Without a separator a
    text is tokenized alone.
    """
    before = ANCHOR + separator if separator else ""
    anchor = plain_ids(tokenizer, ANCHOR if separator == " " else before)
    joined = tokenizer([before + text for text in texts], add_special_tokens=False, verbose=False)
    continued: list[LocatedTokens] = []
    for text, ids, encoding in zip(texts, joined["input_ids"], encodings_of(joined), strict=True):
        if ids[: len(anchor)] == anchor:
            continued.append(LocatedTokens(ids[len(anchor) :], encoding, len(anchor), len(before)))
        else:  # a token spans the two words
            alone = tokenizer([text], add_special_tokens=False, verbose=False)
            continued.append(LocatedTokens(alone["input_ids"][0], encodings_of(alone)[0]))
    return continued


def n_closing_tokens(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The number of special tokens that the tokenizer adds after a text."""
    text, ids = plain_ids(tokenizer, ANCHOR), tokenizer(ANCHOR)["input_ids"]
    return next((n for n in range(len(ids)) if ids[: len(ids) - n][-len(text) :] == text), 0)


def opening_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The special tokens that the tokenizer adds before a text."""
    ids = tokenizer(ANCHOR)["input_ids"]
    return ids[: len(ids) - n_closing_tokens(tokenizer) - len(plain_ids(tokenizer, ANCHOR))]


def n_tokens_after_eos(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The number of tokens that the tokenizer adds to a target after EOS: mBART's target language."""
    ids = tokenizer(text_target=ANCHOR)["input_ids"]
    return ids[::-1].index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else 0
