"""Datasets as tokens, tokenized once."""

from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from threading import Event

import numpy as np

from src.config.console import say
from src.config.constants import FINISH_REASON, LENGTH, TARGET, TEXT
from src.config.errors import UserError
from src.config.parsing import shown
from src.data.schema import Columns, Datasets, is_training_split
from src.data.soft_targets import LOGITS, TOKENS, StoredRows
from src.data.text_hashes import number_by_appearance, text_hashes
from src.tokens.preprocessing import Preprocessor
from src.tokens.ragged import Encoded, Ragged
from src.tokens.token_cache import NO_CACHE, DistinctTexts, TokenCache, some
from src.tokens.truncation import Cuts, Lengths, cut_warnings


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as tokens. Rows with equal text share one input: row i reads `inputs[input_of_row[i]]`.

    cuts: what the maximum lengths have cut off. teacher: a teacher's stored tokens at the positions of the labels
    before truncation.
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

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of input and labels together, per row."""
        return self.input_lengths + (0 if self.labels is None else self.labels.lengths)


class TokenizedDatasets:
    """The splits of a dataset as tokens: each split is tokenized once, at its first use or ahead of it.

    Inputs are tokenized once for all splits that have no others: `train_0 … train_{K-1}` repeat the same ones. If a row
    has several references, the first is the label. A target whose `finish_reason` is "length" was cut off: its labels
    have no EOS.
    """

    def __init__(self, datasets: Datasets, preprocessor: Preprocessor, cache: TokenCache = NO_CACHE) -> None:
        self.datasets = datasets
        self.preprocessor = preprocessor
        self.cache = cache
        self._splits: dict[str, TokenizedSplit] = {}
        self._inputs: list[DistinctTexts] = []
        self._warned: set[str] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")
        self._coming: Future[TokenizedSplit] | None = None
        self._closed = Event()

    def close(self) -> None:
        """Stop tokenizing ahead; otherwise the process would wait for it."""
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
        """The split's tokens; waits for any split that is being tokenized ahead."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._add(coming.result())
        if name not in self._splits:
            self._add(self._tokenize(name, self.datasets[name], self.preprocessor))
        return self._splits[name]

    def glimpse(self, name: str, at_most: int) -> TokenizedSplit:
        """The split's tokens; if it has more than `at_most` rows, those of evenly spaced rows."""
        if name in self._splits or self.rows(name) <= at_most:
            return self.split(name)
        every = ceil(self.rows(name) / at_most)
        columns = {column: values[::every] for column, values in self.datasets[name].items()}
        some = self._tokenize(name, columns, self.preprocessor)
        self._warn(some)
        return some

    def _add(self, split: TokenizedSplit) -> None:
        self._splits[split.name] = split
        self._warn(split)

    def _warn(self, split: TokenizedSplit) -> None:
        """Print each kind of warning once, for the first split that has it."""
        for kind, warning in cut_warnings(split.cuts).items():
            if kind not in self._warned and (kind != "empty targets" or is_training_split(split.name)):
                self._warned.add(kind)
                say(f"warning: {split.name}: {warning}")

    def tokenize_ahead(self, name: str) -> None:
        """Start to tokenize a split in a thread, so that an epoch need not wait for it."""
        if name in self._splits or self._coming is not None:
            return
        # `replace` copies the tokenizer: two threads cannot use the same one.
        preprocessor = replace(self.preprocessor, check=self._check_open)
        self._coming = self._thread.submit(self._tokenize, name, self.datasets[name], preprocessor)

    def check_stored(self, names: Iterable[str], source: str) -> None:
        """Raise UserError, naming the file `source`, if stored log-probabilities were made for another tokenizer."""
        for name in names:
            if TOKENS in self.datasets[name] and LOGITS in self.datasets[name]:
                try:
                    self.split(name)
                except UserError as error:
                    raise UserError(f"{source}: {error}") from None

    def _tokenize(self, name: str, columns: Columns, preprocessor: Preprocessor) -> TokenizedSplit:
        inputs, input_of_row = self._encode_inputs(columns[TEXT], preprocessor)
        cuts = Cuts(
            Lengths.of(inputs.whole[input_of_row], preprocessor.max_input_length),
            truncation_side=preprocessor.truncation_side,
            special_token=inputs.special_token,
        )
        if TARGET not in columns:
            return TokenizedSplit(name, inputs.tokens, input_of_row, None, cuts)
        encoded = self.cache.encode(preprocessor, columns[TARGET], labels=True)
        targets = Lengths.of(encoded.whole, preprocessor.max_labels_length)
        special_token = inputs.special_token or encoded.special_token
        cuts = replace(cuts, targets=targets, n_empty=encoded.n_empty, special_token=special_token)
        teacher = self._stored(name, columns, encoded.tokens)
        labels = encoded.tokens
        if FINISH_REASON in columns and teacher is None:
            is_cut_off = np.fromiter((reason == LENGTH for reason in columns[FINISH_REASON]), dtype=bool)
            labels = labels.without_last(is_cut_off & (labels.lengths > 1))
        return TokenizedSplit(name, inputs.tokens, input_of_row, labels, cuts, teacher)

    def _encode_inputs(self, texts: Sequence[str], preprocessor: Preprocessor) -> tuple[Encoded, np.ndarray]:
        """The tokens of a column's different texts, and the number of each row's text among them."""
        hashes = text_hashes(texts)
        for known in self._inputs:
            if (numbers := known.numbers(hashes)) is not None:
                return known.encoded, numbers
        input_of_row, first_rows = number_by_appearance(hashes)
        distinct = hashes[first_rows]
        encoded = self.cache.encode(preprocessor, some(texts, first_rows), labels=False, hashes=distinct)
        self._inputs.append(DistinctTexts.of(encoded, distinct))
        return encoded, input_of_row.astype(np.int32)

    def _stored(self, name: str, columns: Columns, labels: Ragged) -> StoredRows | None:
        """The split's stored tokens of a teacher, or None. Raises UserError if they were made for another tokenizer."""
        if TOKENS not in columns or LOGITS not in columns:
            return None
        place = f"split '{name}'"
        if not self.preprocessor.targets_follow_space:
            raise UserError(
                f"{place}: its stored tokens are of targets after a space, but --task_prompt "
                f"{shown(self.preprocessor.task_prompt)} does not end with a word or a space; give another prompt"
            )
        stored = StoredRows.of(columns[TOKENS], columns[LOGITS], place)
        stored.check(len(self.preprocessor.tokenizer), place)
        expected = np.minimum(stored.n_positions(), self.preprocessor.max_labels_length)
        if (expected != labels.lengths).any():
            row = int((expected != labels.lengths).argmax())
            raise UserError(
                f"{place}, row {row}: '{TOKENS}' has {stored.n_positions()[row]} positions, but the student's "
                f"tokenizer makes {labels.lengths[row]} labels of the target; prepare the data for this student"
            )
        return stored
