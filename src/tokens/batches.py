"""Text to tokens, once; tokens to batches, in a reproducible order.

Shapes: B batch, S source tokens, T target tokens, N rows of a split.

Encoder-decoder and decoder-only models share one layout: `input_ids` hold what the model reads before it writes (for a
decoder-only model text + prompt, padded on the left), `labels` what it should write (target + EOS, padded on the right
with -100). Generation, teacher forcing and student-written targets therefore need no second layout.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from src.config.arguments import SharedArguments
from src.config.console import progress_bar, say
from src.config.constants import FINISH_REASON, IGNORE_INDEX, LENGTH, TARGET, TEXT
from src.config.errors import UserError
from src.config.parsing import shown
from src.data.references import first_references
from src.data.schema import Columns, Datasets, is_training_split
from src.data.soft_targets import LOGITS, TOKENS, StoredRow, StoredRows, pad_stored
from src.tokens.literal import LiteralReader
from src.tokens.truncation import Cuts, Lengths, of_inputs, of_nothing, of_special_tokens, of_targets

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import BatchEncoding, PreTrainedTokenizerBase

TEXTS_PER_CALL = 2_000  # fractions of a second, after which somebody may stop it
ANCHOR = "x"  # a word before a continuation, so that the continuation is tokenized as it is inside a sentence


@dataclass(frozen=True)
class Ragged:
    """Token sequences of unequal length: one flat array and N + 1 offsets (4 bytes a token at any number of rows)."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> "Ragged":
        arrays = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, np.int32), offsets)

    @classmethod
    def concatenate(cls, parts: Sequence["Ragged"]) -> "Ragged":
        flat = np.concatenate([part.flat for part in parts]) if parts else np.zeros(0, np.int32)
        lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int64)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def without_last(self, chosen: np.ndarray) -> "Ragged":
        """The same without the last token of the sequences that `chosen` (N,) marks; none of them may be empty."""
        is_kept = np.ones(len(self.flat), dtype=bool)
        is_kept[self.offsets[1:][chosen] - 1] = False
        return Ragged(self.flat[is_kept], np.concatenate([[0], np.cumsum(self.lengths - chosen)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Encoded:
    """Texts as tokens, cut to their limit.

    whole: (N,) tokens that each had before. n_empty: targets that are blank, or of which special tokens alone are left.
    """

    tokens: Ragged
    whole: np.ndarray
    n_empty: int = 0

    @classmethod
    def concatenate(cls, parts: Sequence["Encoded"]) -> "Encoded":
        whole = np.concatenate([np.zeros(0, np.int32), *(part.whole for part in parts)])
        return cls(Ragged.concatenate([part.tokens for part in parts]), whole, sum(part.n_empty for part in parts))


@dataclass(frozen=True)
class TopK:
    """A teacher's stored tokens: ids and raw log-probabilities, (B, T, K) in a batch; −inf marks an absent entry."""

    ids: Tensor
    logs: Tensor

    def to(self, device: torch.device) -> "TopK":
        return TopK(_moved(self.ids, device), _moved(self.logs, device))


@dataclass(frozen=True)
class Batch:
    """What travels through a step.

    input_ids, attention_mask: (B, S); labels: (B, T) with -100 as padding, None where nothing is known; rows: (B,) row
    numbers in the split, so that an error can name examples; teacher: what is stored of one, (B, T, K).
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    rows: tuple[int, ...]
    teacher: TopK | None = None

    @property
    def known_labels(self) -> Tensor:
        """(B, T) the labels of rows with targets, which alone are learned from."""
        assert self.labels is not None, "only rows with targets are learned from"
        return self.labels

    @cached_property
    def valid(self) -> Tensor:
        """(N,) the places, among B · T, of the labels that are not padding, row by row.

        Looked for once, where the batch is made: on an accelerator every such search would wait for it.
        """
        return (self.known_labels.flatten() != IGNORE_INDEX).nonzero()[:, 0]

    @cached_property
    def lengths(self) -> "BatchLengths":
        """Known where the batch is made, as `valid`."""
        known = self.known_labels != IGNORE_INDEX
        last = (known * torch.arange(1, known.shape[1] + 1, device=known.device)).amax(dim=1)
        inputs, labels, n_known = torch.stack([self.attention_mask.sum(dim=1), last, known.sum(dim=1)]).cpu().numpy()
        shortest = int(inputs.argmin())
        is_left_padded = int(inputs[shortest]) < self.attention_mask.shape[1] and not self.attention_mask[shortest, 0]
        return BatchLengths(inputs, labels, n_known, is_left_padded=bool(is_left_padded))

    def part(self, rows: np.ndarray) -> "Batch":
        """Some rows, without the padding that they have in common, and without what is stored of a teacher."""
        labels, lengths = self.known_labels, self.lengths
        chosen = torch.from_numpy(rows).to(labels.device)
        n_inputs, n_labels = int(lengths.inputs[rows].max()), int(lengths.labels[rows].max())
        first = self.input_ids.shape[1] - n_inputs if lengths.is_left_padded else 0
        return Batch(
            self.input_ids[chosen, first : first + n_inputs],
            self.attention_mask[chosen, first : first + n_inputs],
            labels[chosen, :n_labels],
            tuple(self.rows[row] for row in rows),
        )

    def to(self, device: torch.device) -> "Batch":
        moved = replace(
            self,
            input_ids=_moved(self.input_ids, device),
            attention_mask=_moved(self.attention_mask, device),
            labels=None if self.labels is None else _moved(self.labels, device),
            teacher=None if self.teacher is None else self.teacher.to(device),
        )
        if self.labels is not None:
            moved.__dict__.update(valid=_moved(self.valid, device), lengths=self.lengths)
        return moved


@dataclass(frozen=True)
class BatchLengths:
    """(B,) each: tokens of the inputs, labels up to the last that is not padding, and labels that are not padding."""

    inputs: np.ndarray
    labels: np.ndarray
    n_known: np.ndarray
    is_left_padded: bool


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as tokens. Rows with equal text share one input: row i reads `inputs[input_of_row[i]]`.

    cuts: what the limits of length have cut off. teacher: what is stored of a teacher at the positions of the labels,
    before they were cut.
    """

    name: str
    inputs: Ragged
    input_of_row: np.ndarray
    labels: Ragged | None
    cuts: Cuts
    teacher: StoredRows | None = None

    def __len__(self) -> int:
        return len(self.input_of_row)

    @property
    def input_lengths(self) -> np.ndarray:
        return self.inputs.lengths[self.input_of_row]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of input and labels together, per row."""
        return self.input_lengths + (0 if self.labels is None else self.labels.lengths)


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
class Tokenization:
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
    ) -> "Tokenization":
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

    def collate(self, split: TokenizedSplit, rows: Sequence[int] | np.ndarray) -> Batch:
        """The rows' tokens, padded to the longest of the batch. Masks come from lengths: pad may equal EOS."""
        inputs = [split.inputs[split.input_of_row[row]] for row in rows]
        pad = self.tokenizer.pad_token_id
        input_ids, mask = pad_sequences(inputs, pad, on_the_left=not self.is_encoder_decoder)
        batch = Batch(input_ids, mask, None, tuple(int(row) for row in rows))
        if split.labels is None:
            return batch
        labels, _ = pad_sequences([split.labels[row] for row in rows], IGNORE_INDEX, on_the_left=False)
        if split.teacher is None:
            return replace(batch, labels=labels)
        stored = [_as_cut(split.teacher.row(int(row)), len(split.labels[row])) for row in rows]
        ids, logs = pad_stored(stored, labels.shape[1])
        teacher = TopK(torch.from_numpy(ids), torch.from_numpy(logs))
        is_unknown = torch.isneginf(teacher.logs).all(dim=-1)
        return replace(batch, labels=labels.masked_fill(is_unknown, IGNORE_INDEX), teacher=teacher)


def _as_cut(stored: StoredRow, n_labels: int) -> StoredRow:
    """What is stored of a target's first labels. At the last one the teacher says what comes next, as a live one does,
    though the label that was put there is EOS."""
    counts, ids, logs = stored
    n_kept = int(counts[:n_labels].sum())
    return counts[:n_labels], ids[:n_kept], logs[:n_kept]


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


class TokenizedDatasets:
    """The splits of a dataset file as tokens: each split is tokenized once, at its first use or ahead of it.

    The splits `train_0 … train_{K-1}` hold the same inputs K times; equal texts are tokenized once over all splits.
    Of several references the first is the label.
    A target whose `finish_reason` is "length" was cut off by a model's limit: its labels have no EOS.
    """

    def __init__(self, datasets: Datasets, tokenization: Tokenization) -> None:
        self.datasets = datasets
        self.tokenization = tokenization
        self._splits: dict[str, TokenizedSplit] = {}
        self._input_of_text: dict[str, int] = {}
        self._inputs = Ragged.of([])
        self._whole_inputs = np.zeros(0, dtype=np.int32)
        self._unsaid = [of_inputs, of_targets, of_nothing, of_special_tokens]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")
        self._coming: Future[TokenizedSplit] | None = None
        self._closed = Event()

    def close(self) -> None:
        """Stop what is tokenized ahead: the process would wait for its end."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise CancelledError

    def __contains__(self, name: str) -> bool:
        return name in self.datasets

    def rows(self, name: str) -> int:
        return len(self.datasets[name][TEXT])

    def split(self, name: str) -> TokenizedSplit:
        """The split's tokens; waits for a split that is being tokenized ahead, whichever it is."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._add(coming.result())
        if name not in self._splits:
            self._add(self._tokenize(name, self.datasets[name], self.tokenization))
        return self._splits[name]

    def glimpse(self, name: str, at_most: int) -> TokenizedSplit:
        """The split's tokens, or of one with more than `at_most` rows those of some, evenly spread over it."""
        if name in self._splits or self.rows(name) <= at_most:
            return self.split(name)
        every = ceil(self.rows(name) / at_most)
        columns = {column: values[::every] for column, values in self.datasets[name].items()}
        some = self._tokenize(name, columns, self.tokenization)
        self._warn(some)
        return some

    def _add(self, split: TokenizedSplit) -> None:
        self._splits[split.name] = split
        self._warn(split)

    def _warn(self, split: TokenizedSplit) -> None:
        """Say what the limits cut off a split: once of a kind, for the first split where it is much."""
        for look in tuple(self._unsaid):
            line = look(split.cuts)
            if line is not None and (look is not of_nothing or is_training_split(split.name)):
                self._unsaid.remove(look)
                say(f"warning: {split.name}: {line}")

    def tokenize_ahead(self, name: str) -> None:
        """Tokenize a split beside other work, so that an epoch need not wait for it."""
        if name in self._splits or self._coming is not None:
            return
        # With a tokenizer of its own: they don't bear two threads.
        tokenization = replace(self.tokenization, check=self._check_open)
        self._coming = self._thread.submit(self._tokenize, name, self.datasets[name], tokenization)

    def check_stored(self, names: Iterable[str], source: str) -> None:
        """Raise UserError, naming the file `source`, where stored log-probabilities are not for this tokenizer."""
        for name in names:
            if TOKENS in self.datasets[name] and LOGITS in self.datasets[name]:
                try:
                    self.split(name)
                except UserError as error:
                    raise UserError(f"{source}: {error}") from None

    def _tokenize(self, name: str, columns: Columns, tokenization: Tokenization) -> TokenizedSplit:
        texts = columns[TEXT]
        new = list(dict.fromkeys(text for text in texts if text not in self._input_of_text))
        known = len(self._input_of_text)
        self._input_of_text.update((text, known + i) for i, text in enumerate(new))
        if new:
            encoded = tokenization.encode_inputs(new)
            self._inputs = Ragged.concatenate([self._inputs, encoded.tokens])
            self._whole_inputs = np.concatenate([self._whole_inputs, encoded.whole])
        input_of_row = np.fromiter((self._input_of_text[text] for text in texts), dtype=np.int64, count=len(texts))
        labeled = first_references(columns.get(TARGET, ()))
        cuts = Cuts(
            Lengths.of(self._whole_inputs[input_of_row], tokenization.max_input_length),
            truncation_side=tokenization.truncation_side,
            special_token=tokenization.special_token_in([*new, *labeled]),
        )
        if TARGET not in columns:
            return TokenizedSplit(name, self._inputs, input_of_row, None, cuts)
        encoded = tokenization.encode_labels(labeled)
        targets = Lengths.of(encoded.whole, tokenization.max_labels_length)
        cuts = replace(cuts, targets=targets, n_empty=encoded.n_empty)
        teacher = self._stored(name, columns, encoded.tokens)
        labels = encoded.tokens
        if FINISH_REASON in columns and teacher is None:
            is_cut_off = np.fromiter((reason == LENGTH for reason in columns[FINISH_REASON]), dtype=bool)
            labels = labels.without_last(is_cut_off & (labels.lengths > 1))
        return TokenizedSplit(name, self._inputs, input_of_row, labels, cuts, teacher)

    def _stored(self, name: str, columns: Columns, labels: Ragged) -> StoredRows | None:
        """What the split stores of a teacher, if it does. Raises UserError if it was made for another tokenizer."""
        if TOKENS not in columns or LOGITS not in columns:
            return None
        place = f"split '{name}'"
        if not self.tokenization.is_encoder_decoder and self.tokenization.separator != " ":
            raise UserError(
                f"{place}: its stored tokens are those of targets behind a space, but --task_prompt "
                f"{shown(self.tokenization.task_prompt)} ends in another way"
            )
        stored = StoredRows.of(columns[TOKENS], columns[LOGITS], place)
        stored.check(len(self.tokenization.tokenizer), place)
        expected = np.minimum(stored.n_positions(), self.tokenization.max_labels_length)
        if (expected != labels.lengths).any():
            row = int((expected != labels.lengths).argmax())
            raise UserError(
                f"{place}, row {row}: '{TOKENS}' has {stored.n_positions()[row]} positions, but the student's "
                f"tokenizer makes {labels.lengths[row]} labels of the target; prepare the data for this student"
            )
        return stored


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; a GPU takes it from pinned memory while other work goes on."""
    source = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return source.to(device, non_blocking=True)


def pad_sequences(sequences: Sequence[np.ndarray], value: int, *, on_the_left: bool) -> tuple[Tensor, Tensor]:
    """Sequences of unequal length as one (B, L) tensor of int64 filled up with `value`, and its (B, L) 0/1 mask."""
    longest = max(len(sequence) for sequence in sequences)
    padded = np.full((len(sequences), longest), value, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if on_the_left else slice(0, len(sequence))
        padded[row, place] = sequence
        mask[row, place] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)


def epoch_order(n_rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """All row numbers in uniformly random order, so that every update is a random sample of the split.

    Follows from (seed, epoch) alone: a resumed or second process finds the same order.
    """
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def least_padding(inputs: np.ndarray, labels: np.ndarray, pass_tokens: int) -> list[np.ndarray]:
    """Row numbers in parts, rows sorted by length, so that all parts together cost the least.

    inputs, labels: (B,) tokens. A part costs its padded tokens, rows × (longest input + longest labels), and as much as
    `pass_tokens` tokens besides (for launching kernels, and for gradients as large as the weights).
    """
    order = np.argsort(inputs + labels, kind="stable")
    inputs, labels = inputs[order], labels[order]
    least, starts = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        # From each possible first row of a part that ends here to the end:
        longest = sum(np.maximum.accumulate(each[end - 1 :: -1])[::-1] for each in (inputs[:end], labels[:end]))
        costs = least[:end] + np.arange(end, 0, -1) * longest + pass_tokens
        starts[end] = costs.argmin()
        least[end] = costs[starts[end]]
    parts, end = [], len(order)
    while end:
        parts.append(order[starts[end] : end])
        end = starts[end]
    return parts[::-1]


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Row numbers by falling length (little padding; memory runs out in the first batch or never)."""
    return np.argsort(-lengths, kind="stable")


def chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of `size` rows, the last one possibly shorter."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
