"""Datasets from the hub."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from src.config.errors import UserError, one_line
from src.data.arrow_columns import columns_in
from src.data.schema import Datasets

HUB_PREFIX = "hf:"
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer


def load_hub(name: str, *, config: str | None = None, splits: Iterable[str] = ()) -> Datasets:
    """A dataset of the hub, under its own names of splits and columns.

    Repositories that hold a script (`datasets` runs none) are read from their `refs/convert/parquet` revision if
    `splits` names what to look for there. With HF_HUB_OFFLINE=1 only the library's cache is read.
    Raises UserError, within seconds if the hub cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    import datasets

    # HfHubHTTPError's bases: the HTTP client's own error (requests, httpx, httpx2, as the version has it) and OSError.
    failures = (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    if not Path(name).exists():  # `datasets` reads local folders laid out like a repository too
        _check_hub_answers(name)
    try:
        loaded = datasets.load_dataset(name, config)
    except failures as error:
        loaded = None
        reason = one_line(error)
    if loaded is None and splits:
        root = f"hf://datasets/{name}@~parquet"
        try:
            loaded = datasets.load_dataset("parquet", data_files={s: f"{root}/*/{s}/*.parquet" for s in splits})
        except failures as error:
            reason += f"; its parquet revision: {one_line(error)}"
    if loaded is None:
        raise UserError(f"{HUB_PREFIX}{name}: not loaded from the hub: {reason}")
    return {str(split): columns_in(rows.data.table) for split, rows in loaded.items()}


def _check_hub_answers(name: str) -> None:
    """Fail in seconds where the libraries' own retries take minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise UserError(
            f"{HUB_PREFIX}{name}: the hub does not answer ({getattr(error, 'reason', error)}); give a local file or "
            "folder, or set HF_HUB_OFFLINE=1 to use a copy in the cache"
        ) from None
