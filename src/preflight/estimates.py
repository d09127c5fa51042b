"""Estimate a run's updates, evaluations and disk space: functions of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

from src.config.constants import DEV, TEST
from src.config.flags.shared import TrainingArguments
from src.tokens.tokenized import TokenizedDatasets
from src.training import rhythm
from src.training.phase import Phase
from src.training.state import RunState


@dataclass(frozen=True)
class Work:
    """What is left of a phase: the updates of each epoch, the current one included; evaluations on dev and on test."""

    updates: tuple[int, ...]
    dev: int = 0
    test: int = 0


def work_in_epoch(config: TrainingArguments, n_rows: int, steps_done: int = 0, evaluated: int = 0) -> tuple[int, int]:
    """Updates and evaluations that are left of an epoch over `n_rows` rows, from a position in steps on."""
    n_steps = rhythm.steps_in_epoch(n_rows, config.micro_batch_size)
    interval = rhythm.evaluation_interval(config.save_checkpoint_every_n_steps, n_steps)
    updates = evaluations = 0
    while True:
        if rhythm.evaluates_after(steps_done, evaluated, n_steps, interval):
            evaluations, evaluated = evaluations + 1, steps_done
        if steps_done == n_steps:
            return updates, evaluations
        updates, steps_done = updates + 1, min(n_steps, steps_done + config.accumulation_steps)


def work_of_phases(
    config: TrainingArguments, phases: Sequence[Phase], data: TokenizedDatasets, state: RunState
) -> list[Work]:
    """The work of every phase that is left, if patience never ends one; without the closing test."""
    count = cache(partial(work_in_epoch, config))
    works: list[Work] = []
    epoch, done, position = state.epoch, state.epoch - state.phase_start, (state.steps_done, state.evaluated)
    for phase in phases[state.phase :]:
        by_epoch: list[int] = []
        dev = test = 0
        for number in range(done, phase.epochs):
            updates, evaluations = count(data.rows(rhythm.rotated(phase.splits, number)), *position)
            by_epoch.append(updates)
            dev += evaluations if DEV in data else 0
            # An epoch's last evaluation is the one at its end.
            test += evaluations > 0 and TEST in data and rhythm.is_test_epoch(epoch, config.test_every_n_epochs)
            epoch, position = epoch + 1, (0, 0)
        works.append(Work(tuple(by_epoch), dev, test))
        done = 0
    return works


@dataclass(frozen=True)
class Needs:
    """Bytes that are known beforehand."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    teacher: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of a process at its peak, and what it can have, with what it holds.

    ran_out: there is too little memory for a step; the peak would be at least `peak`.
    """

    needs: Needs
    peak: int
    available: int
    ran_out: bool = False

    @property
    def fits(self) -> bool:
        return not self.ran_out and self.peak <= self.available


def disk_at_peak(weights: int, optimizer: int, *, has_dev: bool, n_phases: int, adapter: int | None = None) -> int:
    """The most bytes of checkpoints that a run holds at once.

    During training: the state and its replacement, the best checkpoint (with a dev split) and its replacement, and the
    last of the first phase. At the end: one of each, and the model folder. adapter: bytes of the only weights that
    checkpoints hold; at the end all are written.
    """
    checkpoint = (weights if adapter is None else adapter) + optimizer
    while_training = (2 + 2 * has_dev + (n_phases > 1)) * checkpoint
    at_end = max((2 + has_dev) * checkpoint + weights, (2 + has_dev) * weights)
    return max(while_training, at_end) if n_phases else weights
