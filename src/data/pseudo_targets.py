"""Merge a file of pseudo-targets (PTs) into its dataset, as the splits `train_0 … train_{K-1}`.

A pipeline over columns: rows with PTs -> one row per input with its list of PTs -> one split per PT. A step that
chooses among an input's PTs belongs between the last two. An example's stable name is (its input's text, its place in
that list).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.config.constants import FINISH_REASON, GENERATED, INPUT_HASH, LENGTH, TARGET, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.data.arrow_columns import concatenated, nulls_like, take
from src.data.schema import Columns, Datasets, is_training_split
from src.data.splits import n_rows, take_rows
from src.data.text_hashes import number_by_appearance, text_hashes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The distinct inputs in order of appearance, and the rows of their PTs.

    rows: columns with a row for each PT. order: the numbers of these rows, input by input. input_of: the input of each
    of them; place: which PT of its input it is. first_rows: the first row of each input. counts: per input, the number
    of PTs divided by how often the input occurs in the original data, rounded up.
    """

    rows: Columns
    order: np.ndarray
    input_of: np.ndarray
    place: np.ndarray
    first_rows: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Merge:
    """Which PTs to use, and what to call the two files in messages."""

    use_labeled: bool = True
    use_unlabeled: bool = True
    use_original: bool = True
    use_cut_off: bool = True
    n_per_input: int | None = None
    original_source: str = "the original dataset"
    generations_source: str = "the generations"

    def splits(self) -> list[str]:
        """The splits whose PTs are used."""
        return [TRAIN] * self.use_labeled + [UNLABELED] * self.use_unlabeled


def merge_pseudo_targets(original: Datasets, generations: Datasets, merge: Merge) -> Datasets:
    """The dataset to distill on: `train_0 …` with the i-th PT of every input, and all original splits but `train`.

    With `use_original` every `train_i` starts with the labeled pairs. Of further columns those are kept that all rows
    of `train_i` have: a PT's row has the values of its input's first row.
    Raises UserError if a generated input is not in the original data, or if no input has `n_per_input` PTs.
    """
    if merge.use_original and TRAIN not in original:
        raise UserError(f"{merge.original_source}: no split '{TRAIN}'; without labeled pairs say --use_original False")
    labeled = original[TRAIN] if merge.use_original else None
    splits = selected_splits(generations, merge)
    rows = [rows_with_targets(split, original, generations[split], merge) for split in splits]
    if not merge.use_cut_off:
        rows = [_without_cut_off(columns, merge) for columns in rows]
    sources = [original[split] for split in dict.fromkeys((*splits, *[TRAIN] * merge.use_original))]
    times = np.unique(
        np.concatenate([np.zeros(0, np.uint64), *(text_hashes(original[split][TEXT]) for split in splits)]),
        return_counts=True,
    )
    inputs, n_repeated = group_by_input(concatenate(rows, common_columns([*sources, *rows])), times)
    if n_repeated:
        logger.warning(
            "%d inputs stand more than once: their further pseudo-targets are additional rows of the same splits",
            n_repeated,
        )
    count = targets_per_input(inputs, merge)
    rest = {split: columns for split, columns in original.items() if not is_training_split(split)}
    return rotate(inputs, count, labeled) | rest


def selected_splits(generations: Datasets, merge: Merge) -> list[str]:
    """The splits whose PTs are used, in the order of the generation file; one that is missing there is warned of."""
    wanted = merge.splits()
    found = [split for split in generations if split in wanted]
    if wanted and not found:
        raise UserError(f"{merge.generations_source}: no pseudo-targets of {wanted}, only of {list(generations)}")
    absent = [split for split in wanted if split not in found]
    if absent:
        logger.warning(
            "%s: no pseudo-targets of %s: only those of %s are used", merge.generations_source, absent, found
        )
    return found


def rows_with_targets(split: str, original: Datasets, generated: Columns, merge: Merge) -> Columns:
    """The generated rows of a split with their inputs' columns, which come from the original data if need be.

    A generation file without `text` has the same number of PTs for each original row, in the order of the rows.
    """
    place = f"{merge.generations_source}: split '{split}'"
    if split not in original:
        raise UserError(f"{place} is not in {merge.original_source}, which has {list(original)}")
    if TEXT in generated:
        is_known = np.isin(text_hashes(generated[TEXT]), text_hashes(original[split][TEXT]))
        if not is_known.all():
            row = int(is_known.argmin())
            raise UserError(f"{place}, row {row}: its text is in no row of '{split}' in {merge.original_source}")
        return generated
    _check_hashes(original[split][TEXT], generated, place, merge)
    rows, per_row = n_rows(original[split]), n_rows(generated) // n_rows(original[split])
    if rows * per_row != n_rows(generated):
        raise UserError(
            f"{place}: {n_rows(generated)} pseudo-targets cannot be shared equally by the {rows} rows of "
            f"{merge.original_source}; generate with --add_original_data True, or give the dataset they were made from"
        )
    return take_rows(original[split], np.arange(rows).repeat(per_row)) | generated


