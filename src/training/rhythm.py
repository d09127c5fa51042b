"""When to evaluate, test and stop: functions of numbers of rows, steps and epochs.

A step is one micro-batch, counted from 0 in each epoch. An update is one optimizer step and covers a window of steps.
"""

from collections.abc import Sequence
from math import ceil, floor, inf, isfinite


def steps_in_epoch(n_rows: int, micro_batch_size: int) -> int:
    """Micro-batches of an epoch over `n_rows` rows; the last one may be short."""
    return ceil(n_rows / micro_batch_size)


def updates_in_epoch(n_rows: int, micro_batch_size: int, accumulation_steps: int) -> int:
    """Optimizer updates of an epoch; a short last window is an update like the others."""
    return ceil(steps_in_epoch(n_rows, micro_batch_size) / accumulation_steps)


def rotated(splits: Sequence[str], epoch: int) -> str:
    """The training split of an epoch: epoch e trains on split e mod K."""
    return splits[epoch % len(splits)]


def warmup_updates(nominal_updates: int, *, from_checkpoint: bool) -> int:
    """Updates of linear warm-up: min(100, max(0, nominal − 100)), none when training starts from a checkpoint."""
    return 0 if from_checkpoint else min(100, max(0, nominal_updates - 100))


def evaluation_interval(every: float, n_steps: int) -> int:
    """Steps between evaluations: `every` steps, or a share of the epoch's `n_steps` if `every` is at most 1."""
    if every > 1:
        return int(every)
    return max(1, floor(round(every * n_steps, 6)))  # 0.29 * 100 is 28.999999999999996


def evaluates_after(steps_done: int, evaluated: int, n_steps: int, interval: int) -> bool:
    """Whether to evaluate on dev after `steps_done` steps of the epoch; the last evaluation was after `evaluated`.

    Evaluations follow each multiple of the interval and the epoch's end. With gradient accumulation, a multiple inside
    an update is evaluated after the update.
    """
    if steps_done <= evaluated:
        return False
    return steps_done == n_steps or passes_multiple(evaluated, steps_done, interval)


def passes_multiple(before: int, after: int, interval: int | None) -> bool:
    """Whether the steps after `before`, up to `after`, include a multiple of `interval`; never if it is None."""
    return interval is not None and after // interval > before // interval


def is_test_epoch(epoch: int, every: int | None) -> bool:
    """Whether to evaluate on test after `epoch` (counted from 0)."""
    return every is not None and (epoch + 1) % every == 0


def out_of_patience(epoch: int, best_epoch: int, patience: int | None) -> bool:
    """Whether `patience` epochs have passed without a better score.

    best_epoch: the last epoch with a better score; before the phase's first one, the epoch before the phase (or −1).
    """
    return patience is not None and epoch - best_epoch >= patience


def is_better(
    score: float, best: float | None, *, higher_is_better: bool, nll: float = inf, best_nll: float | None = None
) -> bool:
    """Whether a score beats the best one so far; of equal scores the one with the lower NLL does.

    NaN and infinity are never better. best_nll: None where it is not known.
    """
    if not isfinite(score):
        return False
    if best is None:
        return True
    if score == best:
        return best_nll is not None and nll < best_nll
    return score > best if higher_is_better else score < best
