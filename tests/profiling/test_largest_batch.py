"""The largest batch that fits: bisection, and no batch is run on a CPU that is expected not to fit."""

import time

import pytest
import torch

from src.devices import memory as machine
from src.profiling import largest_batch
from src.profiling.largest_batch import MemoryTrials, budget_of, largest_that_fits


@pytest.mark.parametrize("truth", [0, 1, 2, 3, 5, 12, 15, 16, 17, 100, 1000, 12345])
def test_bisection(truth):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= truth

    found = largest_that_fits(fits)
    assert found <= truth <= found * (1 + largest_batch.TOLERANCE)
    assert found == truth or truth > 16
    assert len(tried) == len(set(tried)) < 25
    assert max(tried) <= max(1, 2 * truth)
    assert largest_that_fits(lambda size: size <= truth, most=7) == min(truth, 7)


def trials(monkeypatch, *, bytes_per_row, budget, device="cpu", weights=100):
    """Trials whose batches take memory in proportion to their size; and the sizes that were run."""
    ran = []

    def growth_during(call, _device):
        call()
        return bytes_per_row * ran[-1]

    monkeypatch.setattr(machine, "growth_during", growth_during)
    monkeypatch.setattr(machine, "free_unused", lambda _device: None)
    return MemoryTrials(ran.append, lambda size: size, torch.device(device), weights, budget), ran


def test_no_batch_is_run_that_is_expected_not_to_fit(monkeypatch):
    memory, ran = trials(monkeypatch, bytes_per_row=10, budget=1_000)
    assert largest_that_fits(memory.fits) in range(85, 91)
    assert max(ran) <= 90
    assert memory.peaks[64] == 740


def test_a_large_batch_is_approached(monkeypatch):
    memory, ran = trials(monkeypatch, bytes_per_row=10, budget=1_000)
    assert not memory.fits(10_000)
    assert max(ran) <= 90
    assert memory.fits(50)
    assert not memory.fits(91)


def test_on_a_gpu_memory_may_run_out(monkeypatch):
    """A batch is tried whatever is expected, and may be larger than the budget."""
    memory, ran = trials(monkeypatch, bytes_per_row=10, budget=1_000, device="cuda")

    def run(size):
        ran.append(size)
        if size > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")

    memory.run = run
    assert largest_that_fits(memory.fits) in range(76, 81)
    assert not memory.fits(10_000)
    assert memory.peaks[128] == float("inf")
    memory.budget = 500
    assert not memory.fits(64)


def test_memory_may_run_out_in_a_later_call(monkeypatch):
    memory, _ = trials(monkeypatch, bytes_per_row=10, budget=1_000, device="cuda")

    def out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert memory.unless_out_of_memory(lambda: 3) == 3
    assert memory.unless_out_of_memory(out_of_memory) is None


def test_other_errors_are_raised(monkeypatch):
    memory, _ = trials(monkeypatch, bytes_per_row=10, budget=1_000)

    def run(_size):
        raise RuntimeError("shapes differ")

    memory.run = run
    with pytest.raises(RuntimeError, match="shapes differ"):
        memory.fits(1)


def test_the_budget_is_never_more_than_what_is_free(monkeypatch):
    monkeypatch.setattr(machine, "within_reach", lambda _device: 5_000_000)
    monkeypatch.setattr(machine, "held", lambda _device: 1_000_000)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert budget_of(cpu, 2_000_000, None) == 2_000_000 + 0.9 * 4_000_000
    assert budget_of(gpu, 2_000_000, None) == 6_000_000
    assert budget_of(cpu, 2_000_000, 3) == 3_000_000
    assert budget_of(cpu, 2_000_000, 300) == budget_of(cpu, 2_000_000, None)


def test_growth_of_this_process():
    """Memory that an earlier call has freed counts again."""

    def hold(megabytes):
        tensor = torch.ones(megabytes, 250_000)
        time.sleep(0.05)  # on a busy machine nobody looks for a while
        return tensor.sum()

    for megabytes in (100, 100, 60):
        growth = machine.growth_during(lambda n=megabytes: hold(n), torch.device("cpu"))
        assert megabytes - 15 < growth / 1e6 < megabytes + 15  # a heap keeps a few MB