def input_hash(text: str) -> str:
    """The placeholder for an input in a generation file without texts."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _check_hashes(texts: Sequence[str], generated: Columns, place: str, merge: Merge) -> None:
    """Raise UserError unless the PTs were written for these texts in this order; warn of a file that cannot tell."""
    if INPUT_HASH not in generated:
        logger.warning(
            "%s has neither texts nor hashes of its inputs: it is taken to be in the order of %s",
            place, merge.original_source,
        )  # fmt: skip
        return
    per_row = max(1, n_rows(generated) // len(texts))
    for row, text in enumerate(texts):
        written_for = generated[INPUT_HASH][row * per_row : (row + 1) * per_row]
        if any(hashed != input_hash(text) for hashed in written_for):
            raise UserError(
                f"{place}: its pseudo-targets were not written for row {row} of '{merge.original_source}'; give the "
                "dataset that they were generated for"
            )


def _without_cut_off(generated: Columns, merge: Merge) -> Columns:
    """The rows whose PTs were not cut off. Raises UserError if the file does not say which were."""
    if FINISH_REASON not in generated:
        raise UserError(
            f"{merge.generations_source}: no column '{FINISH_REASON}' says which pseudo-targets were cut off; "
            "leave --use_cut_off out"
        )
    is_whole = np.fromiter((reason != LENGTH for reason in generated[FINISH_REASON]), dtype=bool)
    return take_rows(generated, np.flatnonzero(is_whole))


def common_columns(parts: Sequence[Columns]) -> list[str]:
    """The columns that all parts have, `text` first, without targets."""
    own = (TEXT, TARGET, GENERATED, INPUT_HASH, FINISH_REASON)
    return [TEXT, *(name for name in parts[0] if name not in own and all(name in part for part in parts))]


def concatenate(parts: Sequence[Columns], names: Sequence[str]) -> Columns:
    """Concatenate the rows of all parts: these columns, `generated`, and `finish_reason` if all parts have it."""
    has_reasons = bool(parts) and all(FINISH_REASON in part for part in parts)
    names = (*names, GENERATED, FINISH_REASON) if has_reasons else (*names, GENERATED)
    return {name: concatenated([part[name] for part in parts]) for name in names}


def group_by_input(rows: Columns, times: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[Inputs, int]:
    """Group rows with equal text; also returns how many inputs occur more than once in the original data.

    times: sorted hashes of texts, and how often each occurs in the original data; None: once each.
    """
    hashes = text_hashes(rows[TEXT])
    numbers, first_rows = number_by_appearance(hashes)
    order = np.argsort(numbers, kind="stable")
    n_targets = np.bincount(numbers, minlength=len(first_rows))
    place = np.arange(len(order)) - (np.cumsum(n_targets) - n_targets)[numbers[order]]
    occurs = np.ones_like(n_targets) if times is None else times[1][np.searchsorted(times[0], hashes[first_rows])]
    return Inputs(rows, order, numbers[order], place, first_rows, -(-n_targets // occurs)), int((occurs > 1).sum())


def targets_per_input(inputs: Inputs, merge: Merge) -> int:
    """How many splits there will be: `n_per_input`, or the most PTs an input has (each time it stands in the data)."""
    most, fewest = int(inputs.counts.max(initial=0)), int(min(inputs.counts, default=0))
    if merge.n_per_input is not None and merge.n_per_input > most:
        raise UserError(
            f"{merge.generations_source}: --n_augmentations_per_example {merge.n_per_input} is more than any input "
            f"has: at most {most}"
        )
    count = most if merge.n_per_input is None else merge.n_per_input
    if fewest < count:
        logger.warning(
            "inputs have %d to %d pseudo-targets: those with fewer than %d are in fewer splits; "
            "--n_augmentations_per_example %d would use equally many of each", fewest, most, count, fewest
        )  # fmt: skip
    return count


def rotate(inputs: Inputs, count: int, labeled: Columns | None) -> Datasets:
    """`train_i` for i < count: the labeled pairs, if any, then every input that has an i-th PT with that PT.

    An input that stands m times in the data has m times as many PTs, m in each split. Without any PTs there is one
    split, the labeled pairs.
    """
    most = int(inputs.counts.max(initial=1))
    columns = {name: values for name, values in inputs.rows.items() if name not in (GENERATED, FINISH_REASON)}
    splits: Datasets = {}
    for i in range(max(count, 1)):
        chosen = np.flatnonzero(inputs.place % most == i)
        split = take_rows(columns, inputs.first_rows[inputs.input_of[chosen]])
        split[TARGET] = take(inputs.rows[GENERATED], inputs.order[chosen])
        if labeled is not None:
            split = {name: concatenated([labeled[name], values]) for name, values in split.items()}
        if FINISH_REASON in inputs.rows:
            reasons = take(inputs.rows[FINISH_REASON], inputs.order[chosen])
            split[FINISH_REASON] = concatenated([nulls_like(reasons, n_rows(split) - len(reasons)), reasons])
        splits[f"{TRAIN}_{i}"] = split
    return splits
