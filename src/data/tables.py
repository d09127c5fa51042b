"""Read a script's data, and split a table: the splits dev and test that it lacks are drawn from train."""

from collections.abc import Collection, Mapping

import numpy as np

from src.config.console import say
from src.config.constants import DEV, FT, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.config.flags.base import DataArguments
from src.data.formats import read_datasets
from src.data.schema import Columns, Datasets, check_strings
from src.data.splits import first_rows, keep_rows, n_rows, take_rows, without_splits

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
    rows_of_text: dict[str, list[int]] = {}
    for row, text in enumerate(table[TEXT]):
        rows_of_text.setdefault(text, []).append(row)
    left = {split: rows_of(size, n_rows(table)) for split, size in sizes.items()}
    drawn: dict[str, list[int]] = {split: [] for split in (TRAIN, *sizes)}
    groups = list(rows_of_text.values())
    for number in np.random.RandomState(seed).permutation(len(groups)).tolist():
        rows = groups[number]
        split = next((split for split, count in left.items() if len(rows) <= count), TRAIN)
        drawn[split] += rows
        if split != TRAIN:
            left[split] -= len(rows)
    empty = [split for split, rows in drawn.items() if not rows]
    if empty:
        raise UserError(
            f"{source}: {flags}: no row is left for '{empty[0]}' of {n_rows(table)} ({len(groups)} different inputs)"
        )
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in drawn.items())
    same = " ".join(f"{SIZE_FLAGS[split]} {size if size < 1 else int(size)}" for split, size in sizes.items())
    say(
        f"{source}: {n_rows(table):,} rows become {counts}; equal inputs stay together. Other scripts draw the same "
        f"from these rows with {same} --seed {seed}"
    )
    held_out = {table[TEXT][row] for split in sizes for row in drawn[split]}
    others = {split: _without(datasets[split], held_out) for split in (FT, UNLABELED) if split in datasets}
    result = datasets | others | {split: take_rows(table, sorted(rows)) for split, rows in drawn.items()}
    return without_splits(result, *(split for split in others if not n_rows(others[split])))


def _without(columns: Columns, texts: Collection[str]) -> Columns:
    return keep_rows(columns, lambda text, _: text not in texts) if TEXT in columns else columns
