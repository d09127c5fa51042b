"""A run's output folder: which run it holds, who may write in it, and what is removed from it."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from math import isfinite, nan
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

from msgspec import UNSET

from src.config.console import say
from src.config.constants import NO_TRACKER
from src.config.errors import UserError, one_line
from src.config.flags.base import REQUIRED
from src.config.flags.shared import SharedArguments
from src.config.warning_record import recorded_warnings
from src.devices import processes
from src.runs.curves import curves_of
from src.runs.description import (
    FINISHED,
    NEW,
    RUN,
    UNFINISHED,
    Curves,
    RunDescription,
    Status,
    commit,
    description_bytes,
    installed_versions,
    read_description,
)
from src.runs.records import LOSSES, MODEL_FOLDER, PREDICTION_LINES, PREDICTIONS, SCORES
from src.runs.trackers import Row, Tracker, open_trackers
from src.storage.atomic import check_output_folder, check_writable, remove_folder
from src.storage.locks import FolderLock

PARTIAL = "generated_datasets.partial.jsonl"  # what gen_main.py or simulate_api_main.py has generated so far
NOTHING: Mapping[str, Any] = MappingProxyType({})
RESUMABLE = ("state", PARTIAL)
WRITTEN = ("generated_datasets.json", "generated_datasets.arrow", "api_completions.json", "api_completions.jsonl")
CURVES = "tensorboard_" + "[0-9a-f]" * 8  # the only tracker with files in the run's folder
RUN_FILES = (*RESUMABLE, SCORES, LOSSES, PREDICTIONS, PREDICTION_LINES, MODEL_FOLDER, "epoch*__step*", CURVES, *WRITTEN)
UNFINISHED_FILES = tuple(f".{name}{ending}" for name in (*RUN_FILES, RUN) for ending in (".*.tmp", ".*.former"))


@dataclass
class RunFolder:
    """The output folder of one run. Nothing is written before `begin()`; of several processes the main one writes.

    flags: of this command, with the script. inputs: what flags that name inputs stand for. status, scores: those of
    run.json. former: the bytes of run.json when the folder was opened. earlier: of an unfinished run that is continued,
    what they say. started: when, by the monotonic clock. curves: those in the tracker of --report_to.
    """

    path: Path
    flags: dict[str, Any]
    inputs: Mapping[str, Any]
    status: str
    scores: dict[str, float] = field(default_factory=dict)
    former: bytes | None = None
    trackers: tuple[Tracker, ...] = ()
    lock: FolderLock | None = None
    score_definitions: Mapping[str, str] = field(default_factory=dict)
    earlier: RunDescription | None = None
    started: float = field(default_factory=lambda: monotonic())
    has_begun: bool = False
    curves: Curves | None = None

    @property
    def is_dry(self) -> bool:
        """Whether this is a dry run, which writes nothing."""
        return bool(self.flags["dry_run"])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder against other runs for the block, and close the trackers at its end.

        Raises UserError if another run is at work, or has changed the folder since it was opened. A finished run in a
        folder that cannot be written is only read, without a lock. A dry run only checks that the folder is free and
        can be written, and changes nothing.
        """
        self.lock = FolderLock(self.path)
        try:
            with ExitStack() as at_end:
                at_end.push(self._record_stop)
                at_end.enter_context(processes.end_together())
                processes.from_main(self._lock_or_check)
                if self.is_dry:
                    say(f"dry run of {self.flags['script']}: checks, loads and times a few steps; nothing is written")
                yield
        finally:
            self._close_trackers()
            self.lock.release()
            self.lock = None

    def _lock_or_check(self) -> None:
        """Lock the folder; a dry run only checks that it could."""
        assert self.lock is not None
        only_read = self.status == FINISHED and not os.access(self.path, os.W_OK)
        if self.is_dry and not only_read:
            self.lock.check_free()
            check_writable(self.path)
        elif self.path.is_dir() and not only_read:
            self._hold(self.lock)

    def _record_stop(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Write the time so far and what stopped an unfinished run, if an error did, to run.json."""
        if error is not None and processes.is_main() and self.has_begun and self.status != FINISHED:
            was_interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            with suppress(UserError):  # the disk may be full; the error at hand says more
                self._describe(UNFINISHED, {}, stopped="interrupted" if was_interrupted else one_line(error))

    def _hold(self, lock: FolderLock) -> None:
        lock.acquire()
        if description_bytes(self.path) != self.former:
            raise UserError(
                f"{self.path}: another run changed this folder after this one started; run the command again"
            )

    def files(self) -> list[Path]:
        """Files and folders of a run, which starting anew removes."""
        return [entry for pattern in RUN_FILES for entry in self.path.glob(pattern)]

    def begin(self, *, anew: bool, kept: Mapping[str, int] = NOTHING) -> None:
        """Make the folder, open the trackers and write run.json; `anew` removes the files of an earlier run.

        kept: the rows of each table that a resumed run keeps. If the process is killed in between, nothing of the
        earlier run is taken for this one's. Raises UserError, with the earlier run intact, if a tracker cannot be
        reached. Of several processes the main one writes.
        """
        processes.from_main(lambda: self._begin(anew, kept))

    def _begin(self, anew: bool, kept: Mapping[str, int]) -> None:
        if self.lock is not None and not self.lock.is_acquired:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
            self._hold(self.lock)
        report_to = self.flags.get("report_to", NO_TRACKER)
        former = None if anew else self.curves
        self.curves = None if report_to == NO_TRACKER else curves_of(report_to, self.path, former)
        self.trackers = open_trackers(self.path, self.flags, self.curves, kept)
        if anew:
            self._remove(RESUMABLE)
            self.earlier = None
        self._describe(UNFINISHED, {})
        self.has_begun = True
        if anew:
            self._remove(RUN_FILES)
        self._remove(UNFINISHED_FILES)

    def finish(self, scores: Mapping[str, float]) -> None:
        """Write the final scores to run.json and close the trackers; the same command now only prints the scores."""
        self.status, self.scores = FINISHED, dict(scores)
        if processes.is_main():
            self._describe(FINISHED, self.scores)
            self._close_trackers()

    def _close_trackers(self) -> None:
        trackers, self.trackers = self.trackers, ()
        for tracker in trackers:
            tracker.close()

    def holds(self, file: Path) -> bool:
        """Whether a file or folder is inside this run's folder."""
        return file.resolve().is_relative_to(self.path.resolve())

    def _remove(self, patterns: Iterable[str]) -> None:
        for pattern in patterns:
            for entry in list(self.path.glob(pattern)):
                if self.curves is not None and entry.name.endswith(f"_{self.curves.key}"):
                    continue
                if entry.is_dir():
                    remove_folder(entry)
                else:
                    entry.unlink()

    def _describe(self, status: Status, scores: Mapping[str, float], *, stopped: str | None = None) -> None:
        earlier = self.earlier
        seconds = (earlier.seconds or 0.0 if earlier else 0.0) + monotonic() - self.started
        RunDescription(
            script=self.flags["script"],
            status=status,
            scores={name: value if isfinite(value) else None for name, value in scores.items()},
            flags={name: value for name, value in self.flags.items() if name != "script"},
            score_definitions=dict(self.score_definitions),
            data=dict(self.inputs),
            versions=installed_versions(),
            commit=commit(),
            seconds=round(seconds, 1),
            warnings=list(dict.fromkeys([*(earlier.warnings if earlier else ()), *recorded_warnings()])),
            stopped=stopped,
            curves=UNSET if self.curves is None else self.curves,
        ).write(self.path)

    def log(self, table: str, columns: Sequence[str], row: Row, step: int = 0, more: Row = NOTHING) -> None:
        """Give a row of a table to every tracker, as `Tracker.log` says; a column without a value stays empty.

        With each evaluation run.json gets the time and the warnings so far, which a kill would lose.
        """
        if not processes.is_main():
            return
        for tracker in self.trackers:
            tracker.log(table, columns, row, step, more)
        if table == SCORES:
            self._describe(UNFINISHED, {})

    def tidy(self) -> None:
        """Remove what a finished run no longer needs: files of its progress, and temporary files of a killed run."""
        if processes.is_main():
            self._remove((PREDICTION_LINES, PARTIAL, *UNFINISHED_FILES))


def open_run(config: SharedArguments, inputs: Mapping[str, Any]) -> RunFolder:
    """Open the run that `config` describes: new, unfinished (it will be resumed) or finished. Writes nothing.

    inputs: what the flags of these names stand for, as JSON values (for a data file its fingerprint).
    A --checkpoint_path inside the run's own folder only says where to continue; the run keeps its former flag.
    Raises UserError if the folder holds another run (naming the differences), a run that --resume False forbids to
    continue, files of no run without --overwrite, or files that --overwrite would remove although a flag names them.
    Of several processes, which are joined here, the main one reads the folder for all.
    """
    processes.start()
    return processes.from_main(lambda: _open_run(config, inputs))


def _open_run(config: SharedArguments, inputs: Mapping[str, Any]) -> RunFolder:
    path = Path(config.output_dir)
    check_output_folder(path)
    run = RunFolder(path, {"script": config.script, **asdict(config)}, inputs, NEW)
    run.former = description_bytes(path)
    found = None if config.overwrite else read_description(path)
    if found is None:
        _check_replaceable(run, overwrite=config.overwrite)
        return run
    if run.flags["checkpoint_path"] and run.holds(Path(run.flags["checkpoint_path"])):
        run.flags["checkpoint_path"] = found.flags.get("checkpoint_path")
    if found.script != config.script:
        raise UserError(f"{path}: holds a run of {found.script}; take another --output_dir or --overwrite True")
    defaults = {each.name: each.default for each in fields(config) if each.default is not REQUIRED}
    differing = list(found.differences(run.flags, run.inputs, defaults))
    if differing:
        raise UserError(
            f"{path}: holds a run with other flags ({'; '.join(differing)}); "
            "take another --output_dir or --overwrite True"
        )
    if not config.resume:
        raise UserError(f"{path}: holds this run already ({found.status}); --overwrite True starts anew")
    run.status, run.earlier = found.status, found
    run.curves = None if found.curves is UNSET else found.curves
    run.scores = {name: nan if value is None else value for name, value in found.scores.items()}
    return run


def _check_replaceable(run: RunFolder, *, overwrite: bool) -> None:
    """Raise UserError if starting anew would remove an input of the run, or, without --overwrite, files of no run."""
    there = run.files()
    if there and not overwrite:
        raise UserError(
            f"{run.path}: holds '{there[0].name}', but no {RUN}; take another --output_dir, or --overwrite True to "
            "replace it"
        )
    for name, value in run.flags.items():
        if not name.endswith(("_path", "_name")) or not isinstance(value, str):
            continue
        file = Path(value.partition("_prune")[0]).resolve()
        if any(file.is_relative_to(entry.resolve()) for entry in there):
            raise UserError(f"--overwrite True would remove --{name} {value}; take another --output_dir")
