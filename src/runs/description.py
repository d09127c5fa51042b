"""run.json: a run's flags, data, versions and final scores, and how a new command differs from it."""

import platform
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from src import __version__
from src.config.errors import UserError
from src.config.flags.base import REPOSITORY
from src.data.schema import Datasets
from src.data.writers import fingerprint, fingerprint_datasets
from src.storage.json_files import read_json, write_json

RUN = "run.json"
NEW = "new"  # a run without a run.json
UNFINISHED: Final = "unfinished"
FINISHED: Final = "finished"
Status = Literal["unfinished", "finished"]

# Flags that two commands of one run may differ in.
NOT_COMPARED = (
    "output_dir", "resume", "overwrite", "save_state_every_n_minutes", "dry_run", "greater_is_better", "server_url",
    "server_concurrency", "report_to",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "sacrebleu", "rouge_score", "nltk")


class Curves(msgspec.Struct):
    """A run's curves in an experiment tracker.

    report_to: the tracker. key: what tells the run from others of the same folder. rows: how many rows of each table
    were there when the run was last continued; rows that come again are not sent again.
    """

    report_to: str
    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}\Z")]  # a folder that is removed has it in its name
    rows: dict[str, int] = {}


class RunDescription(msgspec.Struct, kw_only=True):
    """What run.json holds.

    scores: of the final test, None for NaN and infinity, which JSON lacks. flags: by name, without the script. data:
    what flags that name inputs stood for, as JSON values (for a data file its fingerprint).
    seconds: at work, over all commands that continued the run. warnings: those printed, each once. stopped: what ended
    an unfinished run; None also if it was killed. curves: with --report_to.
    """

    script: Annotated[str, Meta(pattern=r"^\w{1,60}\.py\Z")]
    status: Status
    scores: dict[str, float | None]
    flags: Annotated[dict[str, Any], Meta(min_length=1)]
    score_definitions: dict[str, str] = {}
    data: dict[str, Any]
    versions: dict[str, str] = {}
    commit: str | None = None
    seconds: float | None = None
    warnings: list[str] = []
    stopped: str | None = None
    curves: Curves | msgspec.UnsetType = msgspec.UNSET

    def write(self, folder: Path) -> None:
        write_json(folder / RUN, msgspec.to_builtins(self), indent=1)

    def differences(
        self, flags: Mapping[str, Any], data: Mapping[str, Any], defaults: Mapping[str, Any]
    ) -> Iterator[str]:
        """What differs in a new command, one sentence each.

        A flag that run.json lacks, because it is new, had its default. Data that it lacks do not differ.
        """
        for name, value in flags.items():
            former = self.flags.get(name, defaults.get(name, value))
            former, value = (list(each) if isinstance(each, tuple) else each for each in (former, value))
            if name != "script" and name not in NOT_COMPARED and former != value:
                yield f"--{name} was {former}, is {value}"
        for name, value in data.items():
            if self.data.get(name, value) != value:
                yield f"what --{name} stands for has changed"


def read_description(folder: Path) -> RunDescription | None:
    """The run.json of a folder; None if there is none. Raises UserError if it describes no run."""
    if not (folder / RUN).is_file():
        return None
    try:
        return msgspec.convert(read_json(folder / RUN), RunDescription)
    except msgspec.ValidationError as error:
        reason = f"not a description of a run: {str(error):.200}"
        raise UserError(f"{folder / RUN}: {reason}; take another --output_dir or --overwrite True") from None


def description_bytes(folder: Path) -> bytes | None:
    """The bytes of a folder's run.json, to notice that another run has changed it; None if there is none."""
    return (folder / RUN).read_bytes() if (folder / RUN).is_file() else None


def data_fingerprint(path: str, datasets: Datasets) -> str:
    """A hash that changes with the data: of the bytes of a file or folder, of the rows of a hub dataset."""
    return fingerprint(path) if Path(path).exists() else fingerprint_datasets(datasets)


@cache
def installed_versions() -> dict[str, str]:
    found = {"kd-for-text-generation": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
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
