"""What a run leaves for people and tools: run.json, eval_scores.csv, eval_generations.json, train_losses.csv."""

import csv
import platform
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from src.config.arguments import REPOSITORY, SharedArguments
from src.config.errors import UserError
from src.data.files import (
    Datasets,
    append_json_line,
    atomic_write,
    fingerprint,
    fingerprint_datasets,
    read_json,
    read_json_lines,
    write_json,
)

RUN, SCORES, LOSSES = "run.json", "eval_scores.csv", "train_losses.csv"
GENERATIONS, GENERATION_LINES = "eval_generations.json", "eval_generations.jsonl"
PARTIAL = "generated_datasets.partial.jsonl"  # what gen_main.py or simulate_api_main.py has generated so far
RESUMABLE = ("state", PARTIAL)
WRITTEN = ("generated_datasets.json", "api_completions.json", "api_completions.jsonl")
OURS = (*RESUMABLE, SCORES, LOSSES, GENERATIONS, GENERATION_LINES, "model", "epoch*__step*", *WRITTEN)
UNFINISHED_FILES = tuple(f".{name}{ending}" for name in (*OURS, RUN) for ending in (".*.tmp", ".*.former"))
WITHOUT_INFLUENCE = ("output_dir", "resume", "overwrite", "save_state_every_n_minutes")
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "sacrebleu", "rouge_score", "nltk")

NEW, UNFINISHED, FINISHED = "new", "unfinished", "finished"

Row = dict[str, Any]


@dataclass
class RunFolder:
    """One run's output folder. Nothing is written before `begin()`."""

    path: Path
    flags: dict[str, Any]
    inputs: Mapping[str, Any]
    status: str
    scores: dict[str, float] = field(default_factory=dict)

    def begin(self, *, anew: bool) -> None:
        """Make the folder and say in run.json what is going to happen; `anew` removes the files of an earlier run.

        In an order that can be killed anywhere: nothing of the earlier run will be continued by this one.
        """
        if anew:
            self._remove(RESUMABLE)
        self._describe(UNFINISHED, {})
        if anew:
            self._remove(OURS)
        self._remove(UNFINISHED_FILES)

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
            "scores": dict(scores),
            "flags": {name: value for name, value in self.flags.items() if name != "script"},
            "data": dict(self.inputs),
            "versions": _versions(),
            "commit": _commit(),
        }
        write_json(self.path / RUN, description, indent=1)

    def append_row(self, name: str, columns: Sequence[str], row: Row) -> None:
        """Add a row to a CSV file, with its header first; a column without a value stays empty."""
        path = self.path / name
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def keep_rows(self, name: str, count: int) -> None:
        """Drop the rows after the first `count`: they came after the state that is resumed, and will come again."""
        self._keep_lines(name, count + 1 if count else 0)  # with the header

    def _keep_lines(self, name: str, count: int) -> None:
        path = self.path / name
        if path.is_file():
            with path.open(encoding="utf-8", newline="\n") as lines, atomic_write(path) as file:
                file.writelines(islice(lines, count))

    def append_generations(self, split: str, epoch: int, step: int, predictions: Sequence[str]) -> None:
        line = {"split": split, "epoch": epoch, "step": step, "predictions": list(predictions)}
        append_json_line(self.path / GENERATION_LINES, line)

    def keep_generations(self, count: int) -> None:
        read_json_lines(self.path / GENERATION_LINES)  # repairs a torn last line
        self._keep_lines(GENERATION_LINES, count)

    def compose_generations(self, references: Mapping[str, Sequence[str]]) -> None:
        """Write eval_generations.json from the lines of the run; `references` by split."""
        composed = {}
        for line in read_json_lines(self.path / GENERATION_LINES):
            key = f"{line['split']}__epoch{line['epoch']}__step{line['step']}"
            composed[key] = {**line, "references": list(references[line["split"]])}
        write_json(self.path / GENERATIONS, composed, indent=1)

    def tidy(self) -> None:
        """Remove what a finished run needs no more: lines that the finished files hold, halves that a kill left."""
        self._remove((GENERATION_LINES, PARTIAL, *UNFINISHED_FILES))


def data_fingerprint(path: str, datasets: Datasets) -> str:
    """What tells two states of a data set apart: of a file or folder its bytes, of a hub name the rows."""
    return fingerprint(path) if Path(path).exists() else fingerprint_datasets(datasets)


def open_run(config: SharedArguments, inputs: Mapping[str, Any]) -> RunFolder:
    """The run that `config` describes: new, unfinished (to be resumed) or finished. Writes nothing.

    `inputs`: what the flags of these names stand for, as JSON values (of a data file its fingerprint). A
    --checkpoint_path in the run's own folder only says where to go on: the flag of the run stays what it was.
    Raises UserError if the folder holds another run, naming what differs; a run that --resume False forbids to
    continue; files that nobody asked to replace; or files to be replaced that the flags name as inputs.
    """
    path = Path(config.output_dir)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path}: is a file, not a folder")
    run = RunFolder(path, {"script": config.script, **asdict(config)}, inputs, NEW)
    found = None if config.overwrite else _former_run(path)
    if found is None:
        _check_replaceable(run, overwrite=config.overwrite)
        return run
    if run.flags["checkpoint_path"] and run.holds(Path(run.flags["checkpoint_path"])):
        run.flags["checkpoint_path"] = found["flags"].get("checkpoint_path")
    if found["script"] != config.script:
        raise UserError(f"{path}: holds a run of {found['script']}; take another --output_dir or --overwrite True")
    differing = list(_differences(found, run))
    if differing:
        raise UserError(
            f"{path}: holds a run with other flags ({'; '.join(differing)}); "
            "take another --output_dir or --overwrite True"
        )
    if not config.resume:
        raise UserError(f"{path}: holds this run already ({found['status']}); --overwrite True starts anew")
    run.status, run.scores = found["status"], found["scores"]
    return run


def _former_run(path: Path) -> dict[str, Any] | None:
    if not (path / RUN).is_file():
        return None
    found = read_json(path / RUN)
    if not isinstance(found, dict) or not {"script", "status", "flags", "data", "scores"} <= found.keys():
        raise UserError(f"{path / RUN}: not a description of a run; take another --output_dir or --overwrite True")
    return found


def _check_replaceable(run: RunFolder, *, overwrite: bool) -> None:
    """Refuse to remove, by starting anew, what is an input of the run or belongs to no run."""
    there = [entry for pattern in OURS for entry in run.path.glob(pattern)]
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


def _differences(found: dict[str, Any], run: RunFolder) -> Iterable[str]:
    for name, value in run.flags.items():
        value = list(value) if isinstance(value, tuple) else value
        former = found["flags"].get(name, value)
        if name != "script" and name not in WITHOUT_INFLUENCE and former != value:
            yield f"--{name} was {former}, is {value}"
    for name, value in run.inputs.items():
        if found["data"].get(name, value) != value:
            yield f"what --{name} stands for has changed"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str | None:
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
