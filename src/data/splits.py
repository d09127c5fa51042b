"""Choose the rows of each split: pure functions from datasets to datasets.

Samples come from `numpy.random.RandomState`, whose stream numpy has frozen: a seed draws the same rows on every
machine and version, and the rows that the published suite draws.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.config.constants import DEV, DEV_PPL, FT, TARGET, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.data.arrow_columns import take
from src.data.references import Target, references_of
from src.data.schema import Columns, Datasets, is_training_split
from src.data.text_hashes import text_hashes

logger = logging.getLogger(__name__)

SPLIT_ORDER = (TRAIN, DEV, TEST, UNLABELED, FT, DEV_PPL)
DEBUG_TRAIN_ROWS, DEBUG_ROWS = 32, 16


@dataclass(frozen=True)
class SplitSizes:
    """The number of rows wanted in each split. None means all rows; for `dev_ppl`, none."""

    train: int | None = None
    dev: int | None = None
    test: int | None = None
    unlabeled: int | None = None
    dev_ppl: int | None = None


def n_rows(columns: Columns) -> int:
    """The number of rows of a split."""
    return len(next(iter(columns.values()), ()))


def n_words(text: str) -> int:
    """The number of words of a text, separated by white space."""
    return len(text.split())


def take_rows(columns: Columns, rows: Sequence[int] | np.ndarray) -> Columns:
    """The rows with these numbers, in this order, of every column."""
    return {name: take(values, rows) for name, values in columns.items()}


def first_rows(datasets: Datasets, count: int | None) -> Datasets:
    """The first rows of every split; all of them for None."""
    if count is None:
        return datasets
    return {split: {name: c[:count] for name, c in columns.items()} for split, columns in datasets.items()}


def keep_rows(columns: Columns, keep: Callable[[str, Any], bool]) -> Columns:
    """The rows whose text and target (the text again where the split has no target) satisfy `keep`."""
    texts = columns[TEXT]
    is_kept = map(keep, texts, columns.get(TARGET) or texts)
    return take_rows(columns, np.flatnonzero(np.fromiter(is_kept, dtype=bool, count=len(texts))))


def sample_rows(columns: Columns, size: int, *, seed: int) -> tuple[Columns, Columns]:
    """Draw `size` rows without replacement, in random order; also returns the rows left, in their old order."""
    order = np.random.RandomState(seed).permutation(n_rows(columns))
    return take_rows(columns, order[:size]), take_rows(columns, np.sort(order[size:]))


def filter_by_words(datasets: Datasets, max_text: int, max_target: int, source: str) -> Datasets:
    """Drop the rows whose text or target (any of its references) has more words; `unlabeled` has texts alone.

    Raises UserError if a split has no row left.
    """
    kept = {}
    for split, columns in datasets.items():
        most = math.inf if split == UNLABELED else max_target
        kept[split] = keep_rows(columns, functools.partial(_is_short, max_text=max_text, max_target=most))
        if not n_rows(kept[split]):
            raise UserError(
                f"{source}: split '{split}': no row has at most {max_text} words of text and {max_target} of target "
                "(--filter_by_length with --max_input_length and --max_labels_length, in words)"
            )
    return kept


def _is_short(text: str, target: Target | None, *, max_text: float, max_target: float) -> bool:
    return n_words(text) <= max_text and all(n_words(each) <= max_target for each in references_of(target))


def sample_train(datasets: Datasets, size: int | None, *, rest_to_unlabeled: bool, seed: int) -> Datasets:
    """Sample `train`; the rows left become `unlabeled` if that is wanted and there is no such split yet."""
    train, rest = _sample(datasets[TRAIN], size, split=TRAIN, seed=seed)
    result = {**datasets, TRAIN: train}
    if rest_to_unlabeled and UNLABELED not in datasets and n_rows(rest):
        result[UNLABELED] = rest
    return result


def sample_split(datasets: Datasets, split: str, size: int | None, *, seed: int) -> Datasets:
    """Sample one split to `size` rows, if it is there."""
    if split not in datasets:
        return datasets
    return {**datasets, split: _sample(datasets[split], size, split=split, seed=seed)[0]}


def sample_dev(datasets: Datasets, size: int | None, ppl_size: int | None, *, seed: int) -> Datasets:
    """Draw `dev` and `dev_ppl` from one sample of max(size, ppl_size) dev rows.

    Without `ppl_size` no `dev_ppl` is made (one that the data brought along stays).
    """
    if DEV not in datasets:
        return datasets
    pool_size = None if size is None else max(size, ppl_size or 0)
    pool, _ = _sample(datasets[DEV], pool_size, split=DEV, seed=seed)
    result = {**datasets, DEV: _sample(pool, size, split=None, seed=seed)[0]}
    if ppl_size is not None:
        result[DEV_PPL] = _sample(pool, ppl_size, split=DEV_PPL if pool_size is None else None, seed=seed)[0]
    return result


def add_ft(datasets: Datasets, how: str, source: str) -> Datasets:
    """Make `ft`: the rows of `train` ("full"), the data's own `ft` rows whose text is in `train` ("filter"), or its
    own `ft` ("split"). Raises UserError where the data has none of its own, or none of them is in `train`.
    """
    if how == "full":
        return {**datasets, FT: datasets[TRAIN]}
    if FT not in datasets:
        raise UserError(f"{source}: --add_ft_split {how} needs a split '{FT}' in the data; 'full' takes the train rows")
    if how == "split":
        return datasets
    is_in_train = np.isin(text_hashes(datasets[FT][TEXT]), text_hashes(datasets[TRAIN][TEXT]))
    own = take_rows(datasets[FT], np.flatnonzero(is_in_train))
    if not n_rows(own):
        raise UserError(f"{source}: --add_ft_split filter: no text of split '{FT}' is in '{TRAIN}'")
    return {**datasets, FT: own}


def without_splits(datasets: Datasets, *splits: str) -> Datasets:
    """The datasets without these splits."""
    return {split: columns for split, columns in datasets.items() if split not in splits}


def in_order(datasets: Datasets) -> Datasets:
    """The splits in the order of SPLIT_ORDER, then all others."""
    first = [split for split in SPLIT_ORDER if split in datasets]
    return {split: datasets[split] for split in (*first, *(other for other in datasets if other not in first))}


def draw_shares(columns: Columns, sizes: dict[str, int], *, seed: int, source: str) -> Datasets:
    """Draw the named splits of a corpus one after another; the last gets all rows that are left.

    Too few rows for the sizes before the last: the rows are shared in the proportion of the sizes, with a warning.
    Raises UserError if there is not a row for each.
    """
    *first, last = sizes
    left = n_rows(columns)
    if left < len(sizes):
        raise UserError(f"{source}: {left} rows that can be used are too few for the splits {list(sizes)}")
    have = wanted = sum(sizes.values())
    if left <= wanted - sizes[last]:
        have = left
        logger.warning("%s: only %d rows for splits of %s: they are shared in proportion", source, left, sizes)
    result = {}
    for i, split in enumerate(first, start=1):
        most = n_rows(columns) - len(sizes) + i  # a row for each split to come
        result[split], columns = sample_rows(columns, min(max(1, sizes[split] * have // wanted), most), seed=seed)
    return {**result, last: columns}


def debug_rows(datasets: Datasets, *, seed: int) -> Datasets:
    """At most 32 sampled rows of each training split and 16 of every other one."""
    sizes = {split: DEBUG_TRAIN_ROWS if is_training_split(split) else DEBUG_ROWS for split in datasets}
    return {split: _sample(rows, sizes[split], split=None, seed=seed)[0] for split, rows in datasets.items()}


def _sample(columns: Columns, size: int | None, *, split: str | None, seed: int) -> tuple[Columns, Columns]:
    """As `sample_rows`, but all rows as they are if there are not more; with a warning if `split` is named."""
    rows = n_rows(columns)
    if size is not None and size < rows:
        return sample_rows(columns, size, seed=seed)
    if size is not None and size > rows and split is not None:
        logger.warning("split '%s': %d rows asked for, there are %d: all are taken", split, size, rows)
    return columns, take_rows(columns, [])
