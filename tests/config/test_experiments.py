"""YAML of the experiments: every shipped entry, run-dependent values, and every kind of mistake."""

import json
import textwrap

import pytest

import kd_dataset_with_logits_main
import kd_main
from src.config.errors import UserError
from src.config.experiments.load import load_experiment, load_experiments
from src.config.experiments.schema import Experiment, LayerMap, LossEntry, Schedule, describe
from src.config.flags.base import REPOSITORY
from src.config.flags.train import EXPERIMENTS

SHIPPED = REPOSITORY / EXPERIMENTS
RELATIONS = {"logits_weight": 0.5, "kl_loss": True, "loss_scale": True}
EXPECTED = {
    "finetuning": {"forward_weight": 1.0},
    "logits_kd": {"logits_weight": 1.0},
    "logits_kd_student_gens": {"logits_weight": 1.0, "generate_labels_weight": 1.0},
    "logits_kd_student_gens_co_teaching": {"logits_weight": 1.0, "generate_labels_weight": 0.5},
    "noisy_kd": {"logits_weight": 1.0, "dropout": True},
    "attention_kd": RELATIONS | {"attention_relation_weight": 0.5},
    "attention_kd_student_gens": RELATIONS | {"attention_relation_weight": 0.5, "generate_labels_weight": 0.5},
    "hidden_kd": RELATIONS | {"hidden_weight": 0.5},
    "hidden_kd_student_gens": RELATIONS | {"hidden_weight": 0.5, "generate_labels_weight": 0.5},
}
LAYERS = {
    "last_layer": LayerMap(),
    "mid_sa_last_ca_layer": LayerMap(
        teacher_enc_hidden_layer=-3, teacher_dec_hidden_layer=-3, teacher_enc_sa_layer=-3, teacher_dec_sa_layer=-3
    ),
    "mid_sa_first_ca_layer": LayerMap(
        teacher_enc_sa_layer=-3, teacher_dec_sa_layer=-3, student_dec_ca_layer=0, teacher_dec_ca_layer=0
    ),
    "last_sa_first_ca_layer": LayerMap(student_dec_ca_layer=0, teacher_dec_ca_layer=0),
}
SCHEDULES = {  # for 20 epochs, 3 losses and no --n_patience_epochs
    "no_scheduling": {},
    "epoch_scheduling": {"change_every_n_epochs": 1, "keep_last": False},
    "3_epochs_scheduling": {"change_every_n_epochs": 3},
    "patience_epochs_scheduling": {"change_every_n_epochs": 16},
    "stage_scheduling": {"change_every_n_epochs": 6},
}


def loss(name, **values):
    return LossEntry(name=name, **values)


