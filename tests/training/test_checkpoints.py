"""Checkpoint folders: atomic, exact, and refused in one line if damaged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ENCODER_DECODER_NAMES, slow
from model_types import write_tiny_model
from safetensors.torch import load_file
from tiny_runs import ft_flags, names
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import ft_main
from src.config.errors import UserError
from src.models.loading import load_model, load_tokenizer
from src.training import checkpoints
from src.training.checkpoints import StateFolder, load_checkpoint, save_checkpoint
from src.training.state import Best, RunState, TrainingState, read_state

FAMILIES = ("t5", "gpt2")
STATE = RunState(
    phase=1, epoch=7, steps_done=3, updates=40, evaluated=2, phase_start=5, best_epoch=6, n_rows=9, n_losses=11,
    best=Best(41.25, 6, 11, "epoch6__step11__score41_250"), last="epoch7__step1__score40_000",
    losses={"loss": 0.1 + 0.2, "updates": 3.0},
)  # fmt: skip


class Killed(BaseException):
    """What a SIGKILL is to the program: no handler of errors sees it."""


def training_of(folder: str, *, seed: int = 0) -> TrainingState:
    """A model that was trained for three updates on nothing in particular."""
    model = load_model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = LambdaLR(optimizer, lambda update: 1 / (update + 1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        scheduler.step()
    return TrainingState(model, load_tokenizer(folder), optimizer, scheduler)


def tensors_of(training: TrainingState) -> dict[str, torch.Tensor]:
    moments = training.optimizer.state_dict()["state"]
    return {
        **training.model.state_dict(),
        **{f"{number}.{name}": value for number, state in moments.items() for name, value in state.items()},
    }


def assert_equal(left: TrainingState, right: TrainingState) -> None:
    ours, theirs = tensors_of(left), tensors_of(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert left.optimizer.param_groups[0]["lr"] == right.optimizer.param_groups[0]["lr"]
    assert left.scheduler.get_last_lr() == right.scheduler.get_last_lr()
    assert left.scheduler.last_epoch == right.scheduler.last_epoch


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_exact(dropout_models, tmp_path, family):
    saved = training_of(dropout_models[family]["student"])
    save_checkpoint(tmp_path / "c", saved, STATE)
    loaded = training_of(dropout_models[family]["student"], seed=1)
    assert load_checkpoint(tmp_path / "c", loaded) == STATE
    assert_equal(saved, loaded)
    assert checkpoints.is_resumable(tmp_path / "c")


@pytest.mark.parametrize(("family", "auto_class"), [("t5", AutoModelForSeq2SeqLM), ("gpt2", AutoModelForCausalLM)])
def test_a_checkpoint_is_a_model_folder(dropout_models, tmp_path, family, auto_class):
    saved = training_of(dropout_models[family]["student"])
    save_checkpoint(tmp_path / "c", saved, RunState())
    model = auto_class.from_pretrained(tmp_path / "c")
    assert all(torch.equal(value, saved.model.state_dict()[name]) for name, value in model.state_dict().items())
    assert load_tokenizer(str(tmp_path / "c")).get_vocab() == saved.tokenizer.get_vocab()


@pytest.mark.parametrize("model_type", ["mixtral", "nemotron_h", "gemma3", *slow("qwen3_moe", "gpt_neox")])
def test_files_name_weights_otherwise_than_memory(tiny_tokenizers, tmp_path, model_type):
    """Each expert has a file's weight of its own; in memory all are one. A bare state dict has the names of memory."""
    write_tiny_model(model_type, tmp_path / "m", tiny_tokenizers["gpt2"], seed=0)
    saved = training_of(str(tmp_path / "m"))
    save_checkpoint(tmp_path / "c", saved, STATE)
    file = tmp_path / "c" / "model.safetensors"
    in_file = load_file(file).keys()
    assert in_file == load_file(tmp_path / "m" / "model.safetensors").keys()
    assert not in_file <= saved.model.state_dict().keys()
    loaded = training_of(str(tmp_path / "m"), seed=1)
    assert load_checkpoint(tmp_path / "c", loaded) == STATE
    assert_equal(saved, loaded)

    forms = [load_model(str(tmp_path / "m"), state_dict_path=path) for path in (file, tmp_path / "c")]
    bare = checkpoints.reduce_to_state_dict(tmp_path / "c")
    stock = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "m"))
    stock.load_state_dict(torch.load(bare, weights_only=True), strict=True)
    for model in (*forms, stock, load_model(str(tmp_path / "m"), state_dict_path=bare)):
        assert all(torch.equal(value, saved.model.state_dict()[name]) for name, value in model.state_dict().items())
        model.save_pretrained(tmp_path / "again")
        assert load_file(tmp_path / "again" / "model.safetensors").keys() == in_file


