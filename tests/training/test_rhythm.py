"""When to update, evaluate, test and stop."""

from math import inf, nan

import pytest

from src.training import rhythm


@pytest.mark.parametrize(
    ("n_rows", "micro", "steps"), [(1, 1, 1), (1, 8, 1), (8, 8, 1), (9, 8, 2), (16, 8, 2), (7000, 96, 73)]
)
def test_steps_in_epoch(n_rows, micro, steps):
    assert rhythm.steps_in_epoch(n_rows, micro) == steps


@pytest.mark.parametrize(
    ("n_rows", "micro", "accumulation", "updates"),
    [
        (1, 1, 1, 1),
        (1, 1, 8, 1),
        (8, 1, 8, 1),
        (9, 1, 8, 2),  # a short window is an update
        (9, 2, 4, 2),  # 5 steps: 4 and 1
        (22, 4, 2, 3),
        (22, 8, 1, 3),
    ],
)
def test_updates_in_epoch(n_rows, micro, accumulation, updates):
    assert rhythm.updates_in_epoch(n_rows, micro, accumulation) == updates


def test_the_number_of_updates_does_not_depend_on_the_micro_batch():
    for n_rows in range(1, 40):
        counts = {rhythm.updates_in_epoch(n_rows, micro, 8 // micro) for micro in (1, 2, 4, 8)}
        assert counts == {-(-n_rows // 8)}


@pytest.mark.parametrize(
    ("before", "after", "interval", "passes"),
    [(0, 1, 1, True), (0, 3, 4, False), (0, 4, 4, True), (4, 7, 4, False), (3, 9, 4, True), (0, 9, None, False)],
)
def test_a_multiple_is_passed(before, after, interval, passes):
    assert rhythm.passes_multiple(before, after, interval) is passes


def test_rotation():
    splits = ("train_0", "train_1", "train_2")
    assert [rhythm.rotated(splits, epoch) for epoch in range(5)] == [*splits, "train_0", "train_1"]
    assert [rhythm.rotated(("train",), epoch) for epoch in range(2)] == ["train", "train"]


@pytest.mark.parametrize(
    ("updates", "warmup"), [(0, 0), (1, 0), (99, 0), (100, 0), (101, 1), (150, 50), (199, 99), (200, 100), (5000, 100)]
)
def test_warmup(updates, warmup):
    assert rhythm.warmup_updates(updates, from_checkpoint=False) == warmup
    assert rhythm.warmup_updates(updates, from_checkpoint=True) == 0


@pytest.mark.parametrize(
    ("every", "n_steps", "interval"),
    [
        (0.55, 20, 11),
        (0.55, 100, 55),
        (0.55, 73, 40),
        (0.55, 1, 1),
        (0.5, 3, 1),
        (0.29, 100, 29),  # 28.999999999999996 in floating point
        (0.57, 100, 57),
        (0.001, 10, 1),
        (1, 10, 10),  # at most 1: a share
        (1.0, 10, 10),
        (2, 10, 2),
        (7.0, 10, 7),
        (25, 10, 25),
    ],
)
def test_evaluation_interval(every, n_steps, interval):
    assert rhythm.evaluation_interval(every, n_steps) == interval


def evaluations(n_steps: int, interval: int, accumulation: int = 1) -> list[int]:
    """The counts of steps done at which an epoch is evaluated."""
    due, done, evaluated = [], 0, 0
    while True:
        if rhythm.evaluates_after(done, evaluated, n_steps, interval):
            due.append(done)
            evaluated = done
        if done == n_steps:
            return due
        done = min(n_steps, done + accumulation)


@pytest.mark.parametrize(
    ("n_steps", "interval", "accumulation", "due"),
    [
        (20, 11, 1, [11, 20]),  # 0.55 of an epoch, and its end
        (20, 5, 1, [5, 10, 15, 20]),  # the end is not evaluated twice
        (20, 25, 1, [20]),
        (1, 1, 1, [1]),
        (3, 1, 1, [1, 2, 3]),
        (10, 3, 4, [4, 8, 10]),  # 3 lies in the window that ends at 4; 6 in the one that ends at 8; 9 in the last
        (10, 1, 4, [4, 8, 10]),  # several multiples in one window are one evaluation
        (10, 5, 10, [10]),
    ],
)
def test_evaluations_of_an_epoch(n_steps, interval, accumulation, due):
    assert evaluations(n_steps, interval, accumulation) == due


def test_nothing_is_evaluated_twice_or_before_the_first_step():
    assert not rhythm.evaluates_after(0, 0, 10, 1)
    assert not rhythm.evaluates_after(5, 5, 10, 5)
    assert not rhythm.evaluates_after(10, 10, 10, 5)


@pytest.mark.parametrize(("every", "epochs"), [(None, []), (1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (5, [4]), (7, [])])
def test_test_epochs(every, epochs):
    assert [epoch for epoch in range(6) if rhythm.is_test_epoch(epoch, every)] == epochs


@pytest.mark.parametrize(
    ("epoch", "best_epoch", "patience", "out"),
    [
        (0, -1, None, False),
        (1000, -1, None, False),
        (0, -1, 1, True),  # an epoch without any score
        (0, 0, 1, False),
        (1, 0, 1, True),
        (2, 0, 3, False),
        (3, 0, 3, True),
        (12, 9, 2, True),
        (9, 9, 2, False),
        (-1, -1, 1, False),  # nothing done yet
    ],
)
def test_patience(epoch, best_epoch, patience, out):
    assert rhythm.out_of_patience(epoch, best_epoch, patience) is out


@pytest.mark.parametrize(
    ("score", "best", "greater", "smaller"),
    [
        (1.0, None, True, True),
        (0.0, None, True, True),
        (2.0, 1.0, True, False),
        (1.0, 2.0, False, True),
        (1.0, 1.0, False, False),  # equal is not better
        (nan, None, False, False),
        (nan, 1.0, False, False),
        (inf, None, False, False),  # a perplexity too large to be computed
        (inf, 1.0, False, False),
        (-inf, 1.0, False, False),
    ],
)
def test_is_better(score, best, greater, smaller):
    assert rhythm.is_better(score, best, higher_is_better=True) is greater
    assert rhythm.is_better(score, best, higher_is_better=False) is smaller


@pytest.mark.parametrize("higher", [True, False])
def test_equal_scores_are_decided_by_the_nll(higher):
    def beats(nll, best_nll):
        return rhythm.is_better(0.0, 0.0, higher_is_better=higher, nll=nll, best_nll=best_nll)

    assert beats(1.0, 2.0)
    assert not beats(2.0, 1.0)
    assert not beats(1.0, 1.0)
    assert not beats(float("nan"), 1.0)
    assert not beats(1.0, None)  # a checkpoint of an earlier version
    assert not rhythm.is_better(1.0, 2.0, higher_is_better=True, nll=0.1, best_nll=9.0)
