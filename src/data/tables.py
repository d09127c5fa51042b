"""Read a script's data, and split a table: the splits dev and test that it lacks are drawn from train."""

from collections.abc import Mapping

import numpy as np

from src.config.console import say
from src.config.constants import DEV, FT, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.config.flags.base import DataArguments
from src.data.formats import read_datasets
from src.data.schema import Columns, Datasets, check_strings
from src.data.splits import first_rows, n_rows, take_rows, without_splits
from src.data.text_hashes import number_by_appearance, text_hashes

SIZE_FLAGS = {DEV: "--val_size", TEST: "--test_size"}


def read_data(config: DataArguments, source: str, *, max_rows: int | None = None) -> Datasets:
    """Read a dataset with the columns of the flags, and draw the splits that --val_size and --test_size ask for.

    Keeps the first `max_rows` rows of each split, or all of them. Equal files, sizes and --seed give equal splits in
    every script. Raises UserError with the file and the place.
    """
    sizes = {split: size for split, size in config.split_sizes.items() if size is not None}
    datasets = read_datasets(source, columns=config.columns, max_rows=None if sizes else max_rows)
    for split in sizes:
        if split in datasets:
            say(f"{source}: has a split '{split}'; {SIZE_FLAGS[split]} is not used")
    lacking = {split: size for split, size in sizes.items() if split not in datasets}
    return first_rows(draw_splits(datasets, lacking, seed=config.seed, source=source), max_rows)


def rows_of(size: float, n_total: int) -> int:
    """A size as a number of rows: of a share below 1 that of `n_total`, at least one."""
    return int(size) if size >= 1 else max(1, round(size * n_total))


def draw_splits(datasets: Datasets, sizes: Mapping[str, float], *, seed: int, source: str) -> Datasets:
    """Draw the splits of `sizes` (rows, or shares below 1) from `train`, and say so; rows keep their order.

    Rows of equal text go to the same split, and leave `ft` and `unlabeled` too. A split may therefore get a few rows
    less than asked for, never more.
    Raises UserError for sizes that leave a split empty, `train` included.
    """
    if not sizes:
        return datasets
    flags = " and ".join(SIZE_FLAGS[split] for split in sizes)
    if TRAIN not in datasets:
        raise UserError(f"{source}: {flags}: no split '{TRAIN}' to draw from, only {list(datasets)}")
    table = datasets[TRAIN]
    check_strings(table, TEXT, f"{source}: split '{TRAIN}'")
    hashes = text_hashes(table[TEXT])
    input_of_row, first_of_input = number_by_appearance(hashes)
    left = {split: rows_of(size, n_rows(table)) for split, size in sizes.items()}
    names, split_of_input = (TRAIN, *sizes), np.zeros(len(first_of_input), dtype=np.int8)
    times = np.bincount(input_of_row)
    for number in np.random.RandomState(seed).permutation(len(first_of_input)):
        split = next((split for split, count in left.items() if times[number] <= count), TRAIN)
        split_of_input[number] = names.index(split)
        if split != TRAIN:
            left[split] -= times[number]
        if not any(left.values()):
            break
    split_of_row = split_of_input[input_of_row]
    drawn = {split: np.flatnonzero(split_of_row == i) for i, split in enumerate(names)}
    empty = [split for split, rows in drawn.items() if not len(rows)]
    if empty:
        raise UserError(
            f"{source}: {flags}: no row is left for '{empty[0]}' of {n_rows(table)} ({len(first_of_input)} different "
            "inputs)"
        )
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in drawn.items())
    same = " ".join(f"{SIZE_FLAGS[split]} {size if size < 1 else int(size)}" for split, size in sizes.items())
    say(
        f"{source}: {n_rows(table):,} rows become {counts}; equal inputs stay together. Other scripts draw the same "
        f"from these rows with {same} --seed {seed}"
    )
    held_out = hashes[split_of_row > 0]
    others = {split: _without(datasets[split], held_out) for split in (FT, UNLABELED) if split in datasets}
    result = datasets | others | {split: take_rows(table, rows) for split, rows in drawn.items()}
    return without_splits(result, *(split for split in others if not n_rows(others[split])))


def _without(columns: Columns, hashes: np.ndarray) -> Columns:
    if TEXT not in columns:
        return columns
    return take_rows(columns, np.flatnonzero(~np.isin(text_hashes(columns[TEXT]), hashes)))
