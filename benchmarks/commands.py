"""Run commands of the suite one after another or side by side, and write the table that they lead to."""

import csv
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

REPOSITORY = Path(__file__).resolve().parents[1]
GENERATED = "generated_datasets.json"
printing = Lock()


@dataclass(frozen=True)
class Job:
    """One command of the study. `result`: path in the output folder that exists only when the command has finished."""

    name: str
    script: str
    flags: str
    result: str


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
