"""The bytes that each token adds to a text: `▁cat` and `Ġcat` are ` cat`, `<0xE6>` and `æ` one byte."""

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
ANCHOR = "x"  # a word put before a text or a token that is to be encoded or decoded as inside a sentence


class TokenBytes:
    """The bytes of tokens inside a text, by id; those of a special token are its name.

    special: ids of the special tokens (EOS, padding, …).
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.special = frozenset(tokenizer.all_special_ids)
        self._tokenizer = tokenizer
        self._anchor = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"][-1:]
        special = tokenizer.all_special_ids
        self._bytes = {
            i: name.encode() for i, name in zip(special, tokenizer.convert_ids_to_tokens(special), strict=True)
        }

    def of(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        new = sorted(set(tokens).difference(self._bytes))
        if new:
            names = self._tokenizer.convert_ids_to_tokens(new)
            self._bytes.update(zip(new, map(_as_bytes, names, self._decoded(new)), strict=True))
        return [self._bytes[token] for token in tokens]

    def _decoded(self, tokens: list[int]) -> list[str]:
        """The text that each token adds to the anchor's."""
        rows = [self._anchor, *([*self._anchor, token] for token in tokens)]
        anchor, *texts = self._tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        return [text.removeprefix(anchor) for text in texts]


def n_whole(pieces: Sequence[bytes]) -> int:
    """The number of first pieces that together are valid UTF-8: all, or those before the first broken character."""
    try:
        b"".join(pieces).decode()
    except UnicodeDecodeError as error:
        n, length = 0, 0
        while length + len(pieces[n]) <= error.start:
            length += len(pieces[n])
            n += 1
        return n_whole(pieces[:n])  # these may end inside a character that the next piece ends
    return len(pieces)


def _as_bytes(name: str, decoded: str) -> bytes:
    """The bytes of a token: its text, or, if it is only a part of a character, the bytes in its name."""
    if REPLACEMENT not in decoded:
        return decoded.encode()
    byte = BYTE_TOKEN.fullmatch(name)
    if byte:
        return bytes([int(byte[1], 16)])
    if all(character in byte_of_character() for character in name):
        return bytes(byte_of_character()[character] for character in name)
    return decoded.encode()


@cache
def byte_of_character() -> dict[str, int]:
    """The 256 characters of byte-level BPE (GPT-2), each with its byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
