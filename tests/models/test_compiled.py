"""--compile True: compiled layers in training and generation; refused where it cannot work."""

import pytest
import torch
from conftest import slow
from tiny_runs import kd_flags, rows

import kd_main
from src.config.errors import UserError
from src.config.experiments.schema import LossEntry
from src.decoding.generate import write_tokens
from src.decoding.settings import decoding_of
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.models import compiled
from src.models.compiled import compile_layers, run_eagerly
from src.models.families import family_of
from src.models.loading import load_model
from src.tokens.batch import Batch

NLL = LossEntry(name="nll", forward_weight=1.0)


@pytest.fixture
def traced_only(monkeypatch):
    """Layers are traced and not compiled: seconds instead of minutes, with the same calls."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield
    torch.compiler.reset()


def batch_of(left: bool) -> Batch:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1] if left else [1, 1, 0, 0]])
    return Batch(torch.full((2, 4), 9), mask, torch.tensor([[5, 6, 7], [8, 1, -100]]), (0, 1))


def learned(model, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss, _ = distillation_loss(capture_states(model, batch, NLL, {}), None, batch, NLL, Window(2, 5))
    loss.backward()
    return {"loss": loss.detach()} | {name: each.grad.clone() for name, each in model.named_parameters()}


@pytest.mark.parametrize("family", ["gpt2", *slow("bart", "t5", "opt", "llama")])
def test_compiled_layers_teach_the_same_and_writing_leaves_them_out(family, tiny_models, traced_only):
    folder = tiny_models[family]["student"]
    plain, made = load_model(folder), compile_layers(load_model(folder))
    batch = batch_of(left=not plain.config.is_encoder_decoder)
    torch.testing.assert_close(learned(made, batch), learned(plain, batch))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0, "nothing was traced"
    how = decoding_of("beam_search", num_beams=1, targets_per_input=1, max_new_tokens=5)
    torch._dynamo.utils.counters.clear()
    assert torch.equal(write_tokens(made, batch, how), write_tokens(plain, batch, how))
    assert not torch._dynamo.utils.counters["frames"]


def test_only_compiled_models_change_anything(tiny_models, monkeypatch):
    monkeypatch.setattr(torch.compiler, "set_stance", None)  # calling it would fail
    with run_eagerly(load_model(tiny_models["t5"]["student"])):
        pass


def test_kd_main_compiles_both_models(tiny_models, rotation_path, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("src.training.setup.compile_layers", lambda model: seen.append(model) or model)
    kd_main.main(kd_flags(tiny_models["t5"], rotation_path, tmp_path / "out", epochs=1, compile=True))
    assert len(seen) == 2


@pytest.mark.slow
def test_kd_main_learns_nearly_the_same(tiny_models, rotation_path, tmp_path, traced_only):
    losses = []
    for compiles in (False, True):
        out = tmp_path / str(compiles)
        kd_main.main(kd_flags(tiny_models["t5"], rotation_path, out, epochs=1, compile=compiles))
        losses.append([float(row["loss"]) for row in rows(out, "train_losses.csv")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_experiments_that_look_into_layers_are_refused(dropout_models, rotation_path, tmp_path):
    flags = kd_flags(dropout_models["t5"], rotation_path, tmp_path, experiment_config_key="attention_kd", compile=True)
    with pytest.raises(UserError, match="^--compile True: experiment 'attention_kd' compares states in layers"):
        kd_main.main(flags)


def test_no_compiler(dropout_models, rotation_path, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="^--compile True: needs a C\\+\\+ compiler"):
        kd_main.main(kd_flags(dropout_models["t5"], rotation_path, tmp_path / "out", compile=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_compiled_for_real(family, tiny_models):
    folder = tiny_models[family]["student"]
    plain, made = load_model(folder), compile_layers(load_model(folder))
    assert family_of(plain.config)
    batch = batch_of(left=not plain.config.is_encoder_decoder)
    torch.testing.assert_close(learned(made, batch), learned(plain, batch), rtol=1e-4, atol=1e-6)
