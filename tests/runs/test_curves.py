"""Curves in an experiment tracker: which rows are sent, under which names, and what happens if it fails."""

from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from src.config.constants import TRACKERS
from src.config.errors import UserError
from src.runs.curves import CurveTracker, curves_of
from src.runs.description import Curves
from src.runs.records import LOSSES, SCORES

DEV = {"split": "dev", "epoch": 0, "step": 3}


class Sent(list):
    """A tracker that keeps what it gets; it fails once it has `most`."""

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self.most, self.is_finished = most, False

    def send(self, values, step):
        if len(self) == self.most:
            raise UserError("--report_to it: cannot be reached: no route")
        self.append((step, dict(values)))

    def finish(self):
        self.is_finished = True


def test_names_of_curves():
    sent = Sent()
    curves = CurveTracker(sent, {}, {})
    losses = {"phase": 0, "learned": "logits", "epoch": 0, "step": 3, "learning_rate": 0.1, "loss": 2.0}
    curves.log(LOSSES, (), losses, 2, {"tokens_per_second": 9.0})
    curves.log(SCORES, (), {**DEV, "chrf": 50.0, "ppl": float("inf")}, 2, {"predictions": "a"})
    curves.log(SCORES, (), {**DEV, "split": "test", "chrf": float("nan"), "nll": 1.0}, 2, {})
    curves.log(SCORES, (), {"split": "test", "epoch": -1, "step": -1, "chrf": 40.0}, 2, {})
    assert sent == [
        (2, {"train/learning_rate": 0.1, "train/loss": 2.0, "train/tokens_per_second": 9.0}),
        (2, {"dev/chrf": 50.0, "dev/predictions": "a"}),
        (2, {"test/nll": 1.0}),
        (2, {"best_test/chrf": 40.0}),
    ]


def test_a_row_that_comes_again_is_not_sent_again():
    """Sent were three rows of losses and one of scores; the state that is continued counts one of each."""
    sent = Sent()
    curves = CurveTracker(sent, {LOSSES: 3, SCORES: 1}, {LOSSES: 1, SCORES: 1})
    for step in (2, 3, 4):
        curves.log(LOSSES, (), {"loss": float(step)}, step, {})
        curves.log(SCORES, (), {**DEV, "nll": float(step)}, step, {})
    assert sent == [(2, {"dev/nll": 2.0}), (3, {"dev/nll": 3.0}), (4, {"train/loss": 4.0}), (4, {"dev/nll": 4.0})]


def write_rows(folder: Path, losses: int, scores: int) -> None:
    (folder / LOSSES).write_text("loss\n" + "1\n" * losses + "0.12")  # the last one is torn
    (folder / SCORES).write_text("split\n" * (scores + 1) if scores else "")


def test_how_many_rows_have_been_sent(tmp_path):
    """Killed twice: before the second kill, fewer rows were repeated than had been sent before the first."""
    first = curves_of("trackio", tmp_path, None)
    assert first.rows == {}
    write_rows(tmp_path, 5, 1)
    second = curves_of("trackio", tmp_path, first)
    write_rows(tmp_path, 3, 2)
    third = curves_of("trackio", tmp_path, second)
    assert [each.rows for each in (second, third)] == [{LOSSES: 5, SCORES: 1}, {LOSSES: 5, SCORES: 2}]
    assert first.key == second.key == third.key
    assert curves_of("trackio", tmp_path, None).key != first.key


def test_another_tracker_has_got_nothing_yet(tmp_path):
    write_rows(tmp_path, 5, 1)
    former = Curves("trackio", "0123abcd", {LOSSES: 5, SCORES: 1})
    other = curves_of("wandb", tmp_path, former)
    assert (other.report_to, other.rows) == ("wandb", {})
    assert other.key != former.key


@pytest.mark.parametrize("at", ["log", "close"])
def test_a_tracker_that_fails_is_given_up_once(capsys, at):
    sent = Sent(most=1)
    curves = CurveTracker(sent, {}, {})
    for step in range(3 if at == "log" else 1):
        curves.log(LOSSES, (), {"loss": 1.0}, step, {})
    if at == "close":
        sent.finish = lambda: sent.send({}, 9)
    curves.close()
    curves.close()
    assert sent == [(0, {"train/loss": 1.0})]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: --report_to it: cannot be reached: no route; ")


def test_the_flag_names_trackers_of_accelerate():
    assert set(TRACKERS) <= set(map(str, LOGGER_TYPE_TO_CLASS))
