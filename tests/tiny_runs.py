"""Runs of the real scripts on tiny data: their flags and their output files."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

TINY = {
    "max_input_length": 32,
    "max_labels_length": 8,
    "num_beams": 1,
    "batch_size": 4,
    "max_gpu_batch_size": 2,
    "learning_rate": 0.01,
    "metric_for_best_model": "sacrebleu",
    "epochs": 2,
}
ONLY_TRAINING = ("max_gpu_batch_size", "learning_rate", "metric_for_best_model", "epochs")


def argv(flags: dict[str, Any]) -> list[str]:
    """A command line: a tuple is a list, None leaves a flag out."""
    words = []
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def ft_flags(model: str, data: str | Path, out: Path, **flags: Any) -> list[str]:
    return argv({**TINY, "model_name": model, "dataset_path": data, "output_dir": out, **flags})


def kd_flags(models: dict[str, str], data: str | Path, out: Path, **flags: Any) -> list[str]:
    """Distill models["teacher"] into models["student"]: two epochs of logits_kd unless `flags` say otherwise."""
    named = {"student_name": models["student"], "teacher_name": models["teacher"]}
    paths = {"dataset_path": data, "output_dir": out, "experiment_config_key": "logits_kd"}
    return argv({**TINY, **named, **paths, **flags})


def gen_flags(model: str, data: str | Path, out: Path, **flags: Any) -> list[str]:
    shared = {name: value for name, value in TINY.items() if name not in ONLY_TRAINING}
    return argv({**shared, "model_name": model, "dataset_path": data, "output_dir": out, **flags})


def rows(out: Path, name: str = "eval_scores.csv") -> list[dict[str, str]]:
    """The rows of a CSV file of a run."""
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def places(out: Path) -> list[tuple[str, int, int]]:
    """(split, epoch, step) of every evaluation of a run."""
    return [(row["split"], int(row["epoch"]), int(row["step"])) for row in rows(out)]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def names(out: Path) -> set[str]:
    """What lies in a folder, hidden files included."""
    return {entry.name for entry in out.iterdir()}


def snapshot(root: Path) -> dict[str, str]:
    """{path below root: hash of the file's bytes}."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def tree(root: Path) -> dict[str, tuple]:
    """{path below root: kind, time of change and size} of all that is there, the root and hidden files included."""
    entries = [root, *sorted(root.rglob("*"))]
    stats = {str(entry.relative_to(root)): entry.lstat() for entry in entries}
    return {name: (stat.st_mode, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats.items()}


def result(out: Path) -> dict[str, str]:
    """`snapshot` of a run without what equal runs may differ in: the flags' paths, in run.json and the model card."""
    return {name: digest for name, digest in snapshot(out).items() if name not in ("run.json", "model/README.md")}


def says(line: str, said: str) -> bool:
    """Whether the parts of `said` between `.*` are in the line, in this order."""
    for part in said.split(".*"):
        _, found, line = line.partition(part)
        if not found:
            return False
    return True
