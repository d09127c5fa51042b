"""What saves memory: fewer rows at once, layers that are computed again, optimizers with small states."""

import pytest
import torch
from conftest import slow
from tiny_runs import kd_flags, places, rows, weights

import kd_main
from src.models.loading import load_model
from src.training.optimizers import state_bytes
from src.training.update import Updater


def test_memory_that_runs_out_halves_the_rows_at_once(tiny_models, rotation_path, tmp_path, monkeypatch, capsys):
    """--max_gpu_batch_size auto: no update is lost, and none changes."""
    flags = {"epochs": 3, "batch_size": 8, "optimizer_eps": 1e-4}
    kd_main.main(kd_flags(tiny_models["t5"], rotation_path, tmp_path / "plain", max_gpu_batch_size=8, **flags))
    learn, sizes = Updater._learn, []

    def in_little_memory(self, phase, entry, batch, *args, **kwargs):
        learned = learn(self, phase, entry, batch, *args, **kwargs)
        sizes.append(len(batch.rows))
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learned

    monkeypatch.setattr(Updater, "_learn", in_little_memory)
    capsys.readouterr()
    kd_main.main(kd_flags(tiny_models["t5"], rotation_path, tmp_path / "auto", max_gpu_batch_size="auto", **flags))
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) <= {1, 2}
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "out of memory" in line] == [
        f"out of memory: at most {n} rows at once from here on" for n in (4, 2)
    ]
    plain, auto = (weights(tmp_path / out / "model") for out in ("plain", "auto"))
    assert max(float((auto[name] - value).abs().max()) for name, value in plain.items()) < 1e-5
    assert places(tmp_path / "auto") == places(tmp_path / "plain")


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("t5", "attention_kd"),
        *slow(("t5", "logits_kd"), ("gpt2", "logits_kd"), ("gpt2", "attention_kd")),
    ],
)
def test_layers_that_are_computed_again_have_the_same_gradients(dropout_models, rotation_path, tmp_path, family, key):
    """With dropout, and with states that hooks take out of the layers."""
    for name, again in (("plain", False), ("again", True)):
        flags = {"experiment_config_key": key, "gradient_checkpointing": again, "epochs": 2}
        kd_main.main(kd_flags(dropout_models[family], rotation_path, tmp_path / name, **flags))
    plain, again = (weights(tmp_path / name / "model") for name in ("plain", "again"))
    assert all(torch.equal(again[name], value) for name, value in plain.items())


def test_adafactor_learns(tiny_models, rotation_path, tmp_path):
    """A stopped run has its states back, as with AdamW; they are small."""
    flags = {"optimizer": "adafactor", "epochs": 3, "learning_rate": 0.02}
    kd_main.main(kd_flags(tiny_models["t5"], rotation_path, tmp_path / "out", **flags, keep_checkpoint_after_test=True))
    losses = [float(row["loss"]) for row in rows(tmp_path / "out", "train_losses.csv")]
    assert losses[-1] < losses[0]
    (kept,) = {folder for folder in (tmp_path / "out").glob("epoch*") if not folder.name.endswith("__last")}
    states = torch.load(kept / "optimizer.pt", weights_only=True)["optimizer"]["state"].values()
    tensors = [each for state in states for each in state.values() if torch.is_tensor(each) and each.dim()]
    model = load_model(tiny_models["t5"]["student"])
    assert sum(each.nbytes for each in tensors) == state_bytes("adafactor", model.parameters())
