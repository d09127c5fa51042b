"""Which batches fit into memory, and the largest of them.

On a CPU a batch is only run if smaller ones let expect that it fits: the system may end a process that takes too much.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from src.devices import memory as machine
from src.tokens.batch import Batch

Result = TypeVar("Result")
TOLERANCE = 1 / 16  # of the largest batch: between what fits and what does not
SHARE_OF_FREE = 0.9  # of a machine's free memory: what a profile may take


def budget_of(device: torch.device, weights: int, maximum_memory: int | None) -> float:
    """The most bytes that weights and a batch may take: --maximum_memory (in MB), and never more than there is."""
    free = machine.within_reach(device) - machine.held(device)
    there = weights + (free if device.type == "cuda" else SHARE_OF_FREE * free)
    return there if maximum_memory is None else min(there, maximum_memory * 1e6)


@dataclass
class MemoryTrials:
    """Runs batches of several sizes and remembers the peak of each: bytes, with the model's weights.

    run: processes a batch, which `batch_of` makes by its size. budget: the most bytes that a peak may have.
    """

    run: Callable[[Batch], object]
    batch_of: Callable[[int], Batch]
    device: torch.device
    weights: int
    budget: float
    peaks: dict[int, float] = field(default_factory=dict)

    def fits(self, size: int) -> bool:
        """Whether a batch fits. On a CPU it is approached by doubling, and not run if it is expected not to fit."""
        if size not in self.peaks:
            is_careful = self.device.type == "cpu" and size > 1
            if is_careful and not (self.fits(size // 2) and self._expected(size) <= self.budget):
                return False
            self.peaks[size] = self._peak(size)
        return self.peaks[size] <= self.budget

    def unless_out_of_memory(self, call: Callable[[], Result]) -> Result | None:
        """What a call returns; None if memory runs out."""
        try:
            return call()
        except (RuntimeError, MemoryError) as error:
            if not machine.is_out_of_memory(error):
                raise
        machine.free_unused(self.device)  # here, because the error holds what the call has made
        return None

    def _peak(self, size: int) -> float:
        growth = self.unless_out_of_memory(lambda: self._growth(self.batch_of(size)))
        return float("inf") if growth is None else self.weights + growth

    def _growth(self, batch: Batch) -> int:
        if not self.peaks:  # the first call of all also loads code and starts threads
            self.run(batch)
        return machine.growth_during(lambda: self.run(batch), self.device)

    def _expected(self, size: int) -> float:
        """The peak on the line through those of the two next smaller batches; an empty one has the weights."""
        *_, first, second = sorted(each for each in {0: self.weights, **self.peaks}.items() if each[0] < size)
        slope = (second[1] - first[1]) / (second[0] - first[0])
        return second[1] + max(0.0, slope) * (size - second[0])


def largest_that_fits(fits: Callable[[int], bool], most: int | None = None) -> int:
    """The largest batch that fits, at most `most`, to within TOLERANCE, by doubling and bisection; 0 if none does."""
    low, high = 0, 1
    while fits(high):
        if high == most:
            return high
        low, high = high, 2 * high if most is None else min(2 * high, most)
    while high - low > max(1, TOLERANCE * low):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
