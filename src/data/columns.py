"""Give the columns that flags name (`article`, `translation.en`) the names that the suite uses: text, target and id."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.config.console import say
from src.config.constants import ID, TEXT
from src.config.errors import UserError
from src.config.parsing import nearest
from src.data.schema import Columns, Datasets, column_names

logger = logging.getLogger(__name__)

PREPARED = (".json", ".arrow")  # forms of the dataset files that the suite writes


def rename_columns(datasets: Datasets, names: Mapping[str, str], source: str) -> Datasets:
    """Rename columns. `names` gives the user's name of a column by ours.

    A name is that of a column, or else of parts of a nested one, joined by dots; of a nested column the other parts
    stay. Every split must have the text, at least one each of the others. A dataset file that has our names and none
    of the user's was written by this suite and stays as it is. Raises UserError that names the flag and the columns.
    """
    names = {ours: theirs for ours, theirs in names.items() if ours != theirs or ours == ID}
    found = {split: _find_all(columns, names) for split, columns in datasets.items()}
    renamed = {ours: theirs for ours, theirs in names.items() if ours != theirs}
    if renamed and _is_prepared(datasets, names, renamed, found, source):
        say(f"{source}: has {_joined(renamed)} already; {_joined(renamed.values())} are not looked for")
        return datasets
    for ours, theirs in names.items():
        lacking = [split for split, columns in found.items() if ours not in columns]
        if lacking and (ours == TEXT or len(lacking) == len(datasets)):
            there = column_names(datasets[lacking[0]])
            raise UserError(
                f"{source}: split '{lacking[0]}': column '{theirs}' (--{ours}_column) is missing; it has {there}; "
                f"nearest: '{nearest(theirs, there)}'"
            )
        replaced = [split for split, columns in datasets.items() if ours in columns and ours in found[split]]
        if replaced and ours not in names.values():
            logger.warning("%s: column '%s' is left out: --%s_column is '%s'", source, ours, ours, theirs)
    used = set(names.values())
    return {
        split: found[split] | {name: c for name, c in columns.items() if name not in used and name not in found[split]}
        for split, columns in datasets.items()
    }


def _is_prepared(
    datasets: Datasets,
    names: Mapping[str, str],
    renamed: Mapping[str, str],
    found: Mapping[str, Columns],
    source: str,
) -> bool:
    has_ours = all(any(ours in columns for columns in datasets.values()) for ours in names)
    has_theirs = any(ours in columns for columns in found.values() for ours in renamed)
    return Path(source).suffix in PREPARED and has_ours and not has_theirs


def _find_all(columns: Columns, names: Mapping[str, str]) -> Columns:
    """The columns that are there, under our names."""
    pairs = ((ours, _find(columns, theirs)) for ours, theirs in names.items())
    return {ours: values for ours, values in pairs if values is not None}


def _find(columns: Columns, name: str) -> Any:
    """The values of a column or of parts of a nested one; None if no row has them."""
    column, *path = name.split(".")
    if name in columns or column not in columns or not path:
        return columns.get(name)
    values = [_part(value, path) for value in columns[column]]
    return None if all(value is None for value in values) else values


def _part(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _joined(names: Any) -> str:
    return ", ".join(names)
