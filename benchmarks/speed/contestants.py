"""What a benchmark process runs: one implementation of a row's work, or a measurement of the machine's limit."""

import ctypes
import gc
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry, mm_flop, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.speed.rows import Learning, Pretrained, Row
from benchmarks.speed.workers import PRODUCTS, Settings

SIDE, LIMIT_SECONDS = 1024, 0.3  # size of the square matrices, and how long they are multiplied
KILOBYTE = 1024
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # unknown to torch's counter
PRODUCT_FLOPS = {
    ATTENTION: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
    torch.ops.aten.addmm_: lambda _, left, right, *__, **___: mm_flop(left, right),
    torch.ops.mkldnn._linear_pointwise: (  # src/models/packed_linear.py; shapes (…, D) and (V, D)
        lambda rows, weight, *_, **__: 2 * math.prod(rows) * weight[0]
    ),
}


def implementations(row: Row) -> Mapping[str, Callable]:
    """The implementations of the row's kind of work, by name."""
    if isinstance(row.work, Learning):
        from benchmarks.speed.learning import LEARNERS

        return LEARNERS
    if isinstance(row.work, Pretrained):
        from benchmarks.speed.pretrained import PRETRAINED

        return PRETRAINED
    from benchmarks.speed.writing import WRITERS

    return WRITERS


class Products(TorchDispatchMode):
    """Record the matrix products of the code that runs inside, and repeat them with nothing in between.

    Operands of the same shape share memory, except for packed weights. So caches help the repetition more than they
    help the recorded code.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable, tuple, dict]] = []
        self._operands: dict[tuple, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function._overloadpacket in flop_registry or function._overloadpacket in PRODUCT_FLOPS:
            self._calls.append((function, *tree_map_only(Tensor, self._like, (args, kwargs))))
        return function(*args, **kwargs)

    def _like(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:
            return tensor
        kind = (tensor.shape, tensor.stride(), tensor.dtype)
        if kind not in self._operands:
            self._operands[kind] = torch.empty_strided(*kind[:2], dtype=tensor.dtype, device=tensor.device).fill_(0.5)
        return self._operands[kind]

    @torch.no_grad()
    def repeat(self) -> None:
        for function, args, kwargs in self._calls:
            function(*args, **kwargs)


def products_alone(repeat: Callable[[], int]) -> Callable[[], int]:
    """A function that runs only the matrix products of one repetition, and returns the repetition's tokens."""
    with Products() as products:
        tokens = repeat()

    def again() -> int:
        products.repeat()
        return tokens

    return again


class Contestant:
    """One loaded implementation; its methods answer the questions that `serve` receives."""

    def __init__(self, row: Row, name: str, settings: Settings) -> None:
        self.device = torch.device(settings.device)
        implement = implementations(row)[row.implementations[0] if name == PRODUCTS else name]
        repeat: Callable[[], int] = implement(row.work, self.device, settings.scratch, settings.pairs)
        self.repeat = products_alone(repeat) if name == PRODUCTS else repeat
        self.memory = Memory(self.device)

    def timed(self) -> dict[str, float]:
        """Run one repetition; return its seconds, and its valid target tokens or generated tokens."""
        started = time.perf_counter()
        tokens = self.repeat()
        _finish(self.device)
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    def peak(self) -> int:
        return self.memory.peak()

    def flops(self) -> dict[str, float]:
        """Floating-point operations of the matrix products of one repetition, and its tokens."""
        with FlopCounterMode(display=False, custom_mapping=PRODUCT_FLOPS) as counter:
            tokens = self.repeat()
        return {"flops": counter.get_total_flops(), "tokens": tokens}


class Limit:
    """The speed of the machine: FLOP/s of square matrix products, by number format."""

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
        started, n_products, seconds = time.perf_counter(), 0, 0.0
        while seconds < LIMIT_SECONDS:
            torch.mm(matrix, matrix, out=result)
            _finish(self.device)
            n_products, seconds = n_products + 1, time.perf_counter() - started
        return 2 * n_products * len(matrix) ** 3 / seconds


class Memory:
    """Peak memory in bytes above what the process held when this object was created, which is the model weights.

    Gradients and optimizer states are created by the first repetition and count. On a CPU this is the resident memory
    of the process, on a GPU the memory that torch allocated.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # memory freed while building the models does not count
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak (man 5 proc)
            self.before = _resident("VmRSS")

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _resident("VmHWM") - self.before


def _resident(entry: str) -> int:
    """An entry of Linux's /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * KILOBYTE for line in lines if line.startswith(f"{entry}:"))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