def test_the_scaler_of_half_precision_is_saved(dropout_models, tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    saved = replace(training_of(dropout_models["t5"]["student"]), scaler=scaler)
    save_checkpoint(tmp_path / "c", saved, RunState())
    fresh = replace(training_of(dropout_models["t5"]["student"]), scaler=torch.amp.GradScaler("cpu", init_scale=2.0))
    load_checkpoint(tmp_path / "c", fresh)
    assert fresh.scaler.get_scale() == 512.0


def test_a_state_without_best(tmp_path, dropout_models):
    save_checkpoint(tmp_path / "c", training_of(dropout_models["t5"]["student"]), RunState())
    assert read_state(tmp_path / "c").run == RunState()


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def checkpoint(tmp_path, dropout_models) -> Path:
    save_checkpoint(tmp_path / "c", training_of(dropout_models["t5"]["student"]), STATE)
    return tmp_path / "c"


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 torn", b"\x80\x02}q\x00."])
def test_a_damaged_optimizer_is_one_line(checkpoint, dropout_models, content):
    (checkpoint / "optimizer.pt").write_bytes(content)
    with pytest.raises(UserError, match="optimizer.pt: cannot be read: .+") as refused:
        load_checkpoint(checkpoint, training_of(dropout_models["t5"]["student"]))
    assert len(str(refused.value).splitlines()) == 1


def test_a_torn_optimizer_is_one_line(checkpoint, dropout_models):
    data = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="optimizer.pt: cannot be read"):
        load_checkpoint(checkpoint, training_of(dropout_models["t5"]["student"]))


def test_an_optimizer_of_another_model(checkpoint, tmp_path, dropout_models):
    save_checkpoint(tmp_path / "other", training_of(dropout_models["gpt2"]["student"]), STATE)
    shutil.copy(tmp_path / "other" / "optimizer.pt", checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match="optimizer.pt: cannot be read: .*param"):
        load_checkpoint(checkpoint, training_of(dropout_models["t5"]["student"]))


def test_nothing_in_an_optimizer_file_is_executed(checkpoint, dropout_models, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "executed", "yes"))

    torch.save({"optimizer": Evil()}, checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match="optimizer.pt: cannot be read"):
        load_checkpoint(checkpoint, training_of(dropout_models["t5"]["student"]))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("values", [{"steps": 3}, {"best": {"score": 1.0}}])
