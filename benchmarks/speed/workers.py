"""Processes that take turns: each holds one implementation, so that its memory and its threads are its own.

Imports nothing heavy: torch is loaded by the processes alone.
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

LIMIT = "limit"  # the name of the process that measures the machine
PRODUCTS = "products"  # of the one that repeats the matrix products of the row's first implementation, and no more
PAUSE = 0.3  # seconds between turns: threads of some libraries spin for 0.2 s after their work
STOP = ""
PATIENCE = 2.0  # seconds that a process has to end by itself
FORMATS = ("float32", "bfloat16")  # a machine without products in bfloat16 emulates them, slower than float32
NEEDS = {"trl": "trl", "ctranslate2": "ctranslate2"}  # implementation: what must be installed for it


@dataclass(frozen=True)
class Settings:
    """How a row is measured. memory: bytes that a process may ask for; timeout: seconds that it may take to answer."""

    scratch: Path  # a folder of the row's, for what an implementation must have on disk
    threads: int = 1
    device: str = "cpu"
    timeout: float = 600.0
    memory: int | None = None
    repetitions: int | None = None  # at most
    pairs: tuple[tuple[int, int], ...] = ()  # tokens of inputs and targets of real data


@dataclass
class Measured:
    """What became of one implementation. `flops_per_token`: of ours; `limit`: FLOP/s of products (`limit_of`)."""

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
        """The least time that ours' matrix products need on this machine, over the time taken for a token."""
        if self.rate is None or self.limit is None or self.flops_per_token is None:
            return None
        return self.rate * self.flops_per_token / self.limit


class DidNotFitError(Exception):
    """An implementation needed more memory or time than there is."""


class FailedError(Exception):
    """An implementation ended with an error, which its process has printed."""


class Worker:
    """A process with one implementation; it answers questions one at a time."""

    def __init__(self, row: Row, name: str, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.timeout = settings.timeout
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, row, name, settings), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, question: str) -> Any:
        """The answer to a method's name; "" asks whether it has loaded. Raises DidNotFitError or FailedError."""
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
        """End the process: as soon as it has answered, or by force if that takes long. May be called again."""
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
    """A process's whole life: load, then answer questions until the pipe closes."""
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
    """torch's allocator for the processor raises plain RuntimeErrors; the GPU's is one of its own."""
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
    """The row's implementations in their processes, side by side and one repetition each in turn.

    Those of a row of one repetition run one after another, each with the machine's memory to itself.
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
    """The median of FLOP/s measured by format: in an implementation's own, or in float32 where that is faster."""
    formats = FORMATS if implementation.endswith("bf16") else FORMATS[:1]
    return median(max(rates[each] for each in formats) for rates in measured)


def _missing(name: str) -> str:
    """What to say of an implementation that is not installed."""
    there = name not in NEEDS or importlib.util.find_spec(NEEDS[name])
    return "" if there else "not installed (requirements-bench.txt)"


class Race:
    """Implementations that take turns with each other and with the machine's limit. To be left by its `stack`."""

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
        """One repetition of each, kept in the results `into`; the machine's limit, measured behind each of them."""
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
        """The answer; None if this implementation is out of the race, now or before."""
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
    """Bytes that this machine can give away, as Linux says; None elsewhere."""
    meminfo = Path("/proc/meminfo")
    if sys.platform != "linux" or not meminfo.exists():
        return None
    lines = meminfo.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
