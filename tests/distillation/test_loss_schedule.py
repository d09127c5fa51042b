"""Loss schedules: which loss is active after which epochs and evaluations, as tables."""

import json
from dataclasses import asdict

import pytest

from src.config.errors import UserError
from src.config.experiments.load import load_experiment
from src.config.experiments.schema import Schedule
from src.config.flags.base import REPOSITORY
from src.config.flags.train import EXPERIMENTS
from src.distillation.loss_schedule import SchedulePosition, position_after_epoch, position_after_evaluation

EPOCH, BETTER, NO_BETTER = "e", "+", "-"  # what happens: the end of an epoch, or an evaluation on dev
TRIGGERS = ("change_every_n_epochs", "change_every_n_evaluation_steps", "change_no_improvements_for")


def schedule(**keys) -> Schedule:
    return Schedule(name="of a test", **keys)


def follow(rule: Schedule, events: str, *, n_losses: int = 3, start: SchedulePosition | None = None, seed: int = 42):
    """The stage after each event."""
    stages, stage = [], start or SchedulePosition()
    for event in events:
        if event == EPOCH:
            stage = position_after_epoch(stage, rule, n_losses, seed=seed)
        else:
            stage = position_after_evaluation(stage, rule, n_losses, is_better=event == BETTER, seed=seed)
        stages.append(stage)
    return stages


def learned(rule: Schedule, events: str, *, n_losses: int = 3, seed: int = 42) -> str:
    """The number of the loss that is learned after each event, one digit each."""
    return "".join(str(stage.index) for stage in follow(rule, events, n_losses=n_losses, seed=seed))


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("n_epochs", "keep_last", "events", "expected"),
    [
        (1, False, "eeeeeeee", "12012012"),
        (1, True, "eeeeeeee", "12222222"),
        (3, True, "eeeeeeeeeee", "00111222222"),
        (3, False, "eeeeeeeeeee", "00111222000"),
        (2, True, "+e--e+-e-e", "0000111112"),  # evaluations do not count
        (2, True, "--------", "00000000"),
    ],
)
def test_epochs(n_epochs, keep_last, events, expected):
    assert learned(schedule(change_every_n_epochs=n_epochs, keep_last=keep_last), events) == expected


@pytest.mark.parametrize(
    ("n_evaluations", "keep_last", "events", "expected"),
    [
        (1, False, "-+-+-", "12012"),
        (2, True, "-+-+-+", "011222"),  # a better score changes nothing
        (2, False, "------", "011220"),
        (3, True, "--e-e--e-", "000111112"),  # epochs do not count
        (3, True, "eeee", "0000"),
    ],
)
def test_evaluations(n_evaluations, keep_last, events, expected):
    assert learned(schedule(change_every_n_evaluation_steps=n_evaluations, keep_last=keep_last), events) == expected


@pytest.mark.parametrize(
    ("n", "keep_last", "events", "expected"),
    [
        (1, True, "-+-++-", "112222"),
        (1, False, "-+-++-", "112220"),
        (3, True, "---", "001"),  # exactly at n
        (3, True, "--+--+--+", "000000000"),  # a better score begins anew
        (3, True, "--+---", "000001"),
        (3, True, "-----+---", "001111112"),  # a change begins anew: two more are not enough for the next
        (2, True, "-e-e-e-", "0011112"),  # epochs do not count
        (2, False, "---------", "011220011"),
    ],
)
def test_no_improvements(n, keep_last, events, expected):
    assert learned(schedule(change_no_improvements_for=n, keep_last=keep_last), events) == expected


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_change_is_counted_and_all_other_counts_begin_anew(trigger):
    event = EPOCH if trigger == "change_every_n_epochs" else NO_BETTER
    stages = follow(schedule(**{trigger: 2}, keep_last=False), event * 8)
    assert [stage.changes for stage in stages] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert stages[1::2] == [
        SchedulePosition(index=index, changes=changes) for index, changes in ((1, 1), (2, 2), (0, 3), (1, 4))
    ]


def test_a_change_forgets_the_counts_that_are_not_its_own():
    [*_, before, after] = follow(schedule(change_every_n_epochs=1), "--+-e")
    assert before == SchedulePosition(evaluations=4, without_better=1)
    assert after == SchedulePosition(index=1, changes=1)


def test_staying_on_the_last_loss_is_no_change():
    stages = follow(schedule(change_every_n_epochs=1), EPOCH * 6)
    assert [stage.changes for stage in stages] == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("random_sample", [False, True])
@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_single_loss_never_changes(trigger, keep_last, random_sample):
    rule = schedule(**{trigger: 1}, keep_last=keep_last, random_sample=random_sample)
    stages = follow(rule, "-e+e--e", n_losses=1)
    assert {(stage.index, stage.changes) for stage in stages} == {(0, 0)}


@pytest.mark.parametrize("n_losses", [1, 3])
def test_without_a_trigger_nothing_changes(n_losses):
    assert learned(schedule(), "-e-e-e-e", n_losses=n_losses) == "00000000"


