"""Folders of runs without models: what a report reads of a run, made in milliseconds."""

import csv
import json
import struct
from pathlib import Path
from typing import Any

from src.evaluation.metrics import score_texts
from src.runs.description import RunDescription
from src.runs.records import append_predictions, write_predictions

REFERENCES = [f"the {color} cat sees a {size} house ." for color in ("red", "blue", "old") for size in ("new", "big")]
TEACHER_TEXTS = [text.replace("house", "home") for text in REFERENCES]
STUDENT_TEXTS = [text.replace("sees a", "a").replace("house", "cat") for text in REFERENCES]
FINE_TUNED_TEXTS = ["the the cat ." for _ in REFERENCES]
NLL = {"teacher": 1.0, "student": 1.5, "fine-tuned": 2.0}


def write_run(folder: Path, script: str, texts: list[str] | None, *, nll: float = 1.0, **changes: Any) -> Path:
    """A finished run with `texts` as its test predictions; `changes` are flags, or fields of run.json.

    Of the flags, only those that a report needs or the test names are there; a run's others have their defaults.
    """
    fields = {name: changes.pop(name) for name in list(changes) if name in RunDescription.__struct_fields__}
    references = changes.pop("references", REFERENCES)
    flags = {"output_dir": str(folder), "dataset_path": "data.json", "metric_for_best_model": "sacrebleu", **changes}
    scores = {} if texts is None else score_texts(texts, references, ("sacrebleu", "chrf"), final=True) | {"nll": nll}
    folder.mkdir(parents=True)
    known = {"status": "finished", "scores": scores, "data": {"dataset_path": "abc"}, "versions": {"torch": "2"}}
    RunDescription(script=script, flags={"seed": 42, **flags}, **{**known, **fields}).write(folder)
    if texts is not None:
        append_predictions(folder, "dev", 0, 1, texts[:1])
        append_predictions(folder, "test", -1, -1, texts)
        write_predictions(folder, {"dev": references[:1], "test": references})
    dev = [
        {"split": "dev", "epoch": epoch, "step": 9, "sacrebleu": 10.0 * epoch, "nll": nll + 1 / (1 + epoch)}
        for epoch in range(3)
    ]
    place = {"phase": 0, "learned": "x", "step": 9, "learning_rate": 0.1}
    losses = [place | {"epoch": epoch, "loss": 3 - epoch, "logits": 2 - epoch, "forward": 1.0} for epoch in range(3)]
    _write_csv(folder / "eval_scores.csv", dev)
    _write_csv(folder / "train_losses.csv", losses)
    return folder


def write_study(root: Path, *, seeds: tuple[int, ...] = (1, 2)) -> Path:
    """A teacher, and for each seed a fine-tuned student and students without and with two pseudo-targets."""
    write_run(root / "teacher", "ft_main.py", TEACHER_TEXTS, nll=1.0, model_name="big")
    write_weights(root / "teacher", 1_000)
    names = {
        "student_name": "small",
        "teacher_name": str(root / "teacher" / "model"),
        "experiment_config_key": "logits_kd",
    }
    (root / "data.json").write_text(
        json.dumps({"train": {}, "test": {"text": [f"input {i}" for i in range(6)], "target": REFERENCES}})
    )
    for seed in seeds:
        made = {"seed": seed, "metric_for_best_model": "sacrebleu"}
        write_run(
            root / f"s{seed}" / "ft", "ft_main.py", FINE_TUNED_TEXTS, nll=2.0 + seed / 100, model_name="small", **made
        )
        mixed = STUDENT_TEXTS[:4] + FINE_TUNED_TEXTS[4:]
        write_run(root / f"s{seed}" / "kd", "kd_main.py", mixed, nll=1.8, **names, **made)
        data = str(root / f"s{seed}" / "merged.json")
        write_run(
            root / f"s{seed}" / "kd_pt", "kd_main.py", STUDENT_TEXTS, nll=1.5, **names, **made | {"dataset_path": data}
        )
        write_weights(root / f"s{seed}" / "kd_pt", 250)
    return root


def write_weights(folder: Path, n_parameters: int) -> None:
    """A model folder whose safetensors file has a header for as many weights."""
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "w": {"dtype": "F32", "shape": [n_parameters // 10, 10], "data_offsets": [0, 0]},
        }
    )
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
