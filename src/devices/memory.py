"""Memory and disk: what this process uses and what is free, in bytes."""

import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil
import torch

GLANCE = 0.005  # seconds between two looks at the memory


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    n_threads = torch.get_num_threads()
    return f"{device.type}, {n_threads} thread{'s' if n_threads > 1 else ''}"


def held(device: torch.device) -> int:
    """What this process has of the device's memory; of a CPU's with all libraries and data."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def within_reach(device: torch.device) -> int:
    """What this process has of the device's memory and what it can still get."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + held(device)


def wait_for(device: torch.device) -> None:
    """Return when all that the device has been told to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Peak:
    """Within: `bytes` is the most of the device's memory that this process has had. A CPU's is looked at again and
    again, in a thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._highest = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch memory")

    @property
    def bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device)
        self._look()
        return self._highest

    def _look(self) -> None:
        self._highest = max(self._highest, held(self._device))

    def _watch(self) -> None:
        while not self._over.wait(GLANCE):
            self._look()

    def __enter__(self) -> "Peak":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out: torch has a class for a GPU's, and only words for a CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def free_disk(path: Path) -> int:
    """What is free where a folder is, or would be made."""
    there = next(each for each in (path, *path.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free


def size_of(paths: Iterable[Path]) -> int:
    """What files, and folders with all that is in them, take of the disk."""
    files = (file for path in paths for file in ((path,) if path.is_file() else path.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())
