"""What a process of the benchmark holds: an implementation of a row's work, or the machine's limit."""

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

from benchmarks.speed.rows import Learning, Row
from benchmarks.speed.workers import PRODUCTS, Settings

SIDE, LIMIT_SECONDS = 1024, 0.3  # the square matrices of the limit, and how long they are multiplied
KILOBYTE = 1024
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # what the counter does not know by itself
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
    """By name, for the row's kind of work."""
    if isinstance(row.work, Learning):
        from benchmarks.speed.learning import LEARNERS

        return LEARNERS
    from benchmarks.speed.writing import WRITERS

    return WRITERS


class Products(TorchDispatchMode):
    """Notes the matrix products of what runs within, to repeat them with nothing else between them.

    Operands of one shape share their memory, but for weights that are laid out: the caches help them more than they
    help what was noted.
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
    """What takes the time that the products of one repetition take, and returns its tokens."""
    with Products() as products:
        tokens = repeat()

    def again() -> int:
        products.repeat()
        return tokens

    return again


class Contestant:
    """One implementation, loaded; what `serve` is asked for."""

    def __init__(self, row: Row, name: str, settings: Settings) -> None:
        self.device = torch.device(settings.device)
        implement = implementations(row)[row.implementations[0] if name == PRODUCTS else name]
        repeat: Callable[[], int] = implement(row.work, self.device, settings.scratch, settings.pairs)
        self.repeat = products_alone(repeat) if name == PRODUCTS else repeat
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
        started, n_products, seconds = time.perf_counter(), 0, 0.0
        while seconds < LIMIT_SECONDS:
            torch.mm(matrix, matrix, out=result)
            _finish(self.device)
            n_products, seconds = n_products + 1, time.perf_counter() - started
        return 2 * n_products * len(matrix) ** 3 / seconds


class Memory:
    """Bytes that a process needed at most above what it held when this was made, which is the models' weights.

    Gradients and optimizer states come with the first repetition and count. The processor's memory is that of the
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
