"""What a run leaves for people and tools: run.json, eval_scores.csv, eval_generations.json, train_losses.csv."""

import csv
import io
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
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
OURS = (RUN, SCORES, LOSSES, GENERATIONS, GENERATION_LINES, "model", "state", "epoch*__step*", "generated_datasets*")
WITHOUT_INFLUENCE = ("output_dir", "resume", "overwrite", "save_state_every_n_minutes")
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "sacrebleu", "rouge_score", "nltk")

NEW, UNFINISHED, FINISHED = "new", "unfinished", "finished"

Row = dict[str, Any]


@dataclass
class RunFolder:
    """One run's output folder. Nothing is written before `begin()`."""

    path: Path
    flags: Mapping[str, Any]
    data: Mapping[str, str]
    status: str
    scores: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Make the folder and say in run.json what is going to happen. A run that is started anew loses its files."""
        if self.status == NEW:
            self.clear()
        self._describe(UNFINISHED, {})

    def finish(self, scores: Mapping[str, float]) -> None:
        """Note the closing scores; from now on the same command prints them and does nothing else."""
        self.status, self.scores = FINISHED, dict(scores)
        self._describe(FINISHED, self.scores)

    def clear(self) -> None:
        for pattern in OURS:
            for entry in self.path.glob(pattern):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _describe(self, status: str, scores: Mapping[str, float]) -> None:
        description = {
            "script": self.flags["script"],
            "status": status,
            "scores": dict(scores),
            "flags": {name: value for name, value in self.flags.items() if name != "script"},
            "data": dict(self.data),
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

    def rows(self, name: str) -> list[Row]:
        path = self.path / name
        if not path.is_file():
            return []
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))

    def keep_rows(self, name: str, count: int) -> None:
        """Drop the rows after the first `count`: they came after the state that is resumed, and will come again."""
        path = self.path / name
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with atomic_write(path) as file:
            file.writelines(lines[: count + 1] if count else [])

    def append_generations(self, split: str, epoch: int, step: int, predictions: Sequence[str]) -> None:
        line = {"split": split, "epoch": epoch, "step": step, "predictions": list(predictions)}
        append_json_line(self.path / GENERATION_LINES, line)

    def keep_generations(self, count: int) -> None:
        lines = read_json_lines(self.path / GENERATION_LINES)
        if len(lines) > count:
            (self.path / GENERATION_LINES).unlink()
            for line in lines[:count]:
                append_json_line(self.path / GENERATION_LINES, line)

    def compose_generations(self, references: Mapping[str, Sequence[str]]) -> None:
        """Write eval_generations.json from the lines of the run; `references` by split."""
        composed = {}
        for line in read_json_lines(self.path / GENERATION_LINES):
            key = f"{line['split']}__epoch{line['epoch']}__step{line['step']}"
            composed[key] = {**line, "references": list(references[line["split"]])}
        write_json(self.path / GENERATIONS, composed, indent=1)

    def drop_generation_lines(self) -> None:
        (self.path / GENERATION_LINES).unlink(missing_ok=True)


def data_fingerprint(path: str, datasets: Datasets) -> str:
    """What tells two states of a data set apart: of a file or folder its bytes, of a hub name the rows."""
    return fingerprint(path) if Path(path).exists() else fingerprint_datasets(datasets)


def open_run(config: SharedArguments, data: Mapping[str, str]) -> RunFolder:
    """The run that `config` describes: new, unfinished (to be resumed) or finished. Writes nothing.

    `data`: fingerprint of each data file by flag name. Raises UserError if the folder holds another run, naming what
    differs, or a run that --resume False forbids to continue.
    """
    path = Path(config.output_dir)
    flags = {"script": config.script, **asdict(config)}
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path}: is a file, not a folder")
    found = _former_run(path)
    if found is None or config.overwrite:
        return RunFolder(path, flags, data, NEW)
    if found["script"] != config.script:
        raise UserError(f"{path}: holds a run of {found['script']}; take another --output_dir or --overwrite True")
    differing = list(_differences(path, found, flags, data))
    if differing:
        raise UserError(
            f"{path}: holds a run with other flags ({'; '.join(differing)}); "
            "take another --output_dir or --overwrite True"
        )
    if not config.resume:
        raise UserError(f"{path}: holds this run already ({found['status']}); --overwrite True starts anew")
    return RunFolder(path, flags, data, found["status"], found["scores"])


def _former_run(path: Path) -> dict[str, Any] | None:
    if not (path / RUN).is_file():
        return None
    found = read_json(path / RUN)
    if not isinstance(found, dict) or not {"script", "status", "flags", "data", "scores"} <= found.keys():
        raise UserError(f"{path / RUN}: not a description of a run; take another --output_dir or --overwrite True")
    return found


def _differences(path: Path, found: dict[str, Any], flags: Mapping[str, Any], data: Mapping[str, str]) -> Iterable[str]:
    for name, value in flags.items():
        value = list(value) if isinstance(value, tuple) else value
        former = found["flags"].get(name, value)
        if name == "checkpoint_path" and value and Path(str(value)).resolve().is_relative_to(path.resolve()):
            continue  # a checkpoint of this very run: continue from there
        if name != "script" and name not in WITHOUT_INFLUENCE and former != value:
            yield f"--{name} was {former}, is {value}"
    for name, value in data.items():
        if found["data"].get(name, value) != value:
            yield f"the data of --{name} has changed"


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
