"""Estimate a run's updates, evaluations, memory and disk space: functions of numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from src.config.constants import DEV, TEST
from src.config.flags.shared import TrainingArguments
from src.data.references import Target, first_references, references_of
from src.tokens.tokenized import TokenizedDatasets
from src.training import rhythm
from src.training.phase import Phase
from src.training.state import RunState

AROUND_A_TEXT = 7  # bytes of quotes, comma, newline and indent


@dataclass(frozen=True)
class Work:
    """What is left of a phase: the updates of each epoch, the current one included; evaluations on dev and on test."""

    by_epoch: tuple[int, ...]
    dev: int = 0
    test: int = 0

    @property
    def epochs(self) -> int:
        return len(self.by_epoch)

    @property
    def updates(self) -> int:
        return sum(self.by_epoch)


def work_in_epoch(
    config: TrainingArguments, n_rows: int, *, steps_done: int = 0, evaluated: int = 0
) -> tuple[int, int]:
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
    whole = cache(lambda n_rows: work_in_epoch(config, n_rows))
    works: list[Work] = []
    epoch, done = state.epoch, state.epoch - state.phase_start
    for phase in phases[state.phase :]:
        by_epoch: list[int] = []
        dev = test = 0
        for number in range(done, phase.epochs):
            n_rows = data.rows(rhythm.rotated(phase.splits, number))
            at_hand = not works and not by_epoch
            place = {"steps_done": state.steps_done, "evaluated": state.evaluated}
            updates, evaluations = work_in_epoch(config, n_rows, **place) if at_hand else whole(n_rows)
            by_epoch.append(updates)
            dev += evaluations if DEV in data else 0
            # An epoch's last evaluation is the one at its end.
            test += evaluations > 0 and TEST in data and rhythm.is_test_epoch(epoch, config.test_every_n_epochs)
            epoch += 1
        works.append(Work(tuple(by_epoch), dev, test))
        done = 0
    return works


def nearest_to_mean(sizes: Sequence[float] | np.ndarray, n: int) -> list[int]:
    """The places of the `n` sizes that are nearest to the mean of all, the nearest first."""
    distances = np.abs(np.asarray(sizes, dtype=np.float64) - np.mean(sizes))
    return np.argsort(distances, kind="stable")[:n].tolist()


@dataclass(frozen=True)
class Needs:
    """Bytes that are known beforehand; optimizer_there: the part of the optimizer's state that is loaded already."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    teacher: int = 0
    optimizer_there: int = 0

    @property
    def to_come(self) -> int:
        """Bytes that the first update adds and that stay."""
        return self.gradients + self.optimizer - self.optimizer_there


@dataclass(frozen=True)
class Memory:
    """Bytes of a process: before its first step, and at its peak.

    peak: None if memory ran out, or if there is too little of it for a step. available: what the process can have,
    with what it holds. while_loading: the peak was reached before the first step.
    """

    needs: Needs
    before: int
    peak: int | None
    available: int
    while_loading: bool = False

    @property
    def total(self) -> int:
        """Bytes at the peak; where it is not known, at least so many."""
        return self.before + self.needs.to_come if self.peak is None else self.peak

    @property
    def fits(self) -> bool:
        return self.peak is not None and self.peak <= self.available

    @property
    def parts(self) -> dict[str, int]:
        """What the total is made of. While models are loaded there are no gradients, but copies of weights."""
        needs = self.needs
        loaded = {"weights": needs.weights, "teacher": needs.teacher}
        rest = {"program and data": max(0, self.before - sum(loaded.values()) - needs.optimizer_there)}
        if self.while_loading:
            return {**loaded, "optimizer": needs.optimizer_there, "loading": self.total - self.before, **rest}
        batch = {"the longest batch": max(0, self.total - self.before - needs.to_come)}
        return {**loaded, "gradients": needs.gradients, "optimizer": needs.optimizer, **batch, **rest}


def smaller_micro_batch(batch_size: int, micro_batch_size: int) -> int | None:
    """The largest size of micro-batches that is at most half of the present one; None if there is none."""
    sizes = (size for size in range(micro_batch_size // 2, 0, -1) if batch_size % size == 0)
    return next(sizes, None)


def disk_at_peak(weights: int, optimizer: int, *, has_dev: bool, n_phases: int) -> int:
    """The most bytes of checkpoints that a run holds at once.

    During training: the state and its replacement, the best checkpoint (with a dev split) and its replacement, and the
    last of the first phase. At the end: one of each, and the model folder.
    """
    checkpoint = weights + optimizer
    while_training = (2 + 2 * has_dev + (n_phases > 1)) * checkpoint
    at_end = (2 + has_dev) * checkpoint + weights
    return max(while_training, at_end) if n_phases else weights


def disk_of_evaluations(evaluations: Mapping[str, int], targets: Mapping[str, Sequence[Target]]) -> int:
    """Bytes of the predictions of so many evaluations by split.

    They stand in eval_generations.jsonl and, with the references, in eval_generations.json; at the end both are there.
    Predictions are taken to be as long as first references.
    """
    total = 0
    for split, count in evaluations.items():
        predictions = _bytes_in_json(first_references(targets[split]))
        references = _bytes_in_json(text for target in targets[split] for text in references_of(target))
        total += count * (2 * predictions + references)
    return total


def _bytes_in_json(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) + AROUND_A_TEXT for text in texts)
