"""The learning rate: warm-up, schedules, and what the run says about them."""

from math import cos, pi

import pytest
import torch

from src.config.constants import SCHEDULES
from src.config.flags.train import FineTuneArguments
from src.training.learning_rate import COURSES, LearningRate, learning_rate_of


def rates_of(rate: LearningRate, n: int) -> list[float]:
    """The factors of the first `n` updates."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = rate.schedule(optimizer)
    seen = []
    for _ in range(n):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


AFTER = {  # of 20 updates, 4 of them warm-up
    "linear": lambda k: (20 - k) / 16,
    "cosine": lambda k: (1 + cos(pi * (k - 4) / 16)) / 2,
    "constant_with_warmup": lambda k: 1.0,
    "inverse_sqrt": lambda k: (k / 4) ** -0.5,
}


@pytest.mark.parametrize("kind", AFTER)
def test_schedules(kind):
    expected = [*(k / 4 for k in range(4)), *(AFTER[kind](k) for k in range(4, 20))]
    assert rates_of(LearningRate(kind, 20, 4), 20) == pytest.approx(expected)


def test_constant():
    assert rates_of(LearningRate("constant", 20, 0), 30) == [1.0] * 30
    assert set(COURSES) == set(SCHEDULES) == {*AFTER, "constant"}


def of(updates: int, *, from_checkpoint: bool = False, **flags) -> LearningRate:
    config = FineTuneArguments(output_dir="out", dataset_path="d.json", **flags)
    return learning_rate_of(config, updates, from_checkpoint=from_checkpoint)


@pytest.mark.parametrize(
    ("asked", "updates", "warmup"),
    [(None, 150, 50), (None, 5000, 100), (0.0, 5000, 0), (1.0, 50, 1), (7.0, 50, 7), (0.07, 100, 7), (0.5, 11, 6)],
)
def test_warm_up_as_a_number_or_a_share(asked, updates, warmup):
    assert of(updates, warmup_steps=asked).warmup == warmup
    assert of(updates, warmup_steps=asked, from_checkpoint=True).warmup == (0 if asked is None else warmup)


def test_a_constant_rate_has_no_warm_up():
    assert of(5000, lr_scheduler_type="constant").warmup == 0
    assert of(5000, lr_scheduler_type="constant_with_warmup").warmup == 100


def test_a_warm_up_longer_than_the_run_is_said(capsys):
    assert of(40, warmup_steps=50.0).warmup == 50
    assert "--warmup_steps 50: the run has only 40 updates and never reaches" in capsys.readouterr().out
