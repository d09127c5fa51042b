"""The loss schedule: which of an experiment's losses is trained now, and when the next one takes over."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from msgspec import Meta

from src.config.experiments.schema import Schedule

Count = Annotated[int, Meta(ge=0)]  # checked when a saved run is read


@dataclass(frozen=True)
class SchedulePosition:
    """The current loss, and what has happened since it took over.

    index: its place in the experiment's `losses`. changes: how often the loss has changed. epochs, evaluations: counts
    since then. without_better: evaluations in a row without a better score, counted since then.
    """

    index: Count = 0
    changes: Count = 0
    epochs: Count = 0
    evaluations: Count = 0
    without_better: Count = 0


def position_after_evaluation(
    position: SchedulePosition, schedule: Schedule, n_losses: int, *, is_better: bool, seed: int
) -> SchedulePosition:
    """The position after an evaluation on dev; is_better: its score is the best so far."""
    without_better = 0 if is_better else position.without_better + 1
    position = replace(position, evaluations=position.evaluations + 1, without_better=without_better)
    is_due = _is_reached(schedule.change_every_n_evaluation_steps, position.evaluations)
    is_stuck = _is_reached(schedule.change_no_improvements_for, position.without_better)
    return _next_loss(position, schedule, n_losses, seed) if is_due or is_stuck else position


def position_after_epoch(
    position: SchedulePosition, schedule: Schedule, n_losses: int, *, seed: int
) -> SchedulePosition:
    """The position after an epoch; its closing evaluation comes first (`position_after_evaluation`)."""
    position = replace(position, epochs=position.epochs + 1)
    every = schedule.change_every_n_epochs
    assert not isinstance(every, str), "load_experiment resolves names to numbers"
    return _next_loss(position, schedule, n_losses, seed) if _is_reached(every, position.epochs) else position


def _is_reached(limit: int | None, count: int) -> bool:
    return limit is not None and count >= limit


def _next_loss(position: SchedulePosition, schedule: Schedule, n_losses: int, seed: int) -> SchedulePosition:
    """The next loss, with all counts 0; the same position if there is none to change to."""
    is_last = position.index == n_losses - 1
    if n_losses == 1 or (is_last and schedule.keep_last and not schedule.random_sample):
        return position
    changes = position.changes + 1
    index = (position.index + 1) % n_losses
    if schedule.random_sample:  # from the seed and the count alone, so that a resumed run draws the same
        index = int(np.random.default_rng([seed, changes]).integers(n_losses))
    return SchedulePosition(index=index, changes=changes)
