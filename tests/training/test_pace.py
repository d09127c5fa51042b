"""The values beside the progress bar of a training, and its speed."""

from types import SimpleNamespace

from tiny_runs import ft_flags, rows

import ft_main
from src.config import console
from src.training.pace import Readout, Speed
from src.training.state import RunState
from src.training.update import Work


def updater_with(work: Work, **losses: float) -> SimpleNamespace:
    metrics = SimpleNamespace(add_to=lambda sums: None)
    return SimpleNamespace(state=RunState(losses=losses), work=work, metrics=metrics)


def test_speed_is_that_since_the_last_question():
    updater = updater_with(Work())
    speed = Speed(updater)
    assert speed.take() == {}
    updater.work = Work(rows=8, tokens=100, seconds=2.0)
    assert speed.take() == {"rows_per_second": 4.0, "tokens_per_second": 50.0}
    updater.work = Work(rows=18, tokens=150, seconds=3.0)
    assert speed.take() == {"rows_per_second": 10.0, "tokens_per_second": 50.0}


def test_the_readout_is_the_mean_since_it_was_last_shown():
    """Also after a row of losses was written, which begins new sums: then since that row."""
    updater = updater_with(Work(8, 100, 1.0), loss=6.0, updates=2)  # of a resumed run
    readout = Readout(updater, lambda: 1e-4)
    updater.state.losses.update(loss=16.0, updates=4)
    updater.work = Work(24, 300, 3.0)
    assert readout() == "loss 5, lr 0.0001, 8 rows/s"
    updater.state.losses = {"loss": 21.0, "updates": 7}
    assert readout() == "loss 3, lr 0.0001"
    updater.state.losses = {}
    assert readout() == "lr 0.0001"


def test_lines_of_a_log_file_show_each_loss(dropout_models, rotation_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "LOG_INTERVAL", 0.0)
    flags = {"log_every_n_steps": 1, "max_gpu_batch_size": 4}
    ft_main.main(ft_flags(dropout_models["t5"]["student"], rotation_path, tmp_path / "out", **flags))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fine-tune, epoch ")]
    found = rows(tmp_path / "out", "train_losses.csv")
    assert len(lines) == len(found) == 6
    for number, (line, row) in enumerate(zip(lines, found, strict=True), start=1):
        assert line.startswith(f"fine-tune, epoch {row['epoch']}: {number}/6 steps (")
        assert f", loss {float(row['loss']):.4g}, lr {float(row['learning_rate']):.3g}, " in line
        assert line.endswith(" rows/s")
