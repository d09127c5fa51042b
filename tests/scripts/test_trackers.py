"""Runs with --report_to: TensorBoard's files are read back; what is not installed or fails costs no results."""

from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import ft_flags, read, result, rows, snapshot

import ft_main
from src.config.cli import run_script
from src.config.flags.train import FineTuneArguments
from src.devices import trackers
from src.training import setup
from src.training.update import Updater

Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def commands(dropout_models, rotation_path) -> Command:
    """A run of two epochs of three updates, with a row of losses for each; evaluations end an epoch."""
    shared = {"test_every_n_epochs": 1, "log_every_n_steps": 2, "metrics": "chrf", "metric_for_best_model": "chrf"}
    shared["save_checkpoint_every_n_steps"] = 100
    student = dropout_models["t5"]["student"]
    return lambda out, **flags: ft_flags(student, rotation_path, out, **{**shared, **flags})


@pytest.fixture
def command(commands, tmp_path) -> Command:
    return lambda **flags: commands(tmp_path / "out", **flags)


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory) -> Path:
    """An uninterrupted run with TensorBoard."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ft_main.main(commands(out, report_to="tensorboard"))
    return out


def curves(out: Path) -> dict[str, list[tuple[int, float | str]]]:
    """(step, value) of all that TensorBoard's files hold, by name, in the order of arrival."""
    (folder,) = out.glob("tensorboard_*")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    found = {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}
    texts = {name: events.Tensors(name) for name in events.Tags()["tensors"]}
    return found | {
        name: [(each.step, each.tensor_proto.string_val[0].decode()) for each in values]
        for name, values in texts.items()
    }


def is_repeated(name: str) -> bool:
    """Whether equal runs have equal values: all but speeds."""
    return not name.endswith("_per_second")


def killed_after(monkeypatch, updates: int, flags: list[str]) -> None:
    """Kill the run, without a chance to save its state, when it has made some updates."""
    update, left = Updater.update, iter(range(updates))

    def counted(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", counted)
        with pytest.raises(KeyboardInterrupt):
            ft_main.main(flags)


def files(out: Path) -> dict[str, str]:
    """Hashes of a run's results, those of the tracker left out."""
    return {name: digest for name, digest in result(out).items() if not name.startswith("tensorboard_")}


def test_tensorboard_has_the_rows_of_the_files(whole):
    found, losses, scores = curves(whole), rows(whole, "train_losses.csv"), rows(whole)
    steps = [1, 2, 3, 4, 5, 6]
    assert len(losses) == len(steps)
    for name in ("loss", "forward", "learning_rate", "gradient_norm"):
        values = [pytest.approx(float(row[name])) for row in losses]
        assert found[f"train/{name}"] == list(zip(steps, values, strict=True))
    assert all(value > 0 for name in ("tokens", "rows") for _, value in found[f"train/{name}_per_second"])
    assert [row["split"] for row in scores] == ["dev", "test", "dev", "test", "test"]
    assert found["dev/nll"] == [(step, pytest.approx(float(scores[i]["nll"]))) for step, i in ((3, 0), (6, 2))]
    assert [step for step, _ in found["test/chrf"]] == [3, 6]
    assert found["best_test/chrf"] == [(6, pytest.approx(float(scores[-1]["chrf"])))]
    (_, text), *_ = found["dev/predictions/text_summary"]
    references = read(whole / "eval_generations.json")["dev__epoch0__step4"]["references"]
    assert all(f"**reference**: {reference}" in text for reference in references)


def test_a_run_that_is_killed_and_continued_has_the_same_curves(monkeypatch, command, whole, tmp_path):
    """Killed between two states: rows that come again are not sent again, and none is left out."""
    flags = command(report_to="tensorboard")
    killed_after(monkeypatch, 5, flags)
    (state,) = (tmp_path / "out" / "state").iterdir()
    saved = read(state / "run_state.json")["run"]["n_losses"]
    assert (saved, len(rows(tmp_path / "out", "train_losses.csv"))) == (3, 5)
    killed_after(monkeypatch, 1, flags)  # one of the two rows has come again
    ft_main.main(flags)
    ours, expected = ({n: v for n, v in curves(out).items() if is_repeated(n)} for out in (tmp_path / "out", whole))
    assert ours == expected
    assert [step for step, _ in ours["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert files(tmp_path / "out") == files(whole)


def test_a_curve_has_more_points_than_evaluations():
    """Without a tracker the file of losses stays as it was."""
    paths = {"output_dir": "o", "dataset_path": "d"}
    intervals = [FineTuneArguments(**paths, report_to=name).loss_interval for name in ("none", "trackio")]
    assert intervals == [None, 50]
    assert FineTuneArguments(**paths, report_to="trackio", log_every_n_steps=9).loss_interval == 9


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(monkeypatch, command, capsys, tmp_path, name):
    """One line that names the package, before weights are read; also of a dry run."""
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setattr(setup, "load_model", None)
    for dry_run in (False, True):
        assert run_script(ft_main.main, command(report_to=name, dry_run=dry_run)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert (
            f"--report_to {name}: the package {name} is not installed; pip install {name}, or take tensorboard" in line
        )
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_cannot_be_started_leaves_the_earlier_run_alone(monkeypatch, command, capsys, tmp_path):
    ft_main.main(command(epochs=1))
    before = snapshot(tmp_path)

    def start(self):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(TensorBoardTracker, "start", start)
    capsys.readouterr()
    assert run_script(ft_main.main, command(report_to="tensorboard", overwrite=True)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--report_to tensorboard: cannot be started: no route to host")
    assert snapshot(tmp_path) == before


def test_a_tracker_that_fails_later_costs_one_warning(monkeypatch, command, capsys, tmp_path, whole):
    log, calls = TensorBoardTracker.log, iter(range(100))

    def fails(self, values, step):
        if next(calls) >= 3:
            raise ConnectionError("no route to host")
        log(self, values, step=step)

    monkeypatch.setattr(TensorBoardTracker, "log", fails)
    capsys.readouterr()
    ft_main.main(command(report_to="tensorboard"))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "--report_to" in line]
    assert len(warnings) == 1 and "cannot be reached: no route to host" in warnings[0]
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.slow
def test_starting_anew_removes_the_former_curves(command, tmp_path):
    for seed in (1, 2):
        ft_main.main(command(report_to="tensorboard", epochs=1, seed=seed, overwrite=True))
    (folder,) = (tmp_path / "out").glob("tensorboard_*")
    assert read(tmp_path / "out" / "run.json")["curves"]["key"] in folder.name
    assert [step for step, _ in curves(tmp_path / "out")["train/loss"]] == [1, 2, 3]
    ft_main.main(command(epochs=1, overwrite=True))
    assert not list((tmp_path / "out").glob("tensorboard_*"))
    assert "curves" not in read(tmp_path / "out" / "run.json")


@pytest.mark.slow
def test_trackio_continues_its_run(monkeypatch, command, tmp_path):
    """It is local: nothing of it needs a network."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    flags = command(report_to="trackio")
    killed_after(monkeypatch, 5, flags)
    ft_main.main(flags)
    (run,) = trackio.Api().runs(tmp_path.name)
    logs = trackio.sqlite_storage.SQLiteStorage.get_logs(tmp_path.name, run.name)
    steps = [row["step"] for row in logs if "train/loss" in row]
    assert steps == list(range(1, 7))
    assert run.name == f"out-{read(tmp_path / 'out' / 'run.json')['curves']['key']}"
    assert run.config["metric_for_best_model"] == "chrf"
