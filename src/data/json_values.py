"""Convert values that JSON cannot represent (NaN, times, …); leave out columns that cannot be converted (bytes).

Everything that is read may be written as JSON, by this run or a later one, so this happens once, at reading.
"""

import logging
import math
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from src.config.constants import GENERATED, TARGET, TEXT, UNLABELED
from src.data.arrow_columns import ArrowColumn
from src.data.schema import Datasets

logger = logging.getLogger(__name__)

PLAIN = {str, int, bool, type(None)}  # types whose values are JSON without a look at them


class NoJsonFormError(Exception):
    """A value that JSON cannot represent; the message is the name of its type."""


def with_json_values(datasets: Datasets, source: str) -> Datasets:
    """Convert values to JSON. A column with a value that JSON cannot represent is left out, with a warning.

    Texts and targets stay as they are: the checks refuse what is no text.
    """
    ready: Datasets = {split: {} for split in datasets}
    left_out: dict[str, str] = {}
    for split, columns in datasets.items():
        for name, values in columns.items():
            is_checked = name in (TEXT, GENERATED) or (name == TARGET and split != UNLABELED)
            stays_in_file = isinstance(values, ArrowColumn) and values.is_json()
            is_ready = is_checked or stays_in_file or set(map(type, values)) <= PLAIN
            try:
                ready[split][name] = values if is_ready else [json_form(each) for each in values]
            except NoJsonFormError as error:
                left_out[name] = str(error)
            except RecursionError:
                left_out[name] = "values nested so deeply"
    for name, found in left_out.items():
        logger.warning("%s: column '%s' is left out: JSON has no form for %s", source, name, found)
    return {split: {name: c for name, c in columns.items() if name not in left_out} for split, columns in ready.items()}


def json_form(value: Any) -> Any:
    """Convert a value of Arrow to JSON: NaN, infinity and missing times to null, times to ISO text.

    Raises NoJsonFormError for bytes and whatever else has none.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float | Decimal):
        is_whole = isinstance(value, Decimal) and value.as_tuple().exponent == 0
        return (int(value) if is_whole else float(value)) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): json_form(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_form(each) for each in value]
    if isinstance(value, UUID):
        return str(value)
    if hasattr(value, "isoformat"):  # also pandas' times, whose missing one is NaT
        text = value.isoformat()
        return None if text == "NaT" else text
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise NoJsonFormError(type(value).__name__)
