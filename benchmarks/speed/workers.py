"""Run each implementation in its own process, in turns, so that each has its own memory and threads.

This module has no heavy imports: only the processes load torch.
"""

import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.rows import Row

LIMIT = "limit"  # name of the process that measures the machine
PRODUCTS = "products"  # name of the process that repeats only the matrix products of the row's first implementation
PAUSE = 0.3  # seconds between turns: threads of some libraries spin for 0.2 s after their work
STOP = ""
PATIENCE = 2.0  # seconds before a process is killed
FORMATS = ("float32", "bfloat16")  # without hardware support, bfloat16 products are emulated and slower than float32
NEEDS = {"trl": "trl", "ctranslate2": "ctranslate2"}  # implementation: required package


@dataclass(frozen=True)
class Settings:
    """How a row is measured. memory: limit of a process in bytes; timeout: limit of one answer in seconds."""

    scratch: Path  # folder for files of an implementation
    threads: int = 1
    device: str = "cpu"
    timeout: float = 600.0
    memory: int | None = None
    repetitions: int | None = None  # at most
    pairs: tuple[tuple[int, int], ...] = ()  # input and target lengths of real data, in tokens


@dataclass
class Measured:
    """The result of one implementation. `flops_per_token`: those of ours; `limit`: FLOP/s of products (`limit_of`)."""

    implementation: str
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    peak: int | None = None
    limit: float | None = None
    flops_per_token: float | None = None
    note: str = ""  # why there are no numbers

    @property
    def rate(self) -> float | None:
        """Tokens per second, the median."""
        if not self.seconds:
            return None
        return median(n / seconds for n, seconds in zip(self.tokens, self.seconds, strict=True))

    @property
    def share_of_floor(self) -> float | None:
        """Minimum time of our matrix products per token on this machine, divided by the measured time per token."""
        if self.rate is None or self.limit is None or self.flops_per_token is None:
            return None
        return self.rate * self.flops_per_token / self.limit


class DidNotFitError(Exception):
    """An implementation exceeded the memory or time limit."""


class FailedError(Exception):
    """An implementation ended with an error, which its process printed."""


class Worker:
    """A process with one implementation; it answers one question at a time."""

    def __init__(self, row: Row, name: str, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.timeout = settings.timeout
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, row, name, settings), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, question: str) -> Any:
        """Call a method by its name and return the result; "" waits until the implementation is loaded.

        Raises DidNotFitError or FailedError.
        """
        try:
            if question:
                self.connection.send(question)
            if not self.connection.poll(self.timeout):
                raise DidNotFitError(f"no answer in {self.timeout:g} s")
            what, answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise _ended(self.process.exitcode) from None
        if what == "memory":
            raise DidNotFitError(answer)
        return answer

    def stop(self) -> None:
        """End the process: after its current answer, or by force after PATIENCE seconds. Can be called twice."""
        if self.connection.closed:
            return
        with suppress(BrokenPipeError):
            self.connection.send(STOP)
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()
        self.connection.close()


def _ended(status: int | None) -> Exception:
    if status is not None and status < 0:
        return DidNotFitError(f"killed by signal {-status}")
    return FailedError(f"ended with status {status}")


def serve(connection: Connection, row: Row, name: str, settings: Settings) -> None:
    """The main function of a process: load, then answer questions until the pipe closes."""
    import torch

    from benchmarks.speed.contestants import Contestant, Limit

    torch.set_num_threads(settings.threads)
    if settings.memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (settings.memory, settings.memory))
    try:
        contestant = (Limit if name == LIMIT else Contestant)(row, name, settings)
        connection.send(("answer", None))
        while question := connection.recv():
            connection.send(("answer", getattr(contestant, question)()))
    except EOFError:
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        connection.send(("memory", f"out of memory{_with_limit(settings.memory)}"))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means out of memory. torch raises a plain RuntimeError for it on a CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        part in text for part in ("allocate memory", "out of memory", "bad_alloc")
    )


def _with_limit(memory: int | None) -> str:
    return "" if memory is None else f" ({memory / 1e9:.1f} GB)"


