"""What a run leaves for people and tools: run.json, eval_scores.csv, eval_generations.json, train_losses.csv."""

import csv
import io
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import isfinite, nan
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from src.config.console import say
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.data.references import Target
from src.runs.description import (
    FINISHED,
    LOSSES,
    NEW,
    RUN,
    SCORES,
    UNFINISHED,
    commit,
    described,
    differences,
    former_run,
    versions,
)
from src.storage.atomic import append_bytes, atomic_write, check_output_folder, check_writable, is_locked
from src.storage.json_files import append_json_line, read_json_lines, write_json
from src.storage.soft_lock import NO_LOCKS, SoftLock

GENERATIONS, GENERATION_LINES = "eval_generations.json", "eval_generations.jsonl"


LOCK = ".lock"  # held by the run that is at work in the folder; the system frees it however a process ends


SOFT_LOCK = ".soft_lock"  # its like where the file system has no locks


PARTIAL = "generated_datasets.partial.jsonl"  # what gen_main.py or simulate_api_main.py has generated so far


RESUMABLE = ("state", PARTIAL)


WRITTEN = ("generated_datasets.json", "api_completions.json", "api_completions.jsonl")


RUN_FILES = (*RESUMABLE, SCORES, LOSSES, GENERATIONS, GENERATION_LINES, "model", "epoch*__step*", *WRITTEN)


UNFINISHED_FILES = tuple(f".{name}{ending}" for name in (*RUN_FILES, RUN) for ending in (".*.tmp", ".*.former"))


PUT_BACK = "put it back, or start anew with --overwrite True"


Row = dict[str, Any]


@dataclass
class RunFolder:
    """One run's output folder. Nothing is written before `begin()`.

    former: what run.json said when it was opened. sums: CRC-32 of what has been added to files, by their names.
    """

    path: Path
    flags: dict[str, Any]
    inputs: Mapping[str, Any]
    status: str
    scores: dict[str, float] = field(default_factory=dict)
    former: bytes | None = None
    sums: dict[str, int] = field(default_factory=dict)
    lock: FileLock | SoftLock | None = None
    score_definitions: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within: no other run can work in this folder. Raises UserError if one does, or has since this was opened.

        A finished run whose folder cannot be written is only looked at, and holds nothing.
        """
        self.lock = FileLock(self.path / LOCK, timeout=0, fallback_to_soft=False)
        try:
            if self.path.is_dir() and not (self.status == FINISHED and not os.access(self.path, os.W_OK)):
                self._hold(self.lock)
            yield
        finally:
            if self.lock.is_locked:
                (self.path / LOCK).unlink(missing_ok=True)
                self.lock.release()
            self.lock = None

    def _hold(self, lock: FileLock | SoftLock) -> None:
        """Acquire the lock, or where the file system has none a soft one in its place."""
        soft = SoftLock(self.path / SOFT_LOCK)
        soft.check_free()
        try:
            lock.acquire()
        except Timeout:
            raise self._at_work() from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
            say(f"warning: {self.path}: its file system has no locks; the file {SOFT_LOCK} keeps other runs out")
            self.lock = soft
            soft.acquire()
        if described(self.path) != self.former:
            raise UserError(
                f"{self.path}: another run changed this folder after this one started; run the command again"
            )

    def _at_work(self) -> UserError:
        return UserError(f"{self.path}: another run is at work there; wait for its end, or take another --output_dir")

    def check_free(self) -> None:
        """Raise UserError if `held` or `begin` would: another run is at work, or nothing can be written. Leaves no
        trace."""
        if self.status == FINISHED and not os.access(self.path, os.W_OK):
            return
        if is_locked(self.path / LOCK):
            raise self._at_work()
        SoftLock(self.path / SOFT_LOCK).check_free()
        check_writable(self.path)

    def files(self) -> list[Path]:
        """What a run has left here: what starting anew would remove."""
        return [entry for pattern in RUN_FILES for entry in self.path.glob(pattern)]

    def begin(self, *, anew: bool) -> None:
        """Make the folder and say in run.json what is going to happen; `anew` removes the files of an earlier run.

        In an order that can be killed anywhere: nothing of the earlier run will be continued by this one.
        """
        if self.lock is not None and not self.lock.is_locked:
            self._make()
            self._hold(self.lock)
        if anew:
            self._remove(RESUMABLE)
        self._describe(UNFINISHED, {})
        if anew:
            self._remove(RUN_FILES)
        self._remove(UNFINISHED_FILES)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def finish(self, scores: Mapping[str, float]) -> None:
        """Note the closing scores; from now on the same command prints them and does nothing else."""
        self.status, self.scores = FINISHED, dict(scores)
        self._describe(FINISHED, self.scores)

    def holds(self, file: Path) -> bool:
        """Whether a file or folder lies in this run's folder."""
        return file.resolve().is_relative_to(self.path.resolve())

    def _remove(self, patterns: Iterable[str]) -> None:
        for pattern in patterns:
            for entry in list(self.path.glob(pattern)):
                if entry.is_dir():
                    former = entry.rename(entry.with_name(f".{entry.name.strip('.')}.{secrets.token_hex(4)}.former"))
                    shutil.rmtree(former)
                else:
                    entry.unlink()

    def _describe(self, status: str, scores: Mapping[str, float]) -> None:
        description = {
            "script": self.flags["script"],
            "status": status,
            "scores": {name: value if isfinite(value) else None for name, value in scores.items()},  # JSON has no NaN
            "flags": {name: value for name, value in self.flags.items() if name != "script"},
            "score_definitions": dict(self.score_definitions),
            "data": dict(self.inputs),
            "versions": versions(),
            "commit": commit(),
        }
        write_json(self.path / RUN, description, indent=1)

    def append_row(self, name: str, columns: Sequence[str], row: Row) -> None:
        """Add a row to a CSV file, with its header first; a column without a value stays empty."""
        path, text = self.path / name, io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if not path.is_file() or not path.stat().st_size:
            writer.writeheader()
        writer.writerow(row)
        data = text.getvalue().encode("utf-8")
        append_bytes(path, data)  # on disk before the state that counts on it
        self._add_to_sum(name, data)

    def _add_to_sum(self, name: str, data: bytes) -> None:
        self.sums[name] = zlib.crc32(data, self.sums.get(name, 0))

    def keep_rows(self, name: str, count: int) -> None:
        """Drop the rows after the first `count`: they came after the state that is resumed, and will come again."""
        self._check_rows(name, count)
        self._keep_lines(name, _with_header(count))

    def check_lines(self, n_evaluations: int, n_losses: int, sums: Mapping[str, int]) -> None:
        """Raise UserError unless the files have what a state counts on; writes nothing.

        sums: CRC-32 of it by the names of the files; one that is not there is not looked at.
        """
        self._check_rows(SCORES, n_evaluations)
        self._check_rows(LOSSES, n_losses)
        self._check_count(GENERATION_LINES, len(self._generations(repair=False)), n_evaluations)
        n_lines = {SCORES: _with_header(n_evaluations), LOSSES: _with_header(n_losses), GENERATION_LINES: n_evaluations}
        for name, expected in sums.items():
            if name in n_lines and self._sum_of(name, n_lines[name]) != expected:
                raise UserError(f"{self.path / name}: has changed since the run's state was saved; {PUT_BACK}")

    def _sum_of(self, name: str, n_lines: int) -> int:
        total = 0
        with (self.path / name).open("rb") as lines:
            for line in islice(lines, n_lines):
                total = zlib.crc32(line, total)
        return total

    def _check_rows(self, name: str, count: int) -> None:
        path, found = self.path / name, 0
        if path.is_file():
            with path.open("rb") as lines:
                found = sum(line.endswith(b"\n") for line in islice(lines, _with_header(count)))
        self._check_count(name, found, _with_header(count))

    def _check_count(self, name: str, found: int, expected: int) -> None:
        if found < expected:
            raise UserError(
                f"{self.path / name}: {found} whole lines are left of the {expected} that were there when the run's "
                f"state was saved; {PUT_BACK}"
            )

    def _keep_lines(self, name: str, count: int) -> None:
        path = self.path / name
        if path.is_file():
            with path.open(encoding="utf-8", newline="\n") as lines, atomic_write(path) as file:
                file.writelines(islice(lines, count))

    def append_generations(self, split: str, epoch: int, step: int, predictions: Sequence[str]) -> None:
        line = {"split": split, "epoch": epoch, "step": step, "predictions": list(predictions)}
        self._add_to_sum(GENERATION_LINES, append_json_line(self.path / GENERATION_LINES, line))

    def keep_generations(self, count: int) -> None:
        self._check_count(GENERATION_LINES, len(self._generations()), count)
        self._keep_lines(GENERATION_LINES, count)

    def _generations(self, *, repair: bool = True) -> list[Any]:
        return read_json_lines(self.path / GENERATION_LINES, repair=repair)

    def compose_generations(self, references: Mapping[str, Sequence[Target]]) -> None:
        """Write eval_generations.json from the lines of the run; `references` by split."""
        composed = {}
        for line in self._generations():
            key = f"{line['split']}__epoch{line['epoch']}__step{line['step']}"
            composed[key] = {**line, "references": list(references[line["split"]])}
        write_json(self.path / GENERATIONS, composed, indent=1)

    def tidy(self) -> None:
        """Remove what a finished run needs no more: lines that the finished files hold, halves that a kill left."""
        self._remove((GENERATION_LINES, PARTIAL, *UNFINISHED_FILES))


