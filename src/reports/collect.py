"""Find the runs below some folders, and read what each left."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from src.config.errors import UserError
from src.config.flags.base import REQUIRED
from src.config.scripts import ARGUMENTS
from src.data.references import references_of
from src.runs.description import FINISHED, RUN
from src.runs.records import FINAL_TEST, PREDICTIONS, RunRecords, read_run
from src.storage.locks import FolderLock

PROFILE = "profile.json"
FINE_TUNE, DISTILL = "ft_main.py", ("kd_main.py", "kd_dataset_with_logits_main.py")
Rows = list[list[str]]  # the references of each test row


@dataclass(frozen=True, eq=False)
class Run:
    """A run in its folder, with the flags that its run.json lacks at their defaults."""

    folder: Path
    records: RunRecords

    @property
    def script(self) -> str:
        return self.records.description.script

    @cached_property
    def flags(self) -> dict[str, Any]:
        known = ARGUMENTS.get(self.script)
        defaults = {each.name: each.default for each in fields(known) if each.default is not REQUIRED} if known else {}
        return {**defaults, **self.records.description.flags}

    @property
    def seed(self) -> int:
        return self.flags["seed"]

    @property
    def scores(self) -> dict[str, float | None]:
        """Of the final test."""
        return self.records.description.scores

    @property
    def is_trained(self) -> bool:
        """Whether it trained a model instead of only scoring one."""
        return bool(self.flags.get("do_train"))

    @property
    def predictions(self) -> list[str]:
        """Of the final test."""
        return self.records.predictions[-1]["predictions"]

    @cached_property
    def references(self) -> Rows:
        """Of the final test."""
        return [references_of(target) for target in self.records.predictions[-1]["references"]]

    @cached_property
    def status(self) -> str:
        """finished, running, or what stopped it."""
        description = self.records.description
        if description.status == FINISHED:
            return FINISHED
        try:
            FolderLock(self.folder).check_free()
        except UserError:
            return "running"
        return f"unfinished: {description.stopped}" if description.stopped else "unfinished"


@dataclass(frozen=True)
class Collection:
    """What some folders hold.

    compared: finished runs with scores and predictions of a test. others: finished runs without, such as generation.
    unfinished: runs that are at work or were stopped. unreadable: the reason by folder. profiles: files found.
    """

    compared: list[Run]
    others: list[Run]
    unfinished: list[Run]
    unreadable: dict[Path, str]
    profiles: list[Path]

    @property
    def runs(self) -> list[Run]:
        return self.compared + self.others + self.unfinished


def collect(folders: Iterable[str | Path]) -> Collection:
    """Read every run in the folders and below. Raises UserError for a folder that does not exist or holds no run."""
    found = Collection([], [], [], {}, [])
    for folder, files in _folders_of(folders):
        if PROFILE in files:
            found.profiles.append(folder / PROFILE)
        if RUN not in files:
            continue
        try:
            run = Run(folder, read_run(folder, only_final=True))
            _check_predictions(run)
        except UserError as error:
            found.unreadable[folder] = str(error)
            continue
        if run.status != FINISHED:
            found.unfinished.append(run)
        elif run.script in (FINE_TUNE, *DISTILL) and run.scores and run.records.predictions:
            found.compared.append(run)
        else:
            found.others.append(run)
    return found


def _check_predictions(run: Run) -> None:
    """Raise UserError if a finished run's predictions are not texts beside references."""
    for final in run.records.predictions if run.status == FINISHED else ():
        texts, targets = (final.get(key) if isinstance(final, dict) else None for key in ("predictions", "references"))
        if not isinstance(texts, list) or not isinstance(targets, list) or len(texts) != len(targets):
            raise UserError(f"{run.folder / PREDICTIONS}: {FINAL_TEST}: expected as many predictions as references")


def _folders_of(folders: Iterable[str | Path]) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with its files, once and in order; hidden folders, which hold unfinished files, are left out."""
    seen = set()
    for given in map(Path, folders):
        if not given.is_dir():
            raise UserError(f"OUTPUT_DIRS: {given}: is no folder")
        has_run = False
        for folder, below, files in os.walk(given, followlinks=True):
            below[:] = sorted(name for name in below if not name.startswith("."))
            real = Path(folder).resolve()
            if real in seen:
                has_run, below[:] = True, []
                continue
            seen.add(real)
            has_run |= RUN in files
            yield Path(folder), files
        if not has_run:
            raise UserError(f"OUTPUT_DIRS: {given}: neither it nor a folder below holds a run ({RUN})")
