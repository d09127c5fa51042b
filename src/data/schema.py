"""Checks of a dataset: its shape, columns, rows and training splits."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.config.constants import TARGET, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.config.parsing import shown
from src.data.arrow_columns import ArrowColumn
from src.data.references import has_several, references_of

logger = logging.getLogger(__name__)

Columns = dict[str, Any]  # columns are lists, or ArrowColumns, which read like lists
Datasets = dict[str, Columns]

TRAIN_I = re.compile(r"train_(\d+)")


def check_shape(datasets: Any, source: str) -> None:
    """Refuse all but `{split: {column: [...]}}` with columns of one length in each split."""
    if not isinstance(datasets, dict) or not datasets:
        raise UserError(f"{source}: expected {{split: {{column: [...]}}}}, found {kind(datasets)}")
    for split, columns in datasets.items():
        if not isinstance(columns, dict) or not columns:
            raise UserError(f"{source}: split '{split}': expected an object of columns, found {kind(columns)}")
        for name, values in columns.items():
            if not isinstance(values, list | ArrowColumn):
                raise UserError(f"{source}: split '{split}', column '{name}': expected a list, found {kind(values)}")
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            rows = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(f"{source}: split '{split}': columns must be equally long, but rows are: {rows}")


def check_datasets(datasets: Datasets, source: str, *, need_target: bool = True) -> None:
    """Refuse what no stage can use: a split without rows or `text`, texts that are not strings, gaps in `train_<i>`.

    `target` is needed in every split but `unlabeled`, or in none with `need_target=False`. It may hold lists of texts.
    Raises UserError naming the file, the split, the column and the row (rows are counted from 0).
    """
    for split, columns in datasets.items():
        place = f"{source}: split '{split}'"
        check_strings(columns, TEXT, place)
        if split != UNLABELED and (need_target or TARGET in columns):
            check_targets(columns, place)
    rotation = _rotation(datasets)
    for i, split in enumerate(rotation):
        if split != f"{TRAIN}_{i}":
            raise UserError(
                f"{source}: split {shown(split)} where '{TRAIN}_{i}' should be: the splits {TRAIN}_0, {TRAIN}_1 … must "
                "be numbered without gaps"
            )


def check_trainable(datasets: Datasets, source: str) -> None:
    """As `check_datasets`, and there is `train` or `train_0 …` to train on."""
    if TRAIN not in datasets and not _rotation(datasets):
        raise UserError(f"{source}: no training split ('{TRAIN}', or '{TRAIN}_0' …), only {list(datasets)}")
    check_datasets(datasets, source)


def training_splits(datasets: Datasets) -> list[str]:
    """The training splits in the order of rotation: `train_0 …` if there are any, otherwise `train` (or none)."""
    rotation = _rotation(datasets)
    if rotation and TRAIN in datasets:
        logger.warning("split '%s' is ignored: %s … %s are trained on", TRAIN, rotation[0], rotation[-1])
    return rotation or [split for split in datasets if split == TRAIN]


def some_texts(datasets: Datasets, *, per_split: int = 10) -> list[str]:
    """The first inputs and targets of every split, to try something on."""
    columns = [split.get(name, ())[:per_split] for split in datasets.values() for name in (TEXT, TARGET)]
    return [text for column in columns for row in column for text in references_of(row)]


def is_training_split(split: str) -> bool:
    """Whether a split is `train` or `train_<i>`."""
    return split == TRAIN or TRAIN_I.fullmatch(split) is not None


def _rotation(datasets: Datasets) -> list[str]:
    return sorted(filter(TRAIN_I.fullmatch, datasets), key=lambda split: (len(split), split))


def check_strings(columns: Columns, name: str, place: str) -> None:
    """Refuse a split whose column `name` is missing, has no rows or a value that is no string; `place` names it."""
    if name not in columns:
        other = f"; --{name}_column names another" if name in (TEXT, TARGET) else ""
        raise UserError(f"{place}: column '{name}' is missing; it has {column_names(columns)}{other}")
    if not columns[name]:
        raise UserError(f"{place}: no rows")
    if not getattr(columns[name], "is_text", False) and set(map(type, columns[name])) != {str}:
        row = next(i for i, value in enumerate(columns[name]) if not isinstance(value, str))
        raise UserError(f"{place}, column '{name}', row {row}: expected text, found {kind(columns[name][row])}")


def check_targets(columns: Columns, place: str) -> None:
    """As `check_strings` of `target`, whose rows may hold lists of texts too: several references of one input."""
    if not has_several(columns.get(TARGET, ())):
        check_strings(columns, TARGET, place)
        return
    for row, target in enumerate(columns[TARGET]):
        here = f"{place}, column '{TARGET}', row {row}"
        if target == []:
            raise UserError(f"{here}: expected text or a list of texts, found an empty list")
        for text in target if isinstance(target, list) else [target]:
            if not isinstance(text, str):
                found = f"{kind(text)} in a list" if isinstance(target, list) else kind(text)
                raise UserError(f"{here}: expected text or a list of texts, found {found}")


def check_unique_names(names: Sequence[str], path: Path) -> None:
    """Refuse a file that has two columns of one name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path}: column '{name}' is there twice; keep one")


def column_names(columns: Columns) -> list[str]:
    """The names of columns for a message; instead of a nested column its parts, as `column.part`."""
    return [part for name, values in columns.items() for part in _parts(name, values)]


def _parts(name: str, values: Sequence[Any]) -> list[str]:
    first = next((value for value in values if value is not None), None)
    if not isinstance(first, dict) or not first:
        return [name]
    return [part for key, value in first.items() for part in _parts(f"{name}.{key}", [value])]


def kind(value: Any) -> str:
    """What a JSON value is, for a message."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    empty = "an empty object" if value == {} else None
    return empty or names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
