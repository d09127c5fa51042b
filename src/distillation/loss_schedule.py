"""Which of an experiment's losses is learned now: pure functions from what has happened to the next stage."""

from dataclasses import dataclass, replace

import numpy as np

from src.config.experiments.schema import Schedule


@dataclass(frozen=True)
class SchedulePosition:
    """The loss that is learned now, and what has happened since it took over.

    index: its place in the experiment's `losses`. changes: how often the loss has changed. epochs, evaluations: since
    then. without_better: evaluations without a better score, since then or since the last better one.
    """

    index: int = 0
    changes: int = 0
    epochs: int = 0
    evaluations: int = 0
    without_better: int = 0


def after_evaluation(
    stage: SchedulePosition, schedule: Schedule, n_losses: int, *, is_better: bool, seed: int
) -> SchedulePosition:
    """The stage after an evaluation on dev, which gave a better score than any before, or not."""
    without_better = 0 if is_better else stage.without_better + 1
    stage = replace(stage, evaluations=stage.evaluations + 1, without_better=without_better)
    is_due = _reached(stage.evaluations, schedule.change_every_n_evaluation_steps)
    is_stuck = _reached(stage.without_better, schedule.change_no_improvements_for)
    return _changed(stage, schedule, n_losses, seed) if is_due or is_stuck else stage


def after_epoch(stage: SchedulePosition, schedule: Schedule, n_losses: int, *, seed: int) -> SchedulePosition:
    """The stage after an epoch, whose evaluation has been counted before."""
    stage = replace(stage, epochs=stage.epochs + 1)
    every = schedule.change_every_n_epochs
    assert not isinstance(every, str), "load_experiment makes a number of it"
    return _changed(stage, schedule, n_losses, seed) if _reached(stage.epochs, every) else stage


def _reached(count: int, limit: int | None) -> bool:
    return limit is not None and count >= limit


def _changed(stage: SchedulePosition, schedule: Schedule, n_losses: int, seed: int) -> SchedulePosition:
    """The next loss, with counts from 0; the same stage where there is none to change to."""
    is_last = stage.index == n_losses - 1
    if n_losses == 1 or (is_last and schedule.keep_last and not schedule.random_sample):
        return stage
    changes = stage.changes + 1
    index = (stage.index + 1) % n_losses
    if schedule.random_sample:  # from the seed and the count alone: a resumed run draws what an uninterrupted one does
        index = int(np.random.default_rng([seed, changes]).integers(n_losses))
    return SchedulePosition(index=index, changes=changes)
