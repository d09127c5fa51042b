"""Inputs with several references: `target` is then a list of texts instead of one text."""

from collections.abc import Iterable
from typing import Any

from src.config.constants import TARGET

Target = str | list[str]


def references_of(target: Target | None) -> list[str]:
    """The texts of a row's `target`, as a list; empty if there is no target."""
    if target is None:
        return []
    return target if isinstance(target, list) else [target]


def first_references(targets: Iterable[Target]) -> list[str]:
    """The first reference of each row, used as labels if rows are not repeated per reference."""
    return [target[0] if isinstance(target, list) else target for target in targets]


def count_references(targets: Iterable[Target]) -> str:
    """How many references rows have, in sacreBLEU's words: a number, or `var` where rows differ."""
    counts = {len(target) if isinstance(target, list) else 1 for target in targets}
    return "var" if len(counts) > 1 else str(max(counts, default=1))


def has_several(targets: Iterable[Target | None]) -> bool:
    """Whether any target is a list of references."""
    return not getattr(targets, "is_text", False) and list in set(map(type, targets))


def row_for_each_reference(columns: dict[str, Any]) -> dict[str, Any]:
    """A split's columns with a row for each reference of an input, the rows of one input adjacent."""
    if not has_several(columns[TARGET]):
        return columns
    pairs = [(row, text) for row, target in enumerate(columns[TARGET]) for text in references_of(target)]
    repeated = {name: [values[row] for row, _ in pairs] for name, values in columns.items() if name != TARGET}
    return {**columns, **repeated, TARGET: [text for _, text in pairs]}