# ------------------------------------------------------------------------------------------------------ random sampling


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_draws_follow_from_the_seed_and_reach_every_loss(trigger):
    rule = schedule(**{trigger: 1}, random_sample=True)
    events = (EPOCH if trigger == "change_every_n_epochs" else NO_BETTER) * 300
    drawn = learned(rule, events)
    assert drawn == learned(rule, events)
    assert all(drawn.count(index) > 70 for index in "012"), "each a third of the time"
    assert drawn != learned(rule, events, seed=43)


@pytest.mark.parametrize("keep_last", [False, True])
def test_draws_go_on_after_the_last_loss(keep_last):
    """`keep_last` says nothing about them: the last loss is one of several that may come."""
    drawn = learned(schedule(change_every_n_epochs=1, random_sample=True, keep_last=keep_last), EPOCH * 100)
    assert {pair for pair in zip(drawn, drawn[1:], strict=False) if pair[0] == "2"} == {("2", i) for i in "012"}


def test_draws_happen_only_when_a_change_is_due():
    stages = follow(schedule(change_every_n_epochs=4, random_sample=True), EPOCH * 20)
    assert [stage.changes for stage in stages] == [n // 4 for n in range(1, 21)]
    for earlier, later in zip(stages, stages[1:], strict=False):
        assert later.index == earlier.index or later.changes == earlier.changes + 1


@pytest.mark.parametrize(
    "rule",
    [
        schedule(change_every_n_epochs=2, random_sample=True),
        schedule(change_every_n_evaluation_steps=3, random_sample=True),
        schedule(change_no_improvements_for=2, keep_last=False),
    ],
    ids=lambda rule: next(name for name in TRIGGERS if getattr(rule, name)),
)
def test_a_run_that_is_resumed_anywhere_learns_the_same(rule):
    events = "-+e--e-e+--e" * 4
    stages = follow(rule, events)
    assert len({stage.index for stage in stages}) == 3
    for place, stage in enumerate(stages):
        stored = SchedulePosition(**json.loads(json.dumps(asdict(stage))))
        assert follow(rule, events[place + 1 :], start=stored) == stages[place + 1 :]


# ------------------------------------------------------------------------------------------------ the shipped schedules


@pytest.fixture
def with_losses(tmp_path):
    """Load an experiment of the shipped file's schedule and of these losses."""

    def load(scheduling: str, losses: str, *, epochs: int, n_patience_epochs: int | None = None):
        entry = f"mine:\n  name: mine\n  layer: last_layer\n  scheduling: {scheduling}\n  losses: [{losses}]\n"
        path = tmp_path / "experiments.yaml"
        path.write_text((REPOSITORY / EXPERIMENTS).read_text(encoding="utf-8") + entry, encoding="utf-8")
        return load_experiment(path, "mine", epochs=epochs, n_patience_epochs=n_patience_epochs)

    return load


def epochs_of(experiment, n_epochs: int) -> str:
    """The number of the loss that each epoch learns; two evaluations an epoch find nothing better."""
    events = (NO_BETTER + NO_BETTER + EPOCH) * n_epochs
    after = learned(experiment.schedule, events, n_losses=len(experiment.losses))
    return ("0" + after[2::3])[:n_epochs]


@pytest.mark.parametrize(
    ("scheduling", "epochs", "patience", "expected"),
    [
        ("epoch_scheduling", 8, None, "01201201"),
        ("3_epochs_scheduling", 12, None, "000111222222"),
        ("patience_epochs_scheduling", 50, None, "0" * 16 + "1" * 16 + "2" * 18),
        ("patience_epochs_scheduling", 9, 2, "001122222"),
        ("stage_scheduling", 9, None, "000111222"),
        ("stage_scheduling", 11, None, "00011122222"),  # what is left over goes to the last
        ("stage_scheduling", 2, None, "01"),  # max(1, 2 // 3)
        ("stage_scheduling", 9, 2, "000111222"),  # patience is another schedule's
    ],
)
def test_every_shipped_schedule_on_three_losses(with_losses, scheduling, epochs, patience, expected):
    experiment = with_losses(scheduling, "nll, logits, hidden_relations", epochs=epochs, n_patience_epochs=patience)
    assert [loss.name for loss in experiment.losses] == ["nll", "logits", "hidden_relations"]
    assert epochs_of(experiment, epochs) == expected


def test_no_scheduling_keeps_its_only_loss(with_losses):
    assert epochs_of(with_losses("no_scheduling", "logits", epochs=20), 20) == "0" * 20


def test_no_scheduling_of_three_losses_is_refused(with_losses):
    """Two of them would never be learned."""
    with pytest.raises(UserError, match=r"'no_scheduling' never changes the loss, so 'logits' is never used"):
        with_losses("no_scheduling", "nll, logits, hidden_relations", epochs=20)


@pytest.mark.parametrize("scheduling", ["epoch_scheduling", "3_epochs_scheduling", "stage_scheduling"])
def test_the_shipped_schedules_of_one_loss_change_nothing(with_losses, scheduling):
    assert epochs_of(with_losses(scheduling, "logits", epochs=8), 8) == "0" * 8
