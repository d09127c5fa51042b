"""Grids: a flag that takes one value may have a list of values in a plan; every combination is a run."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from src.config.errors import UserError
from src.config.parsing import is_list
from src.config.scripts import ARGUMENTS

SHORT = {"learning_rate": "lr", "experiment_config_key": ""}  # of a flag's name, in the names of folders
ALWAYS_NAMED = ("learning_rate",)  # in a run's folder, also without a grid


@dataclass(frozen=True)
class Point:
    """One combination: the flags of its runs, and those that its folder names."""

    flags: dict[str, Any]
    chosen: tuple[tuple[str, str], ...]


def combinations(script: str, flags: Mapping[str, Any], place: str) -> Iterator[Point]:
    """Every combination of the values of flags that have a list of them but take one."""
    takes_list = {each.name for each in fields(ARGUMENTS[script]) if is_list(each.type)}
    grid = {name: value for name, value in flags.items() if isinstance(value, list) and name not in takes_list}
    for name, values in grid.items():
        if not values or not all(isinstance(each, str) for each in values):
            raise UserError(f"{place}: {name}: must be one value or a list of values")
    for chosen in product(*grid.values()):
        point = dict(zip(grid, map(str, chosen), strict=True))
        named = {name: str(flags[name]) for name in ALWAYS_NAMED if name in flags and name not in grid}
        yield Point({**flags, **point}, tuple({**named, **point}.items()))


def folder_part(flag: str, value: str) -> str:
    """A flag's value as part of a folder's name, such as lr0.003."""
    return f"{SHORT.get(flag, flag)}{file_name(value)}"


def file_name(text: str) -> str:
    """The text with everything but letters, digits, '.', '_' and '-' replaced by '_'."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_.") or "_"
