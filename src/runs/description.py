"""run.json: the flags, data and versions of a run, and what differs between two runs."""

import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from src import __version__
from src.config.errors import UserError
from src.config.flags.base import REPOSITORY
from src.data.schema import Datasets
from src.data.writers import fingerprint, fingerprint_datasets
from src.storage.json_files import read_json

RUN, SCORES, LOSSES = "run.json", "eval_scores.csv", "train_losses.csv"


SCRIPT = r"\w{1,60}\.py"


NOT_COMPARED = ("output_dir", "resume", "overwrite", "save_state_every_n_minutes", "dry_run", "greater_is_better")


PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "sacrebleu", "rouge_score", "nltk")


NEW, UNFINISHED, FINISHED = "new", "unfinished", "finished"


def data_fingerprint(path: str, datasets: Datasets) -> str:
    """What tells two states of a data set apart: of a file or folder its bytes, of a hub name the rows."""
    return fingerprint(path) if Path(path).exists() else fingerprint_datasets(datasets)


def described(path: Path) -> bytes | None:
    return (path / RUN).read_bytes() if (path / RUN).is_file() else None


def former_run(path: Path) -> dict[str, Any] | None:
    if not (path / RUN).is_file():
        return None
    found = read_json(path / RUN)
    if not isinstance(found, dict) or not _describes_a_run(found):
        raise UserError(f"{path / RUN}: not a description of a run; take another --output_dir or --overwrite True")
    return found


def _describes_a_run(found: dict[str, Any]) -> bool:
    flags, data, scores = (found.get(name) for name in ("flags", "data", "scores"))
    return (
        re.fullmatch(SCRIPT, str(found.get("script"))) is not None
        and found.get("status") in (UNFINISHED, FINISHED)
        and isinstance(flags, dict)
        and isinstance(data, dict)
        and {"dataset_path", "output_dir"} <= flags.keys()
        and isinstance(scores, dict)
        and all(value is None or isinstance(value, int | float) for value in scores.values())
    )


def differences(found: dict[str, Any], flags: Mapping[str, Any], inputs: Mapping[str, Any]) -> Iterator[str]:
    for name, value in flags.items():
        value = list(value) if isinstance(value, tuple) else value
        former = found["flags"].get(name, value)
        if name != "script" and name not in NOT_COMPARED and former != value:
            yield f"--{name} was {former}, is {value}"
    for name, value in inputs.items():
        if found["data"].get(name, value) != value:
            yield f"what --{name} stands for has changed"


def versions() -> dict[str, str]:
    found = {"kd-for-text-generation": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The repository's commit, with '+' if files were changed since; None outside a checkout."""
    try:
        run = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