def _with_header(n_rows: int) -> int:
    """Lines of a table: its header comes with its first row."""
    return n_rows + 1 if n_rows else 0


def open_run(config: SharedArguments, inputs: Mapping[str, Any]) -> RunFolder:
    """The run that `config` describes: new, unfinished (to be resumed) or finished. Writes nothing.

    `inputs`: what the flags of these names stand for, as JSON values (of a data file its fingerprint). A
    --checkpoint_path in the run's own folder only says where to go on: the flag of the run stays what it was.
    Raises UserError if the folder holds another run, naming what differs; a run that --resume False forbids to
    continue; files that nobody asked to replace; or files to be replaced that the flags name as inputs.
    """
    path = Path(config.output_dir)
    check_output_folder(path)
    run = RunFolder(path, {"script": config.script, **asdict(config)}, inputs, NEW)
    run.former = described(path)
    found = None if config.overwrite else former_run(path)
    if found is None:
        _check_replaceable(run, overwrite=config.overwrite)
        return run
    if run.flags["checkpoint_path"] and run.holds(Path(run.flags["checkpoint_path"])):
        run.flags["checkpoint_path"] = found["flags"].get("checkpoint_path")
    if found["script"] != config.script:
        raise UserError(f"{path}: holds a run of {found['script']}; take another --output_dir or --overwrite True")
    differing = list(differences(found, run.flags, run.inputs))
    if differing:
        raise UserError(
            f"{path}: holds a run with other flags ({'; '.join(differing)}); "
            "take another --output_dir or --overwrite True"
        )
    if not config.resume:
        raise UserError(f"{path}: holds this run already ({found['status']}); --overwrite True starts anew")
    run.status = found["status"]
    run.scores = {name: nan if value is None else value for name, value in found["scores"].items()}
    return run


def _check_replaceable(run: RunFolder, *, overwrite: bool) -> None:
    """Refuse to remove, by starting anew, what is an input of the run or belongs to no run."""
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
