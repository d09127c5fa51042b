"""Memory and disk: what this process uses and what is free, in bytes."""

import ctypes
import gc
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch

if sys.platform != "win32":
    import resource

LOOKS = 0.001  # seconds between two looks at the memory of this process


def name_of(device: torch.device) -> str:
    """A GPU's name and number, or the number of threads of a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    n_threads = torch.get_num_threads()
    return f"{device.type}, {n_threads} thread{'s' if n_threads > 1 else ''}"


def held(device: torch.device) -> int:
    """The memory of the device that this process holds now; on a CPU with all libraries and data."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def within_reach(device: torch.device) -> int:
    """The memory of the device that this process holds, and what is free for it."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + held(device)


def wait_for(device: torch.device) -> None:
    """Return when the device has finished all work that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget a GPU's peak so far. That of a CPU cannot be forgotten: it is the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """The most of the device's memory that this process has held: of a GPU's since `reset_peak`, of a CPU's ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if sys.platform == "linux":  # ru_maxrss would include the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def free_unused(device: torch.device) -> None:
    """Give back the memory of objects that are gone, which Python and the libraries may keep for later."""
    gc.collect()
    _trim(device)


def _trim(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # not every C library
        library.malloc_trim(0)


def growth_during(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that a call holds at once, beyond what is held before it.

    On a CPU a thread looks at the process's memory every millisecond: its recorded peak may be older than the call.
    """
    _trim(device)  # or the call would take what an earlier one has freed, and not grow
    before = held(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    most, is_over = before, threading.Event()

    def look() -> None:
        nonlocal most
        while not is_over.wait(LOOKS):
            most = max(most, held(device))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        is_over.set()
        watcher.join()
    return max(most, held(device)) - before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out. torch has a class for a GPU's memory, and only words for a CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def free_disk(path: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    there = next(each for each in (path, *path.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of files, and of folders with all that is in them."""
    files = (file for path in paths for file in ((path,) if path.is_file() else path.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())
