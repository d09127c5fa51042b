"""Commands run by several processes as torchrun starts them: in tests, and (as a script) in each of the processes.

One group of processes runs all commands of a test, one after another; starting it takes seconds.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.state import AcceleratorState

from src.config.cli import run_script

REPOSITORY = Path(__file__).parents[1]


class Command(NamedTuple):
    """A script's module, its flags and the number format of its models."""

    script: str
    argv: Sequence[str]
    in_float64: bool = False


def launched(n_processes: int, *words: str) -> list[str]:
    """The command line that runs a script in several processes on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}", *words]


def environment(**more: str) -> Mapping[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


def run_together(n_processes: int, commands: Sequence[Command], file: Path, **variables: str) -> None:
    """Run commands in several processes, with these variables; `file` and files beside it are written."""
    file.write_text(json.dumps(commands))
    line = launched(n_processes, str(Path(__file__).resolve()), str(file))
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=environment(**variables), check=False)
    assert done.returncode == 0, done.stderr
    for rank in range(n_processes):
        assert json.loads(Path(f"{file}.{rank}").read_text()) == [0] * len(commands), done.stderr


def run_forked(n_processes: int, commands: Sequence[Command]) -> None:
    """As `run_together`, but forked from this process: without a launcher and another import of the libraries."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(n_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(n_processes):
        if (child := os.fork()) == 0:
            try:
                os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
                AcceleratorState._reset_state(reset_partial_state=True)
                os._exit(any(run(command) for command in commands))
            except BaseException:  # noqa: BLE001  (it must not come to pytest, which runs in this copy, too)
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == n_processes * [0]


def run(command: Command) -> int:
    """Run a command in this process; returns its exit status."""
    with _number_format(in_float64=command.in_float64):
        return run_script(importlib.import_module(command.script).main, list(command.argv))


@contextmanager
def _number_format(*, in_float64: bool) -> Any:
    """In float64, sums in another order differ by less than 1e-5 after 60 updates."""
    from src.training import setup

    load: Any = setup.load_model
    if in_float64:
        setup.load_model = lambda *args, **kwargs: load(*args, **kwargs).double()
    try:
        yield
    finally:
        setup.load_model = load


if __name__ == "__main__":
    path = Path(sys.argv[1])
    statuses = [run(Command(*each)) for each in json.loads(path.read_text())]
    Path(f"{path}.{os.environ['RANK']}").write_text(json.dumps(statuses))