@pytest.fixture
def shipped_and(tmp_path):
    """The shipped file with more entries at its end."""

    def write(text=""):
        path = tmp_path / "kd_experiment_configs.yaml"
        path.write_text(SHIPPED.read_text(encoding="utf-8") + "\n" + textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def run(path, key, epochs=20, n_patience_epochs=None):
    return load_experiment(path, key, epochs=epochs, n_patience_epochs=n_patience_epochs)


def test_the_shipped_file_has_these_experiments():
    assert load_experiments(SHIPPED).keys() == EXPECTED.keys()


@pytest.mark.parametrize("key", EXPECTED)
def test_shipped_experiments(key):
    experiment = run(SHIPPED, key)
    (only,) = experiment.losses
    assert only == loss(only.name, **EXPECTED[key])
    assert (experiment.key, experiment.name) == (key, key)
    assert experiment.layers == LayerMap()
    assert experiment.schedule == Schedule(name="no_scheduling")
    assert experiment.needs_teacher is (key != "finetuning")


def test_weights_that_count():
    assert loss("a", forward_weight=0.25, hidden_weight=0.5).weights == {"forward": 0.25, "hidden": 0.5}


@pytest.mark.parametrize("layers", LAYERS)
def test_shipped_layer_maps(shipped_and, layers):
    path = shipped_and(f"my_kd: {{name: x, layer: {layers}, scheduling: no_scheduling, losses: [logits]}}")
    assert run(path, "my_kd").layers == LAYERS[layers]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shipped_schedules(shipped_and, schedule):
    losses = "[nll]" if schedule == "no_scheduling" else "[nll, logits, hidden_relations]"
    path = shipped_and(f"my_kd: {{name: x, layer: last_layer, scheduling: {schedule}, losses: {losses}}}")
    assert run(path, "my_kd").schedule == Schedule(name=schedule, **SCHEDULES[schedule])


@pytest.mark.parametrize(
    ("schedule", "epochs", "n_patience_epochs", "expected"),
    [
        ("patience_epochs_scheduling", 20, 5, 5),
        ("patience_epochs_scheduling", 20, None, 16),
        ("stage_scheduling", 20, 5, 10),
        ("stage_scheduling", 1, None, 1),
        ("stage_scheduling", 5, None, 2),
    ],
)
def test_the_run_decides(shipped_and, schedule, epochs, n_patience_epochs, expected):
    path = shipped_and(f"my_kd: {{name: x, layer: last_layer, scheduling: {schedule}, losses: [nll, logits]}}")
    assert run(path, "my_kd", epochs, n_patience_epochs).schedule.change_every_n_epochs == expected


def test_a_variant_needs_no_python(shipped_and):
    path = shipped_and(
        """
        my_kd:
          name: mine
          layer: my_layers
          scheduling: my_schedule
          losses: [my_loss, logits, my_loss]
        my_loss: {forward_weight: 0.2, logits_weight: 0.8, temperature: -0.95, generate_labels_weight: 0.7}
        my_layers: {teacher_dec_ca_layer: 2}
        my_schedule: {change_no_improvements_for: 2, random_sample: true, keep_last: FALSE}
        """
    )
    experiment = run(path, "my_kd")
    mine = loss("my_loss", forward_weight=0.2, logits_weight=0.8, temperature=-0.95, generate_labels_weight=0.7)
    assert experiment.name == "mine"
    assert experiment.losses == (mine, loss("logits", logits_weight=1.0), mine)
    assert experiment.layers == LayerMap(teacher_dec_ca_layer=2)
    assert experiment.schedule == Schedule(
        name="my_schedule", change_no_improvements_for=2, random_sample=True, keep_last=False
    )


def test_an_entry_may_be_unused(shipped_and):
    assert load_experiments(shipped_and("spare: {logits_weight: 1}")).keys() == EXPECTED.keys()


def experiment(**changes):
    values = {"name": "x", "layer": "last_layer", "scheduling": "no_scheduling", "losses": "[logits]"} | changes
    return "my_kd: {" + ", ".join(f"{key}: {value}" for key, value in values.items() if value is not None) + "}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (experiment(losses="[logit]"), "my_kd.losses: unknown entry 'logit'; nearest: 'logits'"),
        (experiment(layer="last_layers"), "my_kd.layer: unknown entry 'last_layers'; nearest: 'last_layer'"),
        (
            experiment(scheduling="no_schedule"),
            "my_kd.scheduling: unknown entry 'no_schedule'; nearest: 'no_scheduling'",
        ),
        (experiment(layer="logits"), "my_kd.layer: 'logits' .loss. is not a layer map; possible: last_layer, "),
        (experiment(losses="[last_layer]"), "my_kd.losses: 'last_layer' .layer map. is not a loss; possible: nll, "),
        (experiment(losses="[logits_kd]"), "my_kd.losses: 'logits_kd' .experiment. is not a loss; possible: nll, "),
        (experiment(losses="logits"), "my_kd.losses: must be a list"),
        (experiment(losses="[]"), "my_kd.losses: must be a list"),
        (experiment(losses="[[logits]]"), "my_kd.losses: needs one value, not a list"),
        (experiment(losses=None), "my_kd: losses missing; an experiment needs name, layer, scheduling, losses"),
        (experiment(name=None, layer=None), "my_kd: name, layer missing"),
        (experiment(lossess="[logits]"), "my_kd: unknown key 'lossess'; nearest: 'losses'"),
        (
            experiment(losses="[nll, logits]"),
            "my_kd.scheduling: 'no_scheduling' never changes the loss, so 'logits' is never used",
        ),
        ("a: {logit_weight: 1.0}", "a: unknown key 'logit_weight'; nearest: 'logits_weight'"),
        ("a: {logits_weight: 1.0, temprature: 2}", "a: unknown key 'temprature'; nearest: 'temperature'"),
        ("a: {logits_weight: 1.0, contrastive_weight: 2}", "a: unknown key 'contrastive_weight'; nearest: "),
        ("a: {name: a, logits_weight: 1.0}", "a: unknown key 'name'"),
        ("a: {keep_lst: True}", "a: unknown key 'keep_lst'; nearest: 'keep_last'"),
        ("a: {teacher_enc_layer: 1}", "a: unknown key 'teacher_enc_layer'; nearest: 'teacher_enc_sa_layer'"),
        ("a: {logits_weight: 1.0, keep_last: True, dropout: True}", "a: unknown key 'keep_last'"),
        ("a: {}", "a: must hold the keys of"),
        ("a: logits", "a: must hold the keys of"),
        ("a:", "a: must hold the keys of"),
        ("a: {logits_weight: much}", "a.logits_weight: 'much' is not a number"),
        ("a: {logits_weight: -1}", "a.logits_weight: must be at least 0, not -1.0"),
        ("a: {logits_weight: .nan}", "a.logits_weight: '.nan' is not a number"),
        ("a: {logits_weight: inf}", "a.logits_weight: 'inf' is not a finite number"),
        ("a: {logits_weight: True}", "a.logits_weight: 'True' is not a number"),
        ("a: {logits_weight: null}", "a.logits_weight: needs a value, not None"),
        ("a: {logits_weight: 0, dropout: True}", "a: all weights are 0"),
        ("a: {temperature: 2.0}", "a: all weights are 0"),
        ("a: {logits_weight: 1, temperature: 0}", "a.temperature: must not be 0"),
        ("a: {logits_weight: 1, temperature: -1.1}", "a.temperature: must be at least -1, not -1.1"),
        ("a: {logits_weight: 1, generate_labels_weight: 1.1}", "a.generate_labels_weight: must be at most 1, not 1.1"),
        ("a: {logits_weight: 1, generate_labels_weight: -0.1}", "a.generate_labels_weight: must be at least 0"),
        ("a: {logits_weight: 1, kl_loss: 1}", "a.kl_loss: '1' is neither True nor False"),
        ("a: {logits_weight: 1, dropout: yes}", "a.dropout: 'yes' is neither True nor False"),
        ("a: {teacher_dec_ca_layer: 0.5}", "a.teacher_dec_ca_layer: '0.5' is not an integer"),
        ("a: {teacher_dec_ca_layer: last}", "a.teacher_dec_ca_layer: 'last' is not an integer"),
        ("a: {change_every_n_epochs: 0}", "a.change_every_n_epochs: must be at least 1, not 0"),
        ("a: {change_every_n_epochs: n_epochs}", "a.change_every_n_epochs: 'n_epochs' is not an integer"),
        (
            "a: {change_no_improvements_for: epochs_per_loss}",
            "a.change_no_improvements_for: 'epochs_per_loss' is not an",
        ),
        (
            "a: {change_every_n_epochs: 1, change_no_improvements_for: 2}",
            "a: change_every_n_epochs and change_no_impro",
        ),
        ("a: {random_sample: True}", "a.random_sample: needs one of change_every_n_epochs"),
        ("logits: {logits_weight: 1.0}", r"line \d+: key 'logits' is given twice"),
        ("a: {logits_weight: 1, logits_weight: 2}", r"line \d+: key 'logits_weight' is given twice"),
        ("a: !!python/name:os.system", r"line \d+: tag .* is not allowed"),
        ("a: {logits_weight: !!float 1}", r"line \d+: tag .* is not allowed"),
    ],
)
def test_mistakes(shipped_and, text, message):
    with pytest.raises(UserError, match=f"^kd_experiment_configs.yaml: {message}") as raised:
        load_experiments(shipped_and(text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{logits_weight: 1, missing_mass: dorp}", "my_loss.missing_mass: 'dorp' is not one of drop, zero, bucket"),
        ("{logits_weight: 1, missing_mass: zero, temperature: 2}", "'zero' needs temperature 1"),
        ("{logits_weight: 1, missing_mass: bucket, temperature: -0.9}", "'bucket' needs temperature 1"),
    ],
)
def test_missing_mass(shipped_and, entry, message):
    with pytest.raises(UserError, match=message):
        load_experiments(shipped_and(f"my_loss: {entry}"))
    assert load_experiments(shipped_and("my_loss: {logits_weight: 1, missing_mass: zero}"))


