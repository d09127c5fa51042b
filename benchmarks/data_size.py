"""Time and peak memory of merging, reading, tokenizing and batching the largest dataset of the study.

    python benchmarks/data_size.py --output_dir outputs/data_size
    python benchmarks/data_size.py --output_dir outputs/data_size_arrow --form arrow

The dataset has 35,000 inputs, 7,000 of them labeled, with 48 pseudo-targets each. A line is 4 to 24 made-up words.
"""

import argparse
import multiprocessing
import random
import resource
import sys
import time
from pathlib import Path

from api_size import REPOSITORY, made_up_words, run, write_student

BATCH = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=35_000, help="inputs, a fifth of them labeled")
    parser.add_argument("--targets", type=int, default=48, help="pseudo-targets per input")
    parser.add_argument("--form", choices=("json", "arrow"), default="json", help="form of the files")
    flags = parser.parse_args()
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    original, generated = (flags.output_dir / f"{name}.{flags.form}" for name in ("original", "generated"))
    words = made_up_words()
    if not generated.exists():
        write(original, generated, flags, words)
        write_student(flags.output_dir / "student", words)
    started = time.time()
    run("prepare_datasets_main.py", f"--original_dataset_path {original} --generation_dataset_path {generated}"
        f" --output_dir {flags.output_dir} --file_name merged.{flags.form}")  # fmt: skip
    merged = flags.output_dir / f"merged.{flags.form}"
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # kilobytes on Linux
    size = sum(file.stat().st_size for file in (merged.iterdir() if merged.is_dir() else [merged]))
    print(f"merged in {time.time() - started:.0f} s, peak {peak / 1e9:.2f} GB, {size / 1e9:.2f} GB")
    reading = multiprocessing.get_context("spawn").Process(target=read, args=(merged, flags.output_dir / "student"))
    reading.start()
    reading.join()


def read(merged: Path, student: Path) -> None:
    """Read and tokenize as a training run does before its first step; print times and peak memory."""
    sys.path.insert(0, str(REPOSITORY))
    from src.data.formats import read_datasets
    from src.data.schema import training_splits
    from src.models.loading import load_tokenizer
    from src.tokens.batch import collate
    from src.tokens.order import epoch_order
    from src.tokens.preprocessing import Preprocessor
    from src.tokens.token_cache import TokenCache
    from src.tokens.tokenized import TokenizedDatasets

    preprocessor = Preprocessor(load_tokenizer(str(student)), True, max_input_length=48, max_labels_length=48)
    started = time.time()
    datasets = read_datasets(merged)
    times = {"read": time.time() - started}
    data = TokenizedDatasets(datasets, preprocessor, TokenCache.beside(str(merged)))
    names = training_splits(datasets)
    for name in names:
        started = time.time()
        split = data.split(name)
        times["first split" if name == names[0] else "each further split"] = time.time() - started
        if name == names[0]:
            started = time.time()
            collate(preprocessor, split, epoch_order(len(split), seed=0, epoch=0)[:BATCH])
            times["first batch, with the epoch's order"] = time.time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = sum(data.rows(name) for name in names)
    print("  ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items()))
    print(f"{rows:,} rows tokenized, peak {peak / 1e9:.2f} GB")


def write(original: Path, generated: Path, flags: argparse.Namespace, words: list[str]) -> None:
    """Write the dataset and a file of pseudo-targets like the one of gen_main.py."""
    sys.path.insert(0, str(REPOSITORY))
    from src.data.writers import write_datasets

    rng = random.Random(2)

    def sentence() -> str:
        return " ".join(rng.choices(words, k=rng.randint(4, 24)))

    texts = [sentence() for _ in range(flags.rows)]
    n_labeled = flags.rows // 5
    splits = {"train": texts[:n_labeled], "unlabeled": texts[n_labeled:]}
    labeled = {"text": splits["train"], "target": [sentence() for _ in splits["train"]]}
    write_datasets(original, {"train": labeled, "unlabeled": {"text": splits["unlabeled"]}})
    rows = {split: [text for text in inputs for _ in range(flags.targets)] for split, inputs in splits.items()}
    written = {split: {"text": inputs, "generated": [sentence() for _ in inputs]} for split, inputs in rows.items()}
    write_datasets(generated, written)


if __name__ == "__main__":
    main()
