"""Text to tokens, once; tokens to batches, in a reproducible order.

Shapes: B batch, S source tokens, T target tokens, N rows of a split.

Encoder-decoder and decoder-only models share one layout: `input_ids` hold what the model reads before it writes (for a
decoder-only model text + prompt, padded on the left), `labels` what it should write (target + EOS, padded on the right
with -100). Generation, teacher forcing and student-written targets therefore need no second layout.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from src.config.console import progress_bar
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.config.parsing import shown
from src.tokens.literal import LiteralReader

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import BatchEncoding, PreTrainedTokenizerBase
from src.tokens.ragged import Encoded, Ragged
from src.tokens.token_bytes import ANCHOR

TEXTS_PER_CALL = 2_000  # fractions of a second, after which somebody may stop it


@dataclass(frozen=True)
class Located:
    """Tokens of a text, and how to find the characters of each: `encoding` holds them from `first` on, counted from
    `n_before` characters before the text. A slow tokenizer has no `encoding`.
    """

    ids: list[int]
    encoding: "Encoding | None" = None
    first: int = 0
    n_before: int = 0

    def spans(self) -> list[tuple[int, int]]:
        """Start and end (not included) of each token, in characters; empty for one that stands for no text."""
        if self.encoding is None:
            raise UserError("the student's tokenizer is a slow one (no tokenizer.json), which locates no tokens")
        offsets = self.encoding.offsets[self.first : self.first + len(self.ids)]
        return [(max(0, start - self.n_before), max(0, end - self.n_before)) for start, end in offsets]


@dataclass(frozen=True)
class Preprocessor:
    """How texts become model inputs and labels (SPEC §3, Preprocessing).

    max_input_length and max_labels_length count tokens, special ones included. task_prompt is a prefix for
    encoder-decoder models and a suffix for decoder-only models; it is never cut, and special tokens that it names are
    those tokens. In texts they are words like others unless special_tokens_in_text. truncation_side: where a text too
    long is cut. check runs between chunks of texts and raises to stop.
    """

    tokenizer: "PreTrainedTokenizerBase"
    is_encoder_decoder: bool
    max_input_length: int
    max_labels_length: int
    task_prompt: str = ""
    truncation_side: str = "right"
    special_tokens_in_text: bool = False
    prompt: str = field(init=False)
    check: Callable[[], None] = lambda: None
    _silent: "_Silent" = field(init=False, repr=False, compare=False)
    _literal: LiteralReader = field(init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls, config: SharedArguments, tokenizer: "PreTrainedTokenizerBase", *, is_encoder_decoder: bool
    ) -> "Preprocessor":
        return cls(
            tokenizer,
            is_encoder_decoder,
            config.max_input_length,
            config.max_labels_length,
            config.task_prompt,
            config.truncation_side,
            config.special_tokens_in_text,
        )

    def __post_init__(self) -> None:
        # A copy: a call switches off the limit that a tokenizer may have of its own, which is saved with the caller's.
        object.__setattr__(self, "tokenizer", copy.deepcopy(self.tokenizer))
        object.__setattr__(self, "_silent", _Silent(self.tokenizer))
        object.__setattr__(self, "_literal", LiteralReader(self.tokenizer))
        object.__setattr__(self, "prompt", self._prefix() if self.is_encoder_decoder else self._suffix())
        fixed = self._n_fixed_tokens()
        if fixed >= self.max_input_length:
            raise UserError(
                f"--max_input_length {self.max_input_length}: --task_prompt {shown(self.prompt.strip())} and special "
                f"tokens take {fixed} tokens and leave no room for text; possible: {fixed + 1} or more"
            )

    def _prefix(self) -> str:
        """The prompt of an encoder-decoder model: its words and a space."""
        words = words_of_prompt(self.task_prompt)
        return f"{words} " if words else ""

    def _suffix(self) -> str:
        """The prompt of a decoder-only model to the letter, with a space before it where nothing else separates it."""
        prompt = spelled(self.task_prompt)
        if not prompt.strip(" "):
            return ""
        return prompt if prompt[0].isspace() or self._literal.begins(prompt) else f" {prompt}"

    @property
    def separator(self) -> str:
        """What stands before a decoder-only model's target: the white space that ends its prompt; nothing behind a
        special token; else a space."""
        space = self.prompt[len(self.prompt.rstrip()) :]
        if space:
            return " " if space.endswith(" ") else space
        return "" if self._literal.ends(self.prompt) else " "

    def special_token_in(self, texts: Sequence[str]) -> str | None:
        """A special token that one of the texts names, and that is not read as such."""
        return None if self.special_tokens_in_text else self._literal.first_named(texts)

    def encode_inputs(self, texts: Sequence[str]) -> Encoded:
        """Prompt and text as token ids; a text too long is cut at its end, the prompt never."""
        return self._in_chunks(texts, self._inputs, "tokenize inputs")

    def encode_labels(self, targets: Sequence[str]) -> Encoded:
        """Target and EOS as token ids; a target too long is cut, its EOS kept."""
        return self._in_chunks(targets, self._labels, "tokenize targets")

    def locate_labels(self, targets: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The tokens of `encode_labels`, and the characters (start, end) of the target each stands for; none for EOS.

        Raises UserError with a tokenizer that cannot tell.
        """
        labels = []
        for located in self._targets(list(targets)):
            ids = self._cut_labels(self._ended(located.ids))
            labels.append((ids, [*located.spans()[: len(ids) - 1], (0, 0)]))
        return labels

    def _targets(self, targets: list[str]) -> list[Located]:
        if self.is_encoder_decoder:
            return self._encoder_decoder_targets(targets)
        located = self._continue(targets, self._reader(targets), self.separator)
        return [
            each if target.strip() else Located([], each.encoding)
            for target, each in zip(targets, located, strict=True)
        ]

    def _reader(self, texts: list[str]) -> "PreTrainedTokenizerBase":
        """The tokenizer for texts of the data, in which a special token's name is none unless the flag says so."""
        return self.tokenizer if self.special_token_in(texts) is None else self._literal.tokenizer

    def _in_chunks(self, texts: Sequence[str], encode: Callable[[list[str]], Encoded], description: str) -> Encoded:
        parts = []
        with progress_bar(len(texts), description, "texts") as bar:
            for start in range(0, len(texts), TEXTS_PER_CALL):
                self.check()
                chunk = list(texts[start : start + TEXTS_PER_CALL])
                parts.append(encode(chunk))
                bar.update(len(chunk))
        return Encoded.concatenate(parts)

    def _inputs(self, texts: list[str]) -> Encoded:
        n_fixed = self._n_fixed_tokens()
        if self.is_encoder_decoder:
            made, n_end = self._encoder_inputs(texts), self._n_closing()
        else:
            suffix = self._prompt_ids()
            made, n_end = [head + suffix for head in self._heads(texts)], len(suffix)
        whole = [ids or [self._first] for ids in made]  # a model needs at least one token to read
        return Encoded(Ragged.of(self._cut_input(ids, n_fixed - n_end, n_end) for ids in whole), _lengths(whole))

    def _cut_input(self, ids: list[int], n_begin: int, n_end: int) -> list[int]:
        """An input within its limit, its text cut at one end; its first `n_begin` and last `n_end` tokens are kept."""
        excess = len(ids) - self.max_input_length
        if excess <= 0:
            return ids
        start = n_begin if self.truncation_side == "left" else len(ids) - n_end - excess
        return ids[:start] + ids[start + excess :]

    def _encoder_inputs(self, texts: list[str]) -> list[list[int]]:
        reader = self._reader(texts)
        if reader is self.tokenizer or self._literal.first_named([self.prompt]) is None:
            made = reader([self.prompt + text for text in texts], verbose=False)["input_ids"]
            return [self._one_bos(ids) for ids in made]
        around = self.tokenizer(self.prompt.rstrip())["input_ids"]
        n_before = len(around) - self._n_closing()
        return [around[:n_before] + each.ids + around[n_before:] for each in self._continue(texts, reader)]

    def _one_bos(self, ids: list[int]) -> list[int]:
        """A text that begins with BOS itself (rendered by a chat template) gets no second one."""
        bos = self.tokenizer.bos_token_id
        adds_bos = self.special_tokens_in_text and ids[:2] == [bos, bos] and self._opening()[:1] == [bos]
        return ids[1:] if adds_bos else ids

    def _n_closing(self) -> int:
        """Special tokens that the tokenizer puts behind a text."""
        text, ids = self._tokens(ANCHOR), self.tokenizer(ANCHOR)["input_ids"]
        return next((n for n in range(len(ids)) if ids[: len(ids) - n][-len(text) :] == text), 0)

    def _opening(self) -> list[int]:
        """Special tokens that the tokenizer puts before a text."""
        ids = self.tokenizer(ANCHOR)["input_ids"]
        return ids[: len(ids) - self._n_closing() - len(self._tokens(ANCHOR))]

    def _labels(self, targets: list[str]) -> Encoded:
        whole = [self._ended(located.ids) for located in self._targets(targets)]
        labels = [self._cut_labels(ids) for ids in whole]
        n_empty = sum(not text.strip() or self._is_silent(ids) for text, ids in zip(targets, labels, strict=True))
        return Encoded(Ragged.of(labels), _lengths(whole), n_empty)

    def _is_silent(self, ids: list[int]) -> bool:
        return all(map(self._silent.__getitem__, ids))

    def _cut_labels(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.max_labels_length else [*ids[: self.max_labels_length - 1], self._eos]

    def _encoder_decoder_targets(self, targets: list[str]) -> list[Located]:
        beyond = self._n_beyond_eos()
        encoded = self._reader(targets)(text_target=targets, verbose=False)
        return [
            Located(ids[: len(ids) - beyond], encoding)
            for ids, encoding in zip(encoded["input_ids"], _encodings(encoded), strict=True)
        ]

    def _n_beyond_eos(self) -> int:
        """Tokens that the tokenizer adds to a target behind EOS: mBART's language, with which its decoder starts."""
        ids = self.tokenizer(text_target=ANCHOR)["input_ids"]
        return ids[::-1].index(self._eos) if self._eos in ids else 0

    def _heads(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text as a sequence begins (BOS included, where the tokenizer adds one) but does not end."""
        encoded = self._reader(texts)(texts, verbose=False)["input_ids"]
        adds_eos = self.tokenizer(ANCHOR)["input_ids"][-1:] == [self._eos]
        return [self._one_bos(ids[:-1] if adds_eos else ids) for ids in encoded]

    def _continue(self, texts: list[str], reader: "PreTrainedTokenizerBase", separator: str = " ") -> list[Located]:
        """Tokens of each text as they are behind another word and a separator, without special tokens.

        A space belongs to the text that it stands before, as tokenizers have it; other separators do not. Without a
        separator a text is read by itself.
        """
        before = ANCHOR + separator if separator else ""
        anchor = self._tokens(ANCHOR if separator == " " else before)
        joined = reader([before + text for text in texts], add_special_tokens=False, verbose=False)
        continued: list[Located] = []
        for text, ids, encoding in zip(texts, joined["input_ids"], _encodings(joined), strict=True):
            if ids[: len(anchor)] == anchor:
                continued.append(Located(ids[len(anchor) :], encoding, len(anchor), len(before)))
            else:  # a token spans the two words
                alone = reader([text], add_special_tokens=False, verbose=False)
                continued.append(Located(alone["input_ids"][0], _encodings(alone)[0]))
        return continued

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self._eos else [*ids, self._eos]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _prompt_ids(self) -> list[int]:
        """The suffix of a decoder-only model, without a space at its end: that one begins the target."""
        own = self.prompt.removesuffix(" ")
        if own.startswith(" "):
            return self._continue([own[1:]], self.tokenizer)[0].ids
        anchor, joined = self._tokens(ANCHOR), self._tokens(ANCHOR + own)
        return joined[len(anchor) :] if joined[: len(anchor)] == anchor else self._tokens(own)

    def _n_fixed_tokens(self) -> int:
        """Tokens of every input that are not its text's: the prompt's and the special ones."""
        if self.is_encoder_decoder:
            return len(self.tokenizer(self.prompt.rstrip())["input_ids"])
        return len(self._heads([""])[0]) + len(self._prompt_ids())

    @property
    def _eos(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def _first(self) -> int:
        """What a model reads of an empty text that the tokenizer makes nothing of."""
        if self.is_encoder_decoder:
            return self._eos
        bos = self.tokenizer.bos_token_id
        return self._eos if bos is None else bos


def spelled(task_prompt: str) -> str:
    r"""A --task_prompt to the letter: `\n` and `\t`, as a shell passes them, are characters; `bart` means none."""
    return "" if task_prompt == "bart" else task_prompt.replace(r"\n", "\n").replace(r"\t", "\t")


def words_of_prompt(task_prompt: str) -> str:
    """A --task_prompt without white space around it; the value `bart` means none."""
    return "" if task_prompt == "bart" else task_prompt.strip()


def _lengths(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(map(len, sequences), dtype=np.int32, count=len(sequences))


class _Silent(dict[int, bool]):
    """Whether a token stands for no text: BOS, EOS and the like, and white space. Found out at its first use."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._special = {*tokenizer.all_special_ids, tokenizer.eos_token_id}
        if tokenizer.unk_token_id != tokenizer.eos_token_id:  # an unknown word is one
            self._special.discard(tokenizer.unk_token_id)

    def __missing__(self, token: int) -> bool:
        self[token] = token in self._special or not str(self._tokenizer.decode([token])).strip()
        return self[token]


def _encodings(encoded: "BatchEncoding") -> "Sequence[Encoding | None]":
    """What a fast tokenizer knows of each text's tokens."""
    return encoded.encodings or [None] * len(encoded["input_ids"])