def test_an_unused_entry_is_checked_too(shipped_and):
    with pytest.raises(UserError, match="spare"):
        run(shipped_and("spare: {logits_wait: 1}"), "logits_kd")


def test_unknown_experiment():
    with pytest.raises(
        UserError, match="^kd_experiment_configs.yaml: unknown experiment 'logit_kd'; nearest: 'logits_kd'"
    ):
        run(SHIPPED, "logit_kd")


def test_a_file_without_experiments(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("a: {logits_weight: 1}\n", encoding="utf-8")
    with pytest.raises(UserError, match="^own.yaml: unknown experiment 'a'; the file has none"):
        run(path, "a")


# -------------------------------------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ({"forward_weight": 1.0}, "NLL"),
        ({"forward_weight": 0.5, "logits_weight": 0.5, "temperature": 2.0}, "0.5 NLL + 0.5 logits KL at T 2"),
        ({"logits_weight": 1.0, "temperature": -0.9}, "logits KL to the top-0.9 nucleus"),
        ({"hidden_weight": 1.0}, "hidden relations (RMSE)"),
        ({"logits_weight": 1.0, "missing_mass": "bucket"}, "logits KL, missing mass: bucket"),
        (
            {"attention_relation_weight": 0.3, "kl_loss": True, "loss_scale": True, "dropout": True},
            "0.3 attention relations (KL), scaled, noisy teacher",
        ),
        (
            {"logits_weight": 1.0, "generate_labels_weight": 0.35},
            "logits KL, labels by the student on 35% of the steps",
        ),
        (
            {"logits_weight": 1.0, "generate_labels_weight": 0.5, "generate_top_k": 50, "generate_temperature": 0.7},
            "logits KL, labels by the student on 50% of the steps (T 0.7, top-k 50)",
        ),
    ],
)
def test_a_line_on_a_loss(loss, said):
    experiment = Experiment(
        key="x", name="x", layers=LayerMap(), schedule=Schedule(name="s"), losses=(LossEntry(name="l", **loss),)
    )
    assert describe(experiment) == said


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"change_every_n_epochs": 3}, "NLL -> logits KL; changes every 3 epochs, then stays"),
        (
            {"change_every_n_evaluation_steps": 2, "keep_last": False},
            "NLL -> logits KL; changes every 2 evaluations, then again",
        ),
        (
            {"change_no_improvements_for": 4, "random_sample": True},
            "NLL -> logits KL; changes after 4 evaluations without a better score, drawn at random",
        ),
    ],
)
def test_a_line_on_a_schedule(schedule, said):
    losses = (LossEntry(name="a", forward_weight=1.0), LossEntry(name="b", logits_weight=1.0))
    schedule = Schedule(name="s", **schedule)
    assert describe(Experiment(key="x", name="x", layers=LayerMap(), schedule=schedule, losses=losses)) == said


@pytest.mark.parametrize("script", [kd_main, kd_dataset_with_logits_main])
def test_list_experiments(script, capsys):
    """No other flag is needed, and there is a line for each."""
    with pytest.raises(SystemExit) as ended:
        script.main(["--list_experiments", "True"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(load_experiments(SHIPPED))
    assert all(len(line.split()) > 1 for line in lines)


PARTS = {"l": {"student_dec_sa_layer": -1}, "s": {"keep_last": True}, "n": {"forward_weight": 1.0}}


def test_list_experiments_of_another_file(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"a_b": {"name": "x", "layer": "l", "scheduling": "s", "losses": ["n"]}} | PARTS))
    with pytest.raises(SystemExit):
        kd_main.main(["--list_experiments", "True", "--experiment_config_path", str(path)])
    assert capsys.readouterr().out == "a_b  NLL\n"
    path.write_text("a_b: {nam: x}")
    with pytest.raises(UserError, match="mine.yaml: a_b"):
        kd_main.main(["--list_experiments", "True", "--experiment_config_path", str(path)])
