"""Requests for a corpus, and reading of its raw files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from src.config.constants import DEV, TRAIN
from src.config.errors import UserError
from src.data.formats import read_datasets, rename_splits
from src.data.hub import load_hub
from src.data.schema import Datasets, check_strings
from src.data.splits import SplitSizes

logger = logging.getLogger(__name__)

CORPUS_SEED = 42  # of the draws that belong to a corpus' definition, whatever --seed says


@dataclass(frozen=True)
class Request:
    """What is asked of a corpus: where its raw files lie (None: its usual place), and, if it makes its rows, how many
    of each split (None: as it likes) and from which seed.
    """

    path: str | None = None
    sizes: SplitSizes = SplitSizes()
    seed: int = 42


Corpus = Callable[[Request], Datasets]


def read_raw(
    request: Request,
    hub_name: str,
    columns: tuple[str, ...],
    *,
    splits: tuple[str, ...] = ("train", "validation", "test"),
) -> Datasets:
    """The corpus as its publishers have it, from `request.path` or the hub, with `validation` named `dev`."""
    files, names = ", ".join(splits), ", ".join(columns)
    layout = f"a folder with {files} (each .jsonl, .json, .csv or .parquet) of the columns {names}"
    if request.path is not None:
        raw, source = read_datasets(request.path), request.path
    else:
        try:
            raw, source = rename_splits(load_hub(hub_name, splits=splits), hub_name), hub_name
        except UserError as error:
            raise UserError(f"{error}. Or download it and give --dataset_path {layout}") from None
    names_here = [DEV if split == "validation" else split for split in splits]
    if TRAIN not in raw:
        raise UserError(f"{source}: no split '{TRAIN}', only {list(raw)}; expected {layout}")
    absent = [split for split in names_here if split not in raw]
    if absent:
        logger.warning("%s: no %s: the dataset is made without", source, ", ".join(absent))
    raw = {split: raw[split] for split in names_here if split in raw}
    check_columns(raw, columns, source)
    return raw


def check_columns(raw: Datasets, columns: tuple[str, ...], source: str) -> None:
    """Refuse a split without these columns of strings (`answers`, which contains objects, only has to exist)."""
    for split, rows in raw.items():
        missing = [name for name in columns if name not in rows]
        if missing:
            raise UserError(f"{source}: split '{split}': no column {', '.join(missing)}; it has {list(rows)}")
        for name in columns:
            if name != "answers":
                check_strings(rows, name, f"{source}: split '{split}'")