def test_the_state_of_another_version(checkpoint, values):
    written = json.loads((checkpoint / "run_state.json").read_text())
    written["run"] |= values
    (checkpoint / "run_state.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="run_state.json: not the state of a run of this version"):
        read_state(checkpoint)


def test_a_state_with_the_checksums_of_rows(checkpoint):
    """Earlier versions wrote them; they are not looked at any more."""
    written = json.loads((checkpoint / "run_state.json").read_text())
    written["run"]["sums"] = {"eval_scores.csv": 3946057175, "train_losses.csv": 0}
    (checkpoint / "run_state.json").write_text(json.dumps(written))
    assert read_state(checkpoint).run == STATE


@pytest.mark.parametrize("name", ["../out", "/etc", "a/b", "..", ".", "", "a\0b", 3, None])
@pytest.mark.parametrize("where", ["best", "last"])
def test_names_that_lead_elsewhere(checkpoint, where, name):
    """A checkpoint of somebody else's: its folder of the best is written, and later removed, by this name."""
    if where == "last" and name == "":
        return  # before the first evaluation
    written = json.loads((checkpoint / "run_state.json").read_text())
    if where == "best":
        written["run"]["best"]["folder"] = name
    else:
        written["run"]["last"] = name
    (checkpoint / "run_state.json").write_text(json.dumps(written))
    with pytest.raises(
        UserError, match=r"not the state of a run of this version: Expected `str`.* at `\$\.run\.(best\.folder|last)`"
    ):
        read_state(checkpoint)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("run",), 0), (("run", "epoch"), "x"), (("run", "epoch"), -1), (("run", "steps_done"), True),
        (("run", "losses"), []), (("run", "losses"), {"loss": None}), (("run", "said"), "loops"),
        (("run", "stage", "index"), -1), (("run", "best", "score"), "high"), (("checksums",), []),
        (("scheduler",), None), (("scheduler", "last_epoch"), "x"), (("scheduler", "_last_lr"), []),
        (("scheduler", "base_lrs"), [1, 2]),
    ],
)  # fmt: skip
def test_a_state_of_other_values(checkpoint, dropout_models, place, value):
    written = json.loads((checkpoint / "run_state.json").read_text())
    inner = written
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (checkpoint / "run_state.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="run_state.json: not the state of a run"):
        load_checkpoint(checkpoint, training_of(dropout_models["t5"]["student"]))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_one_bit_of_a_checkpoint(checkpoint, dropout_models, name):
    """Neither library notices."""
    data = bytearray((checkpoint / name).read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: (has changed since|cannot be read: its part .* damaged)"):
        load_checkpoint(checkpoint, training_of(dropout_models["t5"]["student"]))


@pytest.mark.parametrize(("family", "role"), [("gpt2", "student"), ("t5", "teacher")])
def test_weights_of_another_model(checkpoint, dropout_models, family, role):
    training = training_of(dropout_models[family][role])
    with pytest.raises(UserError, match="not weights of this model: .+"):
        checkpoints.load_weights(training.model, checkpoint)


# ----------------------------------------------------------------------------------------------------- whole or not


def test_a_folder_that_fails_while_it_is_written_is_not_there(tmp_path):
    with pytest.raises(Killed), checkpoints.atomic_folder(tmp_path / "c") as temporary:
        (temporary / "half").write_text("half")
        raise Killed
    assert names(tmp_path) == set()


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("old", "new"):
        with checkpoints.atomic_folder(tmp_path / "c") as temporary:
            (temporary / text).write_text(text)
            assert text == "old" or (tmp_path / "c" / "old").is_file()
    assert names(tmp_path) == {"c"}
    assert names(tmp_path / "c") == {"new"}


def test_a_failed_replacement_leaves_the_former_one(tmp_path):
    with checkpoints.atomic_folder(tmp_path / "c") as temporary:
        (temporary / "old").write_text("old")
    with pytest.raises(Killed), checkpoints.atomic_folder(tmp_path / "c"):
        raise Killed
    assert names(tmp_path) == {"c"}
    assert names(tmp_path / "c") == {"old"}


# -------------------------------------------------------------------------------------------------------- state folder


def test_the_newest_state_counts_as_a_number(tmp_path, dropout_models):
    training = training_of(dropout_models["t5"]["student"])
    states = StateFolder(tmp_path)
    assert states.newest() is None
    for name in ("9_3", "10_2", "10_11"):
        save_checkpoint(tmp_path / "state" / name, training, RunState())
    assert states.newest() == tmp_path / "state" / "10_11"
    (tmp_path / "state" / "10_11" / "optimizer.pt").unlink()
    assert states.newest() == tmp_path / "state" / "10_2"


def test_an_older_state_goes_when_the_newer_one_is_whole(tmp_path, dropout_models, monkeypatch):
    training = training_of(dropout_models["t5"]["student"])
    states = StateFolder(tmp_path)
    states.save(training, RunState(updates=9, n_rows=1))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            states.save(training, RunState(updates=10, n_rows=1))
    assert names(tmp_path / "state") == {"9_1"}
    states.save(training, RunState(updates=10, n_rows=1))
    assert names(tmp_path / "state") == {"10_1"}
    states.clear()
    states.clear()
    assert names(tmp_path) == set()


def test_a_state_that_is_there_is_never_without_a_copy(tmp_path, dropout_models, monkeypatch):
    """Saved again at the same position (a signal right after an evaluation), it stays as it is."""
    training = training_of(dropout_models["t5"]["student"])
    states = StateFolder(tmp_path)
    states.save(training, RunState(updates=9, n_rows=1))
    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda *_: (_ for _ in ()).throw(Killed))
    states.save(training, RunState(updates=9, n_rows=1))
    assert states.newest() == tmp_path / "state" / "9_1"


def test_halves_in_the_state_folder_are_removed(tmp_path, dropout_models):
    (tmp_path / "state" / ".8_1.1a2b.tmp").mkdir(parents=True)
    StateFolder(tmp_path).save(training_of(dropout_models["t5"]["student"]), RunState(updates=9, n_rows=1))
    assert names(tmp_path / "state") == {"9_1"}


# --------------------------------------------------------------------------------------------------- best and the rest


def test_reduce_to_state_dict(checkpoint, dropout_models):
    model = load_model(str(checkpoint))
    path = checkpoints.reduce_to_state_dict(checkpoint)
    assert names(path.parent) == {"c__model.pt"}
    loaded = load_model(dropout_models["t5"]["student"], state_dict_path=path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_removal_that_is_killed_leaves_no_half_under_the_name(checkpoint, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        checkpoints.reduce_to_state_dict(checkpoint)
    (left,) = names(checkpoint.parent) - {"c__model.pt"}
    assert left.startswith(".c.")
    assert left.endswith(".former")


def test_remove_others(tmp_path):
    folders = ("epoch0__step1__score1_0", "epoch1__step1__score2_0", "epoch1__step1__score2_0__last", "epochs")
    for name in folders:
        (tmp_path / name).mkdir()
    (tmp_path / "epoch0__step1__score1_0__model.pt").write_text("weights")
    checkpoints.remove_others(tmp_path, keep=("epoch1__step1__score2_0",))
    assert names(tmp_path) == {*folders[1:], "epoch0__step1__score1_0__model.pt"}


@pytest.mark.parametrize("family", ["t5", "gpt2", *slow("bart", "opt", "llama")])
def test_the_bare_state_dict_is_that_of_the_stock_class(tiny_models, tmp_path, rotation_path, family):
    """Tied weights included; torch keeps them as one tensor in the file."""
    folder = tiny_models[family]["student"]
    ft_main.main(ft_flags(folder, rotation_path, tmp_path / "out", epochs=1))
    [path] = [file for file in (tmp_path / "out").glob("*__model.pt") if "last" not in file.name]
    kind = AutoModelForSeq2SeqLM if family in ENCODER_DECODER_NAMES else AutoModelForCausalLM
    model = kind.from_config(AutoConfig.from_pretrained(folder))
    values = torch.load(path, weights_only=True)
    model.load_state_dict(values, strict=True)
    exported = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in exported.items())
    n_bytes = sum(value.nbytes for value in exported.values())
    assert path.stat().st_size < 1.2 * n_bytes + 50_000
