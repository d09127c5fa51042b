"""What the processes of a run tell each other, and how they end together.

A launcher (`accelerate launch`, `torchrun`) starts N processes, whose ranks are 0 to N − 1. Rank 0, the main process,
writes files and prints. With one process every function returns its own value at once. Messages go over gloo on CPUs,
whatever the device: a process may wait for a long evaluation without a timeout of the GPUs' collectives.
torch is imported where it is needed: a report reads the folders of runs without it.
"""

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from src.config.errors import SharedError, UserError, one_line
from src.config.signals import Stopped, StopRequests

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=7)  # for a process that computes metrics, for example; one that dies ends the wait
PAUSE = 0.05  # seconds between two looks into the store
GRACE = 10.0  # seconds in which all processes notice that one has failed

_group: Any = None  # gloo, once `start` has joined several processes
_store: Any = None  # a small dictionary that all processes share
_rank, _n_processes = 0, 1


class LostProcessError(RuntimeError):
    """Another process has failed, or is gone."""


def start() -> None:
    """Join the processes that a launcher has started; does nothing if there is one, or if they are joined already."""
    global _group, _store, _rank, _n_processes
    if _group is not None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch.distributed as dist

    from src.devices.accelerator import join

    join()
    _rank, _n_processes = dist.get_rank(), dist.get_world_size()
    _group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _store = dist.PrefixStore(f"kd/{attempt}", dist.TCPStore(*place, is_master=False))
    _store.set(f"process/{_rank}", f"{platform.node()} {os.getpid()}")
    wait_for_all()  # each is in the store


def rank() -> int:
    """This process's number; 0 is the main process."""
    return _rank


def count() -> int:
    """The number of processes."""
    return _n_processes


def is_main() -> bool:
    """Whether this process writes the files and prints."""
    return rank() == 0


def dealt(items: Sequence[T]) -> Sequence[T]:
    """This process's share of items that are dealt round: number rank, rank + N, rank + 2 N, …"""
    return items[rank() :: count()]


def rounds(items: Sequence[T]) -> Iterator[tuple[Sequence[T], T | None]]:
    """Deal items round: N items at a time with this process's, if the last round has one for it."""
    for start in range(0, len(items), count()):
        together = items[start : start + count()]
        yield together, together[rank()] if rank() < len(together) else None


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank; any value that pickle can copy."""
    if _group is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_group)
    return values


def from_main(call: Callable[[], T]) -> T:
    """What `call` returns in the main process, in all processes. Its UserError is raised in all of them."""
    if _group is None:
        return call()
    import torch.distributed as dist

    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = call()
        except UserError as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0, group=_group)
    if told[1] is not None:
        raise told[1]
    result: T = told[0]
    return result


def highest(value: int) -> int:
    """The largest value of the processes."""
    return _reduced([value], "MAX")[0]


def totals(*values: int) -> list[int]:
    """The sum of each value over the processes."""
    return _reduced(values, "SUM")


def _reduced(values: Sequence[int], operation: str) -> list[int]:
    if _group is None:
        return list(values)
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values)
    dist.all_reduce(tensor, getattr(dist.ReduceOp, operation), group=_group)
    return [int(value) for value in tensor]


class Mail:
    """JSON values that the other processes send to the main one at their own pace. All processes make it at once."""

    _n_made = 0

    def __init__(self) -> None:
        Mail._n_made += 1
        self._name, self._n_sent, self._n_received = f"mail/{Mail._n_made}", 0, [0] * count()
        self.n_senders = count() - 1  # those that have not closed yet

    def send(self, value: Any) -> None:
        """Send any JSON value but null."""
        _store.set(f"{self._name}/{rank()}/{self._n_sent}", json.dumps(value))
        self._n_sent += 1

    def close(self) -> None:
        """Send nothing more."""
        self.send(None)

    def arrived(self) -> Iterator[Any]:
        """The values that are there now, each once; in the main process."""
        for sender in range(1, count()) if is_main() else ():
            while _store.check([key := f"{self._name}/{sender}/{self._n_received[sender]}"]):
                self._n_received[sender] += 1
                value = _store.get(key)
                _store.delete_key(key)
                if (content := json.loads(value)) is None:
                    self.n_senders -= 1
                else:
                    yield content

    def wait(self) -> None:
        """Wait a moment for more. Raises LostProcessError if a process has failed."""
        time.sleep(PAUSE)
        if _has_error() or _dead():
            raise LostProcessError("another process has failed")


def add_up(tensor: "Tensor") -> None:
    """Replace a tensor on the device by the sum of all processes' tensors."""
    import torch.distributed as dist

    dist.all_reduce(tensor)


