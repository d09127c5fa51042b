"""What a process of the benchmark holds: an implementation of a row's work, or the machine's limit."""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, mm_flop, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.speed.rows import Learning, Row
from benchmarks.speed.workers import Settings

SIDE, PRODUCTS = 1024, 5  # the square matrices of the limit, and how many products one measurement takes
KILOBYTE = 1024
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # what the counter does not know by itself
PRODUCT_FLOPS = {
    ATTENTION: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
    torch.ops.aten.addmm_: lambda _, left, right, *__, **___: mm_flop(left, right),
}


def implementations(row: Row) -> Mapping[str, Callable]:
    """By name, for the row's kind of work."""
    if isinstance(row.work, Learning):
        from benchmarks.speed.learning import LEARNERS

        return LEARNERS
    from benchmarks.speed.writing import WRITERS

    return WRITERS


class Contestant:
    """One implementation, loaded; what `serve` is asked for."""

    def __init__(self, row: Row, name: str, settings: Settings) -> None:
        self.device = torch.device(settings.device)
        implement = implementations(row)[name]
        self.repeat: Callable[[], int] = implement(row.work, self.device, settings.scratch, settings.pairs)
        self.memory = Memory(self.device)

    def timed(self) -> dict[str, float]:
        """One repetition: its seconds, and its valid target tokens or generated tokens."""
        started = time.perf_counter()
        tokens = self.repeat()
        _finish(self.device)
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    def peak(self) -> int:
        return self.memory.peak()

    def flops(self) -> dict[str, float]:
        """Floating-point operations of one repetition's matrix products, and its tokens."""
        with FlopCounterMode(display=False, custom_mapping=PRODUCT_FLOPS) as counter:
            tokens = self.repeat()
        return {"flops": counter.get_total_flops(), "tokens": tokens}


class Limit:
    """The machine's matrix products: FLOP/s of square ones, by format."""

    def __init__(self, row: Row, name: str, settings: Settings) -> None:
        self.device = torch.device(settings.device)
        side = SIDE if self.device.type == "cpu" else 8 * SIDE
        whole = torch.randn(side, side, device=self.device)
        self.matrices = {"float32": whole, "bfloat16": whole.bfloat16()}

    def timed(self) -> dict[str, float]:
        return {name: self._rate(matrix) for name, matrix in self.matrices.items()}

    def _rate(self, matrix: torch.Tensor) -> float:
        result = torch.mm(matrix, matrix)
        _finish(self.device)
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(matrix, matrix, out=result)
        _finish(self.device)
        return 2 * PRODUCTS * len(matrix) ** 3 / (time.perf_counter() - started)


class Memory:
    """Bytes that a process needed at most above what it held when this was made, which is the models' weights.

    Gradients and optimiser states come with the first repetition and count. The processor's memory is that of the
    whole process (resident), a GPU's what torch handed out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what building the models freed is not theirs
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew (man 5 proc)
            self.before = _resident("VmRSS")

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _resident("VmHWM") - self.before


def _resident(entry: str) -> int:
    """Bytes of an entry of Linux's /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * KILOBYTE for line in lines if line.startswith(f"{entry}:"))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