@contextmanager
def stopping(worker: Worker) -> Iterator[Worker]:
    try:
        yield worker
    finally:
        worker.stop()


def measure(row: Row, settings: Settings, tell: Callable[[str], None]) -> list[Measured]:
    """Measure the implementations of a row: all are loaded, and they take turns repetition by repetition.

    In a row with one repetition they run one after another, so that each has all of the memory.
    """
    results = {name: Measured(name, note=_missing(name)) for name in row.implementations}
    names = [name for name, result in results.items() if not result.note]
    for group in [[name] for name in names] if row.repetitions == 1 else [names]:
        race = Race(row, {name: results[name] for name in group}, settings, tell)
        with race.stack:
            race.run()
    counted = results[row.implementations[0]].flops_per_token
    for result in results.values():
        result.flops_per_token = counted
    return list(results.values())


def limit_of(implementation: str, measured: list[dict[str, float]]) -> float:
    """Median FLOP/s in the number format of an implementation, or in float32 if that is faster."""
    formats = FORMATS if implementation.endswith("bf16") else FORMATS[:1]
    return median(max(rates[each] for each in formats) for rates in measured)


def _missing(name: str) -> str:
    """Note for an implementation that is not installed; empty if it is."""
    there = name not in NEEDS or importlib.util.find_spec(NEEDS[name])
    return "" if there else "not installed (requirements-bench.txt)"


class Race:
    """Implementations that take turns with each other and with the limit measurement. Close its `stack` at the end."""

    def __init__(self, row: Row, results: dict[str, Measured], settings: Settings, tell: Callable[[str], None]) -> None:
        self.row, self.results, self.settings, self.tell = row, results, settings, tell
        self.stack = ExitStack()
        self.workers: dict[str, Worker] = {}

    def run(self) -> None:
        """Fill the results."""
        repetitions = min(self.row.repetitions, self.settings.repetitions or self.row.repetitions)
        limit = self._start(LIMIT)
        limit.ask("")
        for name in self.results:
            self.workers[name] = self._start(name)
            self._ask(name, "")
        if self.row.repetitions > 1:
            self._round("warm-up", limit, into={})
        limits = []
        for i in range(repetitions):
            limits += self._round(f"{i + 1} of {repetitions}", limit, into=self.results)
        for name, result in self.results.items():
            result.peak = self._ask(name, "peak")
            result.limit = limit_of(name, limits)
        ours = self.row.implementations[0]
        if counted := self._ask(ours, "flops"):
            self.results[ours].flops_per_token = counted["flops"] / counted["tokens"]

    def _start(self, name: str) -> Worker:
        return self.stack.enter_context(stopping(Worker(self.row, name, self.settings)))

    def _round(self, what: str, limit: Worker, *, into: dict[str, Measured]) -> list[dict[str, float]]:
        """Run one repetition of each and store it in `into`; return the limits, measured after each repetition."""
        limits = []
        for name in self.results:
            time.sleep(PAUSE)
            answer = self._ask(name, "timed")
            time.sleep(PAUSE)
            limits.append(limit.ask("timed"))
            if answer is None:
                continue
            self.tell(f"{name}: {what}, {answer['seconds']:.2f} s, {answer['tokens']} tokens")
            if name in into:
                into[name].seconds.append(answer["seconds"])
                into[name].tokens.append(answer["tokens"])
        return limits

    def _ask(self, name: str, question: str) -> Any:
        """The answer, or None if this implementation has failed, now or earlier."""
        if name not in self.workers:
            return None
        try:
            return self.workers[name].ask(question)
        except DidNotFitError as error:
            self.results[name].note = f"did not fit: {error}"
        except FailedError as error:
            self.results[name].note = f"failed: {error}"
        self.tell(f"{name}: {self.results[name].note}")
        self.workers.pop(name).stop()
        return None


def available_memory() -> int | None:
    """Available memory in bytes on Linux; None elsewhere."""
    meminfo = Path("/proc/meminfo")
    if sys.platform != "linux" or not meminfo.exists():
        return None
    lines = meminfo.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
