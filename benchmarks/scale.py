"""Memory at scale: prepare, merge, train and generate on millions of rows in Arrow files, with stops and resumes.

    python benchmarks/scale.py --folder scratch/ --rows 10000000

Makes pairs of about 50 characters each in `--folder` (8 GB for ten million), runs the scripts on them and prints the
seconds and the peak memory of each: anonymous (what the process holds) and resident (with the pages of mapped files,
which the system takes back when it needs them). Training and generation are stopped after 100 updates or batches and
continued for 100 more. Linux only.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

REPOSITORY = Path(__file__).parents[1]
WORDS = np.array(["the", "a", "cat", "dog", "bird", "house", "tree", "sees", "hears", "likes", "big", "small", "old"])
BATCH = 10_000  # rows
MIB = 2**20


def write(path: Path, batches: Iterator[dict[str, list[str]]], names: list[str]) -> None:
    """An Arrow file of text columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.string()) for name in names])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for columns in batches:
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema))


def texts(n: int) -> Iterator[list[str]]:
    """`n` different texts, in batches."""
    draw = np.random.default_rng(0)
    for start in range(0, n, BATCH):
        count = min(BATCH, n - start)
        words = WORDS[draw.integers(0, len(WORDS), (count, 8))]
        yield [f"{' '.join(row)} {letters(number)}." for number, row in enumerate(words, start)]


def letters(number: int) -> str:
    """A number as a word."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def run(name: str, *words: object, until: Callable[[], bool] | None = None) -> None:
    """Run a script and print what it took; stop it once `until` is true."""
    began, anonymous, resident = time.monotonic(), 0, 0
    with subprocess.Popen([sys.executable, *map(str, words)], cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        watched, is_stopped = psutil.Process(process.pid), False
        while process.poll() is None:
            try:
                memory = watched.memory_info()
            except psutil.NoSuchProcess:
                break
            anonymous, resident = max(anonymous, memory.rss - memory.shared), max(resident, memory.rss)
            if until is not None and not is_stopped and until():
                process.send_signal(signal.SIGTERM)
                is_stopped = True
            time.sleep(0.05)
    expected = 143 if until is not None else 0
    assert process.returncode == expected, f"{name}: exit status {process.returncode}"
    print(f"| {name} | {time.monotonic() - began:.0f} | {anonymous / MIB:,.0f} | {resident / MIB:,.0f} |", flush=True)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000_000)
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    raw, data, written = folder / "raw.arrow", folder / "data.arrow", folder / "generated.arrow"
    pairs = ({"text": each, "target": each} for each in texts(given.rows))
    write(raw / "train.arrow", pairs, ["text", "target"])
    prepare, model = "prepare_datasets_main.py", folder / "model"
    print("| stage | s | peak anonymous MiB | peak resident MiB |\n|---|---:|---:|---:|")
    small = ["--dataset_name", "demo", "--train_size", 500, "--output_dir", folder]
    run("prepare the demo corpus", prepare, *small, "--file_name", "small.json")
    sizes = ["--d_model", 32, "--n_heads", 2, "--n_encoder_layers", 1, "--n_decoder_layers", 1, "--vocab_size", 500]
    run("create a student", "create_student_main.py", "--output_dir", model, "--dataset_path", folder / "small.json",
        *sizes, "--overwrite", "True")  # fmt: skip
    run("prepare", prepare, "--output_dir", folder, "--file_name", data.name, "--dataset_name", "", "--val_size", 500,
        "--test_size", 500, "--dataset_path", raw)  # fmt: skip
    half, known = given.rows // 2, folder / "half.arrow"
    twice = ({"text": each, "generated": each} for _ in range(2) for each in texts(half))
    write(written / "train.arrow", twice, ["text", "generated"])
    pairs = ({"text": each, "target": each} for each in texts(half))
    write(known / "train.arrow", pairs, ["text", "target"])
    run("merge: 2 pseudo-targets of half the inputs", prepare, "--output_dir", folder, "--file_name", "merged.arrow",
        "--original_dataset_path", known, "--generation_dataset_path", written)  # fmt: skip
    shared = ["--dataset_path", data, "--max_input_length", 48, "--max_labels_length", 48, "--num_beams", 1]
    train = ["ft_main.py", "--model_name", model, "--output_dir", folder / "ft", *shared, "--log_every_n_steps", 100,
             "--metric_for_best_model", "nll"]  # fmt: skip
    losses = folder / "ft" / "train_losses.csv"
    run("train: start, 100 updates", *train, until=lambda: lines(losses) > 1)
    run("train: resume, 100 more", *train, until=lambda: lines(losses) > 2)
    gen = ["gen_main.py", "--model_name", model, "--output_dir", folder / "gen", *shared, "--batch_size", 32,
           "--split_for_generation", "train"]  # fmt: skip
    partial = folder / "gen" / "generated_datasets.partial.jsonl"
    run("generate: start, 100 batches", *gen, until=lambda: lines(partial) > 100)
    run("generate: resume, 100 more", *gen, until=lambda: lines(partial) > 200)


if __name__ == "__main__":
    main()
