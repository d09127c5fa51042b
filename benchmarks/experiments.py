"""Run every experiment of the YAML on the demo corpus: one teacher, one student per experiment, one table over seeds.

The teacher and its data are those of `make demo` with the same seed. The teacher's config gets a dropout of 0.1, which
only noisy teachers use. All students start from the same model, which was fine-tuned for a few epochs. This replaces
pre-training: targets written by a random student teach nothing. All students then train for the same number of epochs
on the labeled pairs. Finished steps are skipped and interrupted ones continue.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo import REPOSITORY, STUDENT_RATE, TRAIN, Job, run, study, write_table

START_EPOCHS, NOMINAL_EPOCHS, EPOCHS = 12, 8, 6
SETUP = (
    "data demo",
    "data teacher",
    "new teacher",
    "new student",
    "teacher",
    "teacher_test",
)  # jobs shared with the demo
BASELINE, DROPOUT = "finetuning", 0.1
COLUMNS = ("experiment", "BLEU by seed", "mean", "NLL by seed", "mean", "better than fine-tuning in")


def experiments() -> tuple[str, ...]:
    """The keys of the shipped YAML."""
    sys.path.insert(0, str(REPOSITORY))
    from src.config.experiments.load import load_experiments
    from src.config.flags.train import EXPERIMENTS

    return tuple(load_experiments(REPOSITORY / EXPERIMENTS))


def students(out: Path, seed: int) -> Iterator[list[Job]]:
    """The jobs after those of the demo: the starting model, then one student per experiment."""
    common = f"{TRAIN} {STUDENT_RATE} --seed {seed} --dataset_path {out}/data/demo.json"
    start = f"{common} --model_name {out}/new_student --epochs {START_EPOCHS} --output_dir {out}/start"
    yield [Job("start", "ft_main.py", start, "start/model")]
    for key in experiments():
        models = f"--student_name {out}/start/model --teacher_name {out}/teacher_dropout"
        epochs = f"--epochs {NOMINAL_EPOCHS} --stop_training_after_n_epochs {EPOCHS}"
        flags = f"--experiment_config_key {key} {models} {epochs} {common} --output_dir {out}/{key}"
        yield [Job(key, "kd_main.py", flags, f"{key}/model")]


def learn(out: Path, seed: int) -> None:
    """Run all jobs of one seed on one processor thread."""
    for group in study(out, seed):
        for job in group:
            if job.name in SETUP:
                run(job, out, 1)
    add_dropout(out / "teacher" / "model", out / "teacher_dropout")
    for group in students(out, seed):
        for job in group:
            run(job, out, 1)


def add_dropout(model: Path, copy: Path) -> None:
    """Copy a model folder and set the dropout in its config."""
    shutil.copytree(model, copy, dirs_exist_ok=True)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"dropout_rate": DROPOUT}, indent=2), encoding="utf-8")


def rows(folders: list[Path]) -> Iterator[tuple[str, ...]]:
    """The cells of the table: the teacher, then each experiment."""

    def by_seed(name: str, score: str) -> list[float]:
        runs = [json.loads((out / name / "run.json").read_text(encoding="utf-8")) for out in folders]
        return [run["scores"][score] for run in runs]

    def cells(values: list[float], digits: int) -> tuple[str, str]:
        return "  ".join(f"{value:.{digits}f}" for value in values), f"{sum(values) / len(values):.{digits}f}"

    plain_bleu, plain_nll = by_seed(BASELINE, "sacrebleu"), by_seed(BASELINE, "nll")
    for name in ("teacher_test", *experiments()):
        bleu, nll = by_seed(name, "sacrebleu"), by_seed(name, "nll")
        wins = sum(a > b for a, b in zip(bleu, plain_bleu, strict=True))
        lower = sum(a < b for a, b in zip(nll, plain_nll, strict=True))
        compared = "-" if name in ("teacher_test", BASELINE) else f"BLEU {wins}/{len(bleu)}, NLL {lower}/{len(nll)}"
        yield (name.removesuffix("_test"), *cells(bleu, 1), *cells(nll, 3), compared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds; one study per seed [1 2 3]")
    parser.add_argument(
        "--output_dir",
        default="outputs/experiments",
        help="folder of all outputs, with one folder per seed [outputs/experiments]",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 2, help="seeds that run in parallel [processors]"
    )
    args = parser.parse_args()
    out = Path(args.output_dir)
    folders = [out / str(seed) for seed in args.seeds]
    with ThreadPoolExecutor(min(args.workers, len(folders))) as pool:
        list(pool.map(learn, folders, args.seeds))
    write_table([COLUMNS, *rows(folders)], out)


if __name__ == "__main__":
    main()
