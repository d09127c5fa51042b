"""Two processes of one thread beside one process of two threads: an update of distillation, sampling, and evaluation.

    python benchmarks/processes.py --data SPLITS.json --folder outputs/processes

Makes a teacher and a student from scratch (T5, vocabulary 8,000), then runs each script in both ways, in turns. Prints
the seconds at work (`seconds` in run.json, without the start of Python), medians over the turns, and their ratio.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
WAYS = {"1 process × 2 threads": (1, 2), "2 processes × 1 thread": (2, 1)}


def run(script: str, flags: list[object], processes: int = 1, threads: int = 2) -> None:
    """Run a script in several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, *launcher, script, *map(str, flags)]
    subprocess.run(
        words, cwd=REPOSITORY, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def models(folder: Path, data: Path) -> tuple[Path, Path]:
    """The folders of a teacher and a student with one tokenizer."""
    teacher, student = folder / "teacher", folder / "student"
    shared = ["--n_heads", 8, "--dropout", 0, "--overwrite", "True"]
    large = ["--d_model", 512, "--n_encoder_layers", 4, "--n_decoder_layers", 4, "--vocab_size", 8000]
    small = ["--d_model", 256, "--n_encoder_layers", 2, "--n_decoder_layers", 2, "--tokenizer", teacher]
    run("create_student_main.py", ["--output_dir", teacher, "--dataset_path", data, *large, *shared])
    run("create_student_main.py", ["--output_dir", student, *small, *shared])
    return teacher, student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset file with the splits train, dev and test")
    parser.add_argument("--folder", type=Path, default=Path("outputs/processes"), help="for what the runs write")
    parser.add_argument(
        "--rows", type=int, default=256, help="rows that are trained on, written for and evaluated [256]"
    )
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind [3]")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    whole = json.loads(given.data.read_text(encoding="utf-8"))
    some = {name: values[: given.rows] for name, values in whole["train"].items()}
    files = {"train": {"train": some}, "test": {"test": some}}
    for name, datasets in files.items():
        (folder / f"{name}.json").write_text(json.dumps(datasets), encoding="utf-8")
    train, test = folder / "train.json", folder / "test.json"
    teacher, student = models(folder, train)
    limits = ["--max_input_length", 64, "--max_labels_length", 48, "--num_beams", 1]
    kd = ["--experiment_config_key", "logits_kd", "--student_name", student, "--teacher_name", teacher, "--epochs", 1,
          "--dataset_path", train, "--batch_size", 32, "--max_gpu_batch_size", 16]  # fmt: skip
    gen = ["--model_name", teacher, "--dataset_path", train, "--generation_type", "sampling", "--batch_size", 16,
           "--num_return_sequences", 2]  # fmt: skip
    evaluate = ["--model_name", teacher, "--dataset_path", test, "--do_train", "False", "--batch_size", 16]
    rows = {"logits KD": ("kd_main.py", kd), "sampling": ("gen_main.py", gen), "evaluation": ("ft_main.py", evaluate)}
    print("| work | " + " | ".join(f"{way}, s" for way in WAYS) + " | ratio |\n|---|---:|---:|---:|")
    for name, (script, flags) in rows.items():
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(given.turns):
            for way, (processes, threads) in WAYS.items():
                out = folder / "run"
                shutil.rmtree(out, ignore_errors=True)
                run(script, [*flags, *limits, "--output_dir", out], processes, threads)
                seconds[way].append(json.loads((out / "run.json").read_text(encoding="utf-8"))["seconds"])
        one, two = (median(values) for values in seconds.values())
        print(f"| {name} | {one:.1f} | {two:.1f} | {one / two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