def wait_for_all() -> None:
    """Return when all processes have come here: what the main one has written before can be read."""
    highest(0)


# ------------------------------------------------------------------------------------------------------ ending together


def stop_requests() -> StopRequests:
    """Signals to this process; of several processes all stop together."""
    return StopRequests(None if _group is None else highest)


class _EndTogether(AbstractContextManager[None]):
    """See `end_together`. A class, since any error is shared, and none is swallowed."""

    def __enter__(self) -> None:
        _store.delete_key(f"left/{_rank}")

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            _store.set(f"left/{_rank}", "0")
            return
        with _undisturbed():
            shared = _share(error)
        if shared is not error:
            raise shared from None


def end_together() -> AbstractContextManager[None]:
    """Within: an error of one process ends them all, and is printed once.

    The first process that fails puts its error into the store and closes its connections, so that the others do not
    wait for it. They raise the same error, a SharedError. A process that was killed is named by those that are left.
    """
    return nullcontext() if _group is None else _EndTogether()


def _share(error: BaseException) -> BaseException:
    """The error that this process raises for `error`, once the others have heard of it or GRACE seconds are over."""
    was_stopped = isinstance(error, Stopped | KeyboardInterrupt)
    lost = _is_of_connection(error)
    if was_stopped or lost:  # another process may be the cause
        _wait_until(lambda: _has_error() or bool(_dead()) or bool(_stopped()), GRACE if lost else 0.0)
        if not _has_error() and not _dead() and (was_stopped or _stopped()):
            stop = error if was_stopped else Stopped(_stopped()[0] - 128)
            return _left(stop, 143 if isinstance(error, Stopped) else 130)
    is_told_here = not _has_error() and _store.add("n_errors", 1) == 1
    if is_told_here:
        _store.set("error", _of_the_dead() or _described(error))
    told_by_another = not is_told_here or was_stopped or lost or isinstance(error, UserError | OSError)
    _wait_until(_has_error, GRACE)
    shared = SharedError(_store.get("error").decode(), is_told_here=is_told_here) if told_by_another else error
    return _left(shared, 2)


def _left(error: BaseException, status: int) -> BaseException:
    """Close the connections, so that no process waits for this one; returns the error when all have done so."""
    import torch.distributed as dist

    _store.set(f"left/{rank()}", str(status))
    dist.destroy_process_group()
    _wait_until(lambda: all(_store.check([f"left/{n}"]) for n in range(count()) if n not in _dead()), GRACE)
    return error


def _has_error() -> bool:
    return bool(_store.check(["error"]))


def _stopped() -> list[int]:
    """The exit statuses of processes that a signal has stopped."""
    statuses = [int(_store.get(key)) for key in (f"left/{n}" for n in range(count())) if _store.check([key])]
    return [status for status in statuses if status > 128]


def _of_the_dead() -> str | None:
    """A line that names the processes that were killed, if there are any."""
    numbers = " and ".join(map(str, _dead()))
    return numbers and (
        f"process {numbers} of {count()} (counted from 0) was killed, perhaps for lack of memory; the same command "
        "continues"
    )


def _described(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) if isinstance(error, UserError) else one_line(error)


def _is_of_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another process is gone."""
    import torch.distributed as dist

    if isinstance(error, LostProcessError | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def _dead() -> list[int]:
    """The ranks of processes on this machine that have ended without a word."""
    found = []
    for number in range(_n_processes):
        machine, process = _store.get(f"process/{number}").decode().split()
        if machine == platform.node() and not _store.check([f"left/{number}"]) and not _is_alive(int(process)):
            found.append(number)
    return found


def _is_alive(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(PAUSE)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore signals: the launcher sends them to those that are left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
