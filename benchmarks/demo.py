"""The whole study in miniature (`make demo`): data, teacher, pseudo-targets, three students, one table.

It runs the scripts of this repository on the built-in corpus with T5 models trained from scratch, and prints each
command. Finished steps are skipped and interrupted ones continue, so you can run it again at any time.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from threading import Lock

REPOSITORY = Path(__file__).resolve().parents[1]
K = 4  # pseudo-targets per input
LENGTHS = "--max_input_length 48 --max_labels_length 48 --task_prompt modern:"
TRAIN = (
    f"{LENGTHS} --num_beams 1 --metrics sacrebleu chrf --metric_for_best_model sacrebleu "
    "--batch_size 16 --max_gpu_batch_size 16 --save_checkpoint_every_n_steps 1"
)
DEMO = "--dataset_name demo --val_size 200 --test_size 500"
TEACHER = "--d_model 80 --d_ff 224 --n_heads 4 --n_encoder_layers 1 --n_decoder_layers 1 --dropout 0"
STUDENT = "--d_model 48 --d_ff 128 --n_heads 4 --n_encoder_layers 1 --n_decoder_layers 1 --dropout 0"
TEACHER_RATE, STUDENT_RATE = "--learning_rate 0.004", "--learning_rate 0.008"
GENERATED = "generated_datasets.json"
SPEED_ROWS, SPEED_BATCH = 256, 32  # throughput is measured by greedy decoding of test inputs
MODELS = {  # run that scored the model on the students' test split: name of the model in the table
    "teacher_test": "teacher",
    "student_finetuned": "student, fine-tuned",
    "student_logits": "student, logits KD",
    "student_pseudo_targets": f"student, logits KD + {K} sampled pseudo-targets",
}
COLUMNS = ("model", "BLEU", "NLL", "gap closed % (BLEU)", "gap closed % (NLL)", "parameters", "sentences/s")
printing = Lock()


@dataclass(frozen=True)
class Job:
    """One command of the study. `result`: path in the output folder that exists only when the command has finished."""

    name: str
    script: str
    flags: str
    result: str


@dataclass(frozen=True)
class Row:
    """One line of the final table."""

    model: str
    bleu: float
    nll: float
    parameters: int
    sentences_per_second: float


def study(out: Path, seed: int) -> Iterator[list[Job]]:
    """The commands in groups. Groups run one after another; the jobs of a group run in parallel.

    The teacher trains on 12,000 other pairs (drawn with another seed), which replace the pre-training of a large
    model. The students get 2,000 labeled pairs and 8,000 unlabeled inputs.
    """
    small, large, merged = (f"{out}/data/{name}.json" for name in ("demo", "teacher", "sampling"))
    teacher = f"{out}/teacher/model"
    sampling = (
        f"--model_name {teacher} --dataset_path {small} {LENGTHS} --split_for_generation unlabeled train "
        f"--generation_type sampling --num_return_sequences {K} --add_original_data True --batch_size 128"
    )

    def prepare(name: str, flags: str, data_seed: int = seed) -> Job:
        flags += f" --file_name {name}.json --seed {data_seed} --output_dir {out}/data"
        return Job(f"data {name}", "prepare_datasets_main.py", flags, f"data/{name}.json")

    def create(name: str, flags: str) -> Job:
        flags = f"--family t5 {flags} --seed {seed} --output_dir {out}/new_{name}"
        return Job(f"new {name}", "create_student_main.py", flags, f"new_{name}")

    def train(name: str, script: str, flags: str) -> Job:
        return Job(name, script, f"{flags} {TRAIN} --seed {seed} --output_dir {out}/{name}", f"{name}/model")

    def distill(name: str, data: str, flags: str) -> Job:
        models = f"--student_name {out}/new_student --teacher_name {teacher} --dataset_path {data}"
        return train(name, "kd_main.py", f"--experiment_config_key logits_kd {models} {flags} {STUDENT_RATE}")

    yield [
        prepare("demo", f"{DEMO} --train_size 2000 --unlabeled_split True --unlabeled_size 8000"),
        prepare("teacher", f"{DEMO} --train_size 12000", seed + 1),
    ]
    yield [create("teacher", f"{TEACHER} --vocab_size 1500 --dataset_path {small}")]
    yield [create("student", f"{STUDENT} --tokenizer {out}/new_teacher")]
    yield [
        train(
            "teacher", "ft_main.py", f"--model_name {out}/new_teacher --dataset_path {large} --epochs 8 {TEACHER_RATE}"
        ),
        train(
            "student_finetuned",
            "ft_main.py",
            f"--model_name {out}/new_student --dataset_path {small} --epochs 36 {STUDENT_RATE}",
        ),
    ]
    yield [
        Job(
            "sampling", "gen_main.py", f"{sampling} --seed {seed} --output_dir {out}/sampling", f"sampling/{GENERATED}"
        ),
        distill("student_logits", small, "--epochs 40 --stop_training_after_n_epochs 30 --ft_steps_at_end 6"),
        train("teacher_test", "ft_main.py", f"--do_train False --dataset_path {small} --model_name {teacher}"),
    ]
    yield [prepare("sampling", f"--original_dataset_path {small} --generation_dataset_path {out}/sampling/{GENERATED}")]
    yield [distill("student_pseudo_targets", merged, "--epochs 9 --stop_training_after_n_epochs 7 --ft_steps_at_end 1")]


def run(job: Job, out: Path, threads: int) -> None:
    """Run one command. Its output goes to the terminal, its progress bars go to a log. A failure ends the study."""
    command = [sys.executable, *shlex.split(f"{job.script} {job.flags}")]
    if (out / job.result).exists():
        return tell(job.name, "already done")
    tell(job.name, f"$ python {shlex.join(command[1:])}")
    started = time.monotonic()
    log = out / "logs" / f"{job.name.replace(' ', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with log.open("a", encoding="utf-8") as errors, subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            tell(job.name, line.rstrip())
    if process.returncode:
        tell(job.name, f"failed with exit status {process.returncode}; last lines of {log}:")
        print("\n".join(log.read_text(encoding="utf-8").splitlines()[-5:]), file=sys.stderr)
        raise SystemExit(process.returncode)
    return tell(job.name, f"{(time.monotonic() - started) / 60:.1f} min")


def tell(name: str, line: str) -> None:
    with printing:
        print(f"[{name}] {line}", flush=True)


def measure(out: Path, threads: int) -> list[Row]:
    """Read the test scores of the runs; measure the size and speed of each model, one after another."""
    import torch

    sys.path.insert(0, str(REPOSITORY))
    from src.data.formats import read_datasets
    from src.decoding.settings import decoding_of
    from src.evaluation.evaluate import Evaluator
    from src.models.loading import load_model, load_tokenizer
    from src.runs.records import read_run
    from src.tokens.preprocessing import Preprocessor
    from src.tokens.tokenized import TokenizedDatasets

    torch.set_num_threads(threads)
    datasets = read_datasets(out / "data" / "demo.json", max_rows=SPEED_ROWS)
    decoding = decoding_of("beam_search", num_beams=1, targets_per_input=1, max_new_tokens=48)
    rows = []
    for folder, name in MODELS.items():
        model = load_model(str(out / folder / "model"))
        preprocessor = Preprocessor(load_tokenizer(str(out / folder / "model")), True, 48, 48, "modern:")
        split = TokenizedDatasets(datasets, preprocessor).split("test")
        evaluator = Evaluator(preprocessor, decoding, ("sacrebleu",), SPEED_BATCH, torch.device("cpu"))
        evaluator.predict(model, split)  # warm-up
        started = time.monotonic()
        predictions = evaluator.predict(model, split)
        speed = len(predictions) / (time.monotonic() - started)
        scores = read_run(out / folder).description.scores
        rows.append(Row(name, scores["sacrebleu"], scores["nll"], model.num_parameters(), speed))
    return rows


def cells(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """The cells of the table. Gap closed: 100 (x − S) / (T − S), with S the fine-tuned student and T the teacher."""
    teacher, student = rows[0], rows[1]

    def closed(value: float, start: float, goal: float) -> str:
        return str(round(100 * (value - start) / (goal - start))) if goal != start else "-"

    for row in rows:
        yield (
            row.model,
            f"{row.bleu:.1f}",
            f"{row.nll:.3f}",
            closed(row.bleu, student.bleu, teacher.bleu),
            closed(row.nll, student.nll, teacher.nll),
            f"{row.parameters:,}",
            f"{row.sentences_per_second:.0f}",
        )


def write_table(lines: list[tuple[str, ...]], out: Path) -> None:
    """Print a table whose first line is the header, and write it to table.md and table.csv."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(
            zip(line, widths, strict=True))) + " |"
        for line in lines
    ]  # fmt: skip
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    print("\n" + "\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="seed of the data, weights and training [1]")
    parser.add_argument("--output_dir", default="outputs/demo", help="folder of all outputs [outputs/demo]")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2, help="processor threads [all]")
    args = parser.parse_args()
    out = Path(args.output_dir)
    started = time.monotonic()
    for group in study(out, args.seed):
        workers = min(len(group), args.threads)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(run, group, repeat(out), repeat(args.threads // workers)))
    write_table([COLUMNS, *cells(measure(out, args.threads))], out)
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes. Table: {out}/table.md; distilled student: ", end="")
    print(f"{out}/student_pseudo_targets/model")


if __name__ == "__main__":
    main()
