"""How fast, how small: this project beside what a user would otherwise run, in one table. `make bench` runs it all.

Each row is one kind of work of one size (speed/rows.py), done by ours and by one or two others, each in a process of
its own. They take turns; what is shown are medians. Tokens: valid target tokens of a training step, or each generated
target's own tokens up to EOS. Peak memory: above the weights of the models (gradients, optimizer and activations). The
floor: the time that our matrix products would take at the rate of large ones, measured in the same turns; who needs
fewer products for a token can be above it.
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

from benchmarks.speed import report  # noqa: E402 (the path first)
from benchmarks.speed.rows import ROWS, Row  # noqa: E402
from benchmarks.speed.workers import Settings, available_memory, measure  # noqa: E402
from src.config.errors import UserError  # noqa: E402
from src.data.formats import read_datasets
from src.data.schema import training_splits
from src.storage.atomic import atomic_write
from src.storage.json_files import write_json

QUICK_REPETITIONS = 3
TOKENS_OF_A_WORD = 1.3
MEMORY_SHARE = 0.9  # of the available memory, for one process
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}


def chosen_rows(names: list[str] | None, rows: tuple[Row, ...] = ROWS) -> list[Row]:
    """The rows named, in the table's order; all by default."""
    known = [row.name for row in rows]
    for name in names or ():
        if name not in known:
            raise UserError(f"--rows: unknown row '{name}'; possible: {' '.join(known)}")
    return [row for row in rows if names is None or row.name in names]


def real_lengths(path: str, n: int = 4_096) -> tuple[tuple[int, int], ...]:
    """Tokens of inputs and targets of a dataset's training pairs, drawn at random; from words, EOS included."""
    datasets = read_datasets(path)
    columns = datasets[training_splits(datasets)[0]]
    pairs = list(zip(columns["text"], columns["target"], strict=True))
    drawn = random.Random(0).sample(pairs, min(n, len(pairs)))
    return tuple((_n_tokens(text), _n_tokens(target)) for text, target in drawn)


def _n_tokens(text: str) -> int:
    return round(TOKENS_OF_A_WORD * len(text.split())) + 1


def run(rows: list[Row], settings: Settings) -> Iterator[tuple[Row, list[report.Measured]]]:
    """Measure row by row, saying what is running."""
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
    """results.json, results.md and results.png in a folder, and the table in a document."""
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
        "--rows", nargs="+", metavar="NAME", help=f"some of: {' '.join(row.name for row in ROWS)} [all]"
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REPETITIONS} repetitions at most")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each process [all processors]")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where it runs [cpu]")
    parser.add_argument("--data", metavar="FILE", help="a dataset file: its lengths, instead of drawn ones")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one repetition [600]")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"put the table between {report.BEGIN} and its end")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"), help="[outputs/bench]")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, rows: tuple[Row, ...] = ROWS) -> int:
    """Returns 1 if an implementation failed for another reason than memory or time."""
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
        if flags.write is not None:  # before hours of work, not after them
            report.between_markers(flags.write.read_text(encoding="utf-8"), "")
        where = report.machine(flags.device, flags.threads)
        results: report.Results = []
        for result in run(chosen_rows(flags.rows, rows), settings):
            results.append(result)
            write(results, where, flags.output_dir, None)  # what is known, should the rest be stopped
        write(results, where, flags.output_dir, flags.write)
    except (UserError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n" + report.summary(results, where))
    return int(any(each.note.startswith("failed") for _, measured in results for each in measured))


if __name__ == "__main__":
    sys.exit(main())
