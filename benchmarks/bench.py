"""Compare the speed and memory of this suite with other tools, in one table. `make bench` runs all rows.

A row is one workload (speed/rows.py), run by this suite and by one or two other implementations. Each implementation
has its own process. They take turns, and the table shows medians.

Tokens: valid target tokens of a training step, or the tokens of each generated target up to EOS. Peak memory: memory
above the model weights (gradients, optimizer and activations). Floor: the time our matrix products would take at the
speed of large ones, measured in the same turns. An implementation that needs fewer products per token can exceed 100 %.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed import report  # noqa: E402 (needs the path above)
from benchmarks.speed.rows import ROWS, Row  # noqa: E402
from benchmarks.speed.workers import Settings, available_memory, measure  # noqa: E402
from src.config.errors import UserError  # noqa: E402
from src.data.formats import read_datasets
from src.data.schema import check_trainable, training_splits
from src.storage.atomic import atomic_write
from src.storage.json_files import write_json

QUICK_REPETITIONS = 3
TOKENS_OF_A_WORD = 1.3
MEMORY_SHARE = 0.9  # of the available memory, for one process
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}


def chosen_rows(names: list[str] | None, rows: tuple[Row, ...] = ROWS) -> list[Row]:
    """The named rows in the order of the table; all rows if no names are given."""
    known = [row.name for row in rows]
    for name in names or ():
        if name not in known:
            raise UserError(f"--rows: unknown row '{name}'; possible: {' '.join(known)}")
    return [row for row in rows if names is None or row.name in names]


def real_lengths(path: str, n: int = 4_096) -> tuple[tuple[int, int], ...]:
    """Input and target lengths of a random sample of training pairs, in tokens, estimated from words; EOS counts."""
    datasets = read_datasets(path)
    check_trainable(datasets, path)
    columns = datasets[training_splits(datasets)[0]]
    pairs = list(zip(columns["text"], columns["target"], strict=True))
    drawn = random.Random(0).sample(pairs, min(n, len(pairs)))
    return tuple((_n_tokens(text), _n_tokens(target)) for text, target in drawn)


def _n_tokens(text: str) -> int:
    return round(TOKENS_OF_A_WORD * len(text.split())) + 1


def run(rows: list[Row], settings: Settings) -> Iterator[tuple[Row, list[report.Measured]]]:
    """Measure the rows one by one, and print which one is running."""
    for row in rows:
        tell = partial(_tell, row.name)
        tell(f"{', '.join(row.implementations)}")
        memory = available_memory() if settings.device == "cpu" else None
        with tempfile.TemporaryDirectory() as scratch:
            limit = None if memory is None else int(MEMORY_SHARE * memory)
            yield row, measure(row, replace(settings, scratch=Path(scratch), memory=limit), tell)


def _tell(name: str, line: str) -> None:
    print(f"[{name}] {line}", flush=True)


def write(results: report.Results, where: dict, out: Path, document: Path | None) -> None:
    """Write results.json, results.md and results.png into a folder, and the table into a document."""
    out.mkdir(parents=True, exist_ok=True)
    text = report.summary(results, where)
    write_json(out / "results.json", report.as_json(results, where), indent=1)
    with atomic_write(out / "results.md") as file:
        file.write(text)
    if document is not None:
        changed = report.between_markers(document.read_text(encoding="utf-8"), text)
        with atomic_write(document) as file:
            file.write(changed)
    if not report.plot(results, out / "results.png"):
        print("no plot: matplotlib is not installed (requirements-bench.txt)")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help=f"rows to run: {' '.join(row.name for row in ROWS)} [all]"
    )
    parser.add_argument("--quick", action="store_true", help=f"at most {QUICK_REPETITIONS} repetitions")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads per process [all processors]")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="device to run on [cpu]")
    parser.add_argument("--data", metavar="FILE", help="dataset file whose lengths are used instead of random ones")
    parser.add_argument("--timeout", type=float, default=600.0, help="time limit of one repetition in seconds [600]")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help=f"write the table between {report.BEGIN} and {report.END} of FILE"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/bench"), help="folder of the results [outputs/bench]"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, rows: tuple[Row, ...] = ROWS) -> int:
    """Return 1 if an implementation failed for a reason other than memory or time, 2 if an argument is wrong."""
    flags = parse(argv)
    os.environ |= {**ENVIRONMENT, "OMP_NUM_THREADS": str(flags.threads)}
    try:
        settings = Settings(
            scratch=flags.output_dir,
            threads=flags.threads,
            device=flags.device,
            timeout=flags.timeout,
            repetitions=QUICK_REPETITIONS if flags.quick else None,
            pairs=real_lengths(flags.data) if flags.data else (),
        )
        if flags.write is not None:  # fail before hours of work, not after
            report.between_markers(flags.write.read_text(encoding="utf-8"), "")
        where = report.machine(flags.device, flags.threads)
        results: report.Results = []
        for result in run(chosen_rows(flags.rows, rows), settings):
            results.append(result)
            write(results, where, flags.output_dir, None)  # keep partial results if the benchmark is stopped
        write(results, where, flags.output_dir, flags.write)
    except (UserError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n" + report.summary(results, where))
    return int(any(each.note.startswith("failed") for _, measured in results for each in measured))


if __name__ == "__main__":
    sys.exit(main())
