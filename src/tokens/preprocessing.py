"""Texts as model inputs and labels.

Encoder-decoder and decoder-only models share one layout: `input_ids` hold what the model reads before it writes (for a
decoder-only model text and prompt), `labels` what it should write (target and EOS). Generation, teacher forcing and
student-written targets therefore need no second layout.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from src.config.console import progress_bar
from src.config.errors import UserError
from src.config.parsing import shown
from src.data.references import Target, first_references
from src.tokens.continuation import (
    LocatedTokens,
    continued_ids,
    encodings_of,
    n_closing_tokens,
    n_tokens_after_eos,
    opening_tokens,
    plain_ids,
)
from src.tokens.ragged import Encoded, Ragged, lengths_of
from src.tokens.special_token_names import SpecialTokenNames
from src.tokens.task_prompt import prompt_prefix, prompt_suffix, target_separator
from src.tokens.token_bytes import ANCHOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_PER_CALL = 2_000  # a fraction of a second, between two calls of `check`


@dataclass(eq=False)
class Preprocessor:
    """Turns texts into token ids. Raises UserError if prompt and special tokens leave no room for a text.

    max_input_length, max_labels_length: in tokens, special ones included. task_prompt: a prefix for encoder-decoder
    models, a suffix for decoder-only models; it is never cut, and names of special tokens in it are those tokens. In
    texts, names are ordinary text unless special_tokens_in_text. truncation_side: where a text that is too long is cut.
    check: called between chunks of texts; raises to stop. end: the token with which labels end, EOS.
    """

    tokenizer: "PreTrainedTokenizerBase"
    is_encoder_decoder: bool
    max_input_length: int
    max_labels_length: int
    task_prompt: str = ""
    truncation_side: str = "right"
    special_tokens_in_text: bool = False
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        # A copy: a call switches off the tokenizer's own limit, and the caller saves the tokenizer. It also gives a
        # second thread (`replace`) a tokenizer of its own.
        self.tokenizer = copy.deepcopy(self.tokenizer)
        self.end: int = self.tokenizer.eos_token_id
        self._names = SpecialTokenNames(self.tokenizer)
        self._read_template()
        self._special = {*self.tokenizer.all_special_ids, self.end}
        if self.tokenizer.unk_token_id != self.end:  # an unknown word is text
            self._special.discard(self.tokenizer.unk_token_id)
        self._known_as_text: dict[int, bool] = {}
        if self.is_encoder_decoder:
            self.prompt = prompt_prefix(self.task_prompt)
        else:
            self.prompt = prompt_suffix(self.task_prompt, self._names)
        fixed = self._n_fixed_tokens()
        if fixed >= self.max_input_length:
            raise UserError(
                f"--max_input_length {self.max_input_length}: {self.fixed_parts} take {fixed} tokens and leave no room "
                f"for text; possible: {fixed + 1} or more"
            )

    def _read_template(self) -> None:
        """For a subclass: the token that ends labels, and further names, which a template has."""

    @property
    def fixed_parts(self) -> str:
        """The parts of an input besides its text, for an error."""
        return f"--task_prompt {shown(self.prompt.strip())} and special tokens"

    @property
    def targets_follow_space(self) -> bool:
        """Whether targets are tokenized as stored ones are."""
        return self.is_encoder_decoder or self.separator == " "

    @property
    def separator(self) -> str:
        """The text between a decoder-only model's prompt and the target."""
        return target_separator(self.prompt, self._names)

    def special_token_in(self, texts: Sequence[str]) -> str | None:
        """The first name of a special token in the texts that is read as text; None if there is none."""
        return None if self.special_tokens_in_text else self._names.first_in(texts)

    def encode_inputs(self, texts: Sequence[str]) -> Encoded:
        """The tokens of prompt and text. A text that is too long is cut, the prompt never."""
        return Encoded.concatenate(list(self.encode_in_chunks(texts, labels=False)))

    def encode_labels(self, targets: Sequence[str]) -> Encoded:
        """The tokens of target and EOS. A target that is too long is cut and still ends with EOS."""
        return Encoded.concatenate(list(self.encode_in_chunks(targets, labels=True)))

    def locate_labels(self, targets: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The tokens of `encode_labels`, and the characters (start, end) of the target for each; (0, 0) for EOS.

        Raises UserError for a slow tokenizer.
        """
        labels = []
        for located in self._targets(list(targets)):
            ids = self._cut_labels(self._with_eos(located.ids))
            labels.append((ids, [*located.spans()[: len(ids) - 1], (0, 0)]))
        return labels

    def encode_in_chunks(self, texts: Sequence[Target], *, labels: bool) -> Iterator[Encoded]:
        """The tokens of inputs, or of labels, a few thousand texts at a time; of several references, of the first."""
        encode = self._labels if labels else self._inputs
        with progress_bar(len(texts), f"tokenize {'targets' if labels else 'inputs'}", "texts") as bar:
            for start in range(0, len(texts), TEXTS_PER_CALL):
                self.check()
                chunk = first_references(texts[start : start + TEXTS_PER_CALL])
                yield replace(encode(chunk), special_token=self.special_token_in(chunk))
                bar.update(len(chunk))

    def settings(self) -> str | None:
        """All that tokens depend on besides the texts, as text; None for a tokenizer that cannot say."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("tokenizer", "check")}
        names = ("src_lang", "tgt_lang", "chat_template", "special_tokens_map")
        told = {name: str(getattr(self.tokenizer, name, None)) for name in names}
        kinds = [type(self).__name__, type(self.tokenizer).__name__, self.prompt, version("tokenizers")]
        return json.dumps([kinds, own, told, backend.to_str()], sort_keys=True)

    def _tokenizer_for(self, texts: list[str]) -> "PreTrainedTokenizerBase":
        """The tokenizer for texts of the data, in which names of special tokens are text unless the flag says so."""
        return self.tokenizer if self.special_token_in(texts) is None else self._names.literal_tokenizer

    def _inputs(self, texts: list[str]) -> Encoded:
        n_fixed = self._n_fixed_tokens()
        if self.is_encoder_decoder:
            made, n_end = self._encoder_inputs(texts), n_closing_tokens(self.tokenizer)
        else:
            suffix = self._suffix_ids()
            made, n_end = [opened + suffix for opened in self._opened(texts)], len(suffix)
        whole = [ids or [self._first] for ids in made]  # a model needs at least one token to read
        return Encoded(Ragged.of(self._cut_input(ids, n_fixed - n_end, n_end) for ids in whole), lengths_of(whole))

    def _cut_input(self, ids: list[int], n_begin: int, n_end: int) -> list[int]:
        """An input within its limit; its first `n_begin` and last `n_end` tokens are kept."""
        excess = len(ids) - self.max_input_length
        if excess <= 0:
            return ids
        start = n_begin if self.truncation_side == "left" else len(ids) - n_end - excess
        return ids[:start] + ids[start + excess :]

    def _encoder_inputs(self, texts: list[str]) -> list[list[int]]:
        tokenizer = self._tokenizer_for(texts)
        if tokenizer is self.tokenizer or self._names.first_in([self.prompt]) is None:
            made = tokenizer([self.prompt + text for text in texts], verbose=False)["input_ids"]
            return [self._with_one_bos(ids) for ids in made]
        around = self.tokenizer(self.prompt.rstrip())["input_ids"]  # the prompt's special tokens, but not the texts'
        n_before = len(around) - n_closing_tokens(self.tokenizer)
        return [around[:n_before] + each.ids + around[n_before:] for each in continued_ids(tokenizer, texts)]

    def _opened(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text with the special tokens before it (BOS, if the tokenizer adds it), without EOS."""
        encoded = self._tokenizer_for(texts)(texts, verbose=False)["input_ids"]
        adds_eos = self.tokenizer(ANCHOR)["input_ids"][-1:] == [self.end]
        return [self._with_one_bos(ids[:-1] if adds_eos else ids) for ids in encoded]

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """Without a second BOS for a text that begins with BOS itself (from a chat template)."""
        bos = self.tokenizer.bos_token_id
        has_two = self.special_tokens_in_text and ids[:2] == [bos, bos] and opening_tokens(self.tokenizer)[:1] == [bos]
        return ids[1:] if has_two else ids

    def _suffix_ids(self) -> list[int]:
        """The tokens of a decoder-only model's prompt without a space at its end, which belongs to the target."""
        suffix = self.prompt.removesuffix(" ")
        if suffix.startswith(" "):
            return continued_ids(self.tokenizer, [suffix[1:]])[0].ids
        anchor, joined = plain_ids(self.tokenizer, ANCHOR), plain_ids(self.tokenizer, ANCHOR + suffix)
        return joined[len(anchor) :] if joined[: len(anchor)] == anchor else plain_ids(self.tokenizer, suffix)

    def _n_fixed_tokens(self) -> int:
        """The tokens of every input besides its text: the prompt's and the special ones."""
        if self.is_encoder_decoder:
            return len(self.tokenizer(self.prompt.rstrip())["input_ids"])
        return len(self._opened([""])[0]) + len(self._suffix_ids())

    @property
    def _first(self) -> int:
        """The token that stands for an input without tokens."""
        bos = self.tokenizer.bos_token_id
        return self.end if bos is None or self.is_encoder_decoder else bos

    def _labels(self, targets: list[str]) -> Encoded:
        whole = [self._with_eos(located.ids) for located in self._targets(targets)]
        labels = [self._cut_labels(ids) for ids in whole]
        n_empty = sum(
            not text.strip() or not any(map(self._is_text, ids)) for text, ids in zip(targets, labels, strict=True)
        )
        return Encoded(Ragged.of(labels), lengths_of(whole), n_empty)

    def _targets(self, targets: list[str]) -> list[LocatedTokens]:
        tokenizer = self._tokenizer_for(targets)
        if not self.is_encoder_decoder:
            located = continued_ids(tokenizer, targets, separator=self.separator)
            return [
                each if target.strip() else LocatedTokens([], each.encoding)
                for target, each in zip(targets, located, strict=True)
            ]
        n_after_eos = n_tokens_after_eos(self.tokenizer)
        encoded = tokenizer(text_target=targets, verbose=False)
        return [
            LocatedTokens(ids[: len(ids) - n_after_eos], encoding)
            for ids, encoding in zip(encoded["input_ids"], encodings_of(encoded), strict=True)
        ]

    def _with_eos(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self.end else [*ids, self.end]

    def _cut_labels(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.max_labels_length else [*ids[: self.max_labels_length - 1], self.end]

    def _is_text(self, token: int) -> bool:
        """Whether a token is neither special nor white space."""
        if token not in self._known_as_text:
            is_text = token not in self._special and str(self.tokenizer.decode([token])).strip() != ""
            self._known_as_text[token] = is_text
        return self._known_as_text[token]
