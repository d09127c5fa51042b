"""A run stopped or killed at any point gives the same results when the same command runs again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import slow
from tiny_runs import ft_flags, gen_flags, kd_flags, names, places, read, result, rows, snapshot, tree

import ft_main
import gen_main
import kd_main
from src.config.cli import run_script
from src.config.errors import UserError
from src.config.signals import Interrupted, StopRequests
from src.storage.locks import LOCK

REPOSITORY = Path(__file__).resolve().parents[2]
Main = Callable[[Sequence[str]], object]

KILLED = 9  # exit status of a killed child


EVERYTHING = {  # two losses that follow one another, a noisy teacher, student-written labels, measured scales
    "everything": {"name": "everything", "layer": "last", "scheduling": "each", "losses": ["noisy", "relations"]},
    "last": {"student_dec_sa_layer": -1},
    "each": {"change_every_n_evaluation_steps": 1, "keep_last": False},
    "noisy": {"logits_weight": 1.0, "temperature": 2.0, "dropout": True, "generate_labels_weight": 0.5},
    "relations": {
        "logits_weight": 0.5,
        "hidden_weight": 0.2,
        "attention_relation_weight": 0.3,
        "kl_loss": True,
        "loss_scale": True,
        "generate_labels_weight": 0.5,
    },
}


@pytest.fixture(scope="module")
def commands(dropout_models, rotation_path, tmp_path_factory) -> dict[str, Callable[..., list[str]]]:
    """{script: the command line of a run with dropout for an output folder and further flags}."""
    student = dropout_models["t5"]["student"]
    experiments = tmp_path_factory.mktemp("experiments") / "everything.yaml"
    experiments.write_text(json.dumps(EVERYTHING), encoding="utf-8")
    train = {"test_every_n_epochs": 2, "keep_checkpoint_after_test": True, "metrics": "chrf"}
    train |= {"metric_for_best_model": "nll", "greater_is_better": False}  # which is the best changes often
    kd = {"epochs": 4, "stop_training_after_n_epochs": 2, "ft_steps_at_end": 2, **train}
    kd |= {"experiment_config_path": experiments, "experiment_config_key": "everything"}
    gen = {"split_for_generation": ("train_0", "unlabeled"), "generation_type": "sampling", "num_return_sequences": 2}
    return {
        "ft": lambda out, **flags: ft_flags(student, rotation_path, out, **{**train, **flags}),
        "kd": lambda out, **flags: kd_flags(dropout_models["gpt2"], rotation_path, out, **{**kd, **flags}),
        "gen": lambda out, **flags: gen_flags(student, rotation_path, out, **{**gen, **flags}),
    }


MAINS: dict[str, Main] = {"ft": ft_main.main, "kd": kd_main.main, "gen": gen_main.main}


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory) -> dict[str, dict[str, str]]:
    """What uninterrupted runs leave."""
    root = tmp_path_factory.mktemp("whole")
    for script, main in MAINS.items():
        main(commands[script](root / script))
    return {script: result(root / script) for script in MAINS}


def stop_at(monkeypatch, check: int) -> None:
    """Let the n-th question whether to stop be answered with yes."""
    asked = iter(range(1_000_000))

    def stops(self) -> None:
        if next(asked) == check:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(StopRequests, "check", stops)


def run_stopped(monkeypatch, main: Main, flags: list[str], check: int) -> bool:
    """Run until the n-th check; whether the run was stopped there, and did not end before."""
    with monkeypatch.context() as patch:
        stop_at(patch, check)
        try:
            main(flags)
        except SystemExit as stopped:
            assert stopped.code == 143
            return True
        return False


# --------------------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize(
    ("script", "check"),
    [
        ("ft", 4),  # while it evaluates
        ("kd", 16),
        ("gen", 0),
        *slow(("ft", 0), ("gen", 2)),  # before the first update, between two batches
    ],
)
def test_stopped_and_continued(monkeypatch, tmp_path, commands, whole, script, check):
    flags = commands[script](tmp_path / "out")
    assert run_stopped(monkeypatch, MAINS[script], flags, check)
    assert read(tmp_path / "out" / "run.json")["status"] == "unfinished"
    MAINS[script](flags)
    assert result(tmp_path / "out") == whole[script]


@pytest.mark.parametrize(("script", "check"), [("kd", 16), ("gen", 2), *slow(("ft", 4))])
def test_a_dry_run_in_between_changes_nothing(monkeypatch, tmp_path, capsys, commands, whole, script, check):
    """Neither on the disk nor in what the continued run ends with."""
    flags = commands[script](tmp_path / "out")
    assert run_stopped(monkeypatch, MAINS[script], flags, check)
    if script == "gen":  # what a kill leaves is repaired by the run that continues, not by a look at it
        with (tmp_path / "out" / "generated_datasets.partial.jsonl").open("a") as file:
            file.write('{"split": "tr')
    before = tree(tmp_path)
    capsys.readouterr()
    assert run_script(MAINS[script], [*flags, "--dry_run", "True"]) == 0
    assert ": continues" in capsys.readouterr().out
    assert tree(tmp_path) == before
    MAINS[script](flags)
    assert result(tmp_path / "out") == whole[script]
    assert read(tmp_path / "out" / "run.json")["flags"]["dry_run"] is False


@pytest.mark.parametrize(("script", "every"), [("ft", 16), ("gen", 1), *slow(("kd", 13))])
def test_stopped_again_and_again(monkeypatch, tmp_path, commands, whole, script, every):
    flags = commands[script](tmp_path / "out")
    stops = 0
    while run_stopped(monkeypatch, MAINS[script], flags, every):
        stops += 1
        assert stops < 50
    assert stops >= 3
    assert result(tmp_path / "out") == whole[script]


def test_stopped_in_the_closing_fine_tuning(monkeypatch, tmp_path, commands, whole):
    """The points above are counted: here one is known to lie in the second phase."""
    flags = commands["kd"](tmp_path / "out")
    assert run_stopped(monkeypatch, kd_main.main, flags, 95)
    (state,) = (tmp_path / "out" / "state").iterdir()
    assert read(state / "run_state.json")["run"]["phase"] == 1
    assert any(name.endswith("__last") for name in names(tmp_path / "out"))


def test_a_stopped_run_says_where_and_how_to_go_on(monkeypatch, tmp_path, commands, capsys):
    flags = commands["ft"](tmp_path / "out")
    run_stopped(monkeypatch, ft_main.main, flags, 1)
    assert "stopped at epoch 0, step 2; the same command continues there" in capsys.readouterr().out
    run_stopped(monkeypatch, ft_main.main, flags, 0)
    assert "continuing from" in capsys.readouterr().out


def test_a_state_of_an_earlier_version_is_continued(monkeypatch, tmp_path, commands, whole):
    """It has checksums of the rows written so far, which are not looked at any more."""
    flags = commands["ft"](tmp_path / "out")
    run_stopped(monkeypatch, ft_main.main, flags, 22)
    (file,) = (tmp_path / "out").glob("state/*/run_state.json")
    written = read(file)
    assert written["run"]["n_rows"] >= 2
    written["run"]["sums"] = {"eval_scores.csv": 3946057175, "train_losses.csv": 1, "eval_generations.jsonl": 2}
    file.write_text(json.dumps(written))
    ft_main.main(flags)
    assert result(tmp_path / "out") == whole["ft"]


@pytest.mark.parametrize("which", ["best", *slow("state")])
def test_continued_from_a_checkpoint_of_its_own(monkeypatch, tmp_path, commands, whole, which):
    """What came after the checkpoint is dropped and comes again; and so it does when that is killed and continued
    without the flag."""
    flags = commands["ft"](tmp_path / "out")
    run_stopped(monkeypatch, ft_main.main, flags, 22)
    best = [entry for entry in (tmp_path / "out").glob("epoch*") if not entry.name.endswith("__last")]
    states = list((tmp_path / "out" / "state").iterdir())
    (folder,) = best if which == "best" else states
    assert len(places(tmp_path / "out")) >= 2
    named = commands["ft"](tmp_path / "out", checkpoint_path=folder)
    run_stopped(monkeypatch, ft_main.main, named, 0)
    ft_main.main(flags)
    assert result(tmp_path / "out") == whole["ft"]


def test_an_earlier_checkpoint_counts_from_the_moment_on_that_it_is_taken_up(monkeypatch, tmp_path, commands, whole):
    """Killed between dropping rows and the next state, the run must not find the later state again."""
    flags = commands["ft"](tmp_path / "out")
    run_stopped(monkeypatch, ft_main.main, flags, 22)
    (folder,) = (entry for entry in (tmp_path / "out").glob("epoch*") if not entry.name.endswith("__last"))
    named = commands["ft"](tmp_path / "out", checkpoint_path=folder)
    run_killed(ft_main.main, named, tmp_path / "out", lambda path: path.name.startswith("train_losses.csv"), 0)
    ft_main.main(flags)
    assert result(tmp_path / "out") == whole["ft"]


def test_continued_with_warm_up(monkeypatch, tmp_path, dropout_models):
    """A checkpoint of the run itself does not make it a run that starts from weights, which has no warm-up."""
    data = {"train": {"text": ["A dog.", "A cat."] * 2, "target": ["A dog.", "A cat."] * 2}}
    (tmp_path / "d.json").write_text(json.dumps(data))
    flags = {"epochs": 40, "stop_training_after_n_epochs": 2, "experiment_config_key": "finetuning", "batch_size": 1}
    for out in ("whole", "out"):
        command = kd_flags(dropout_models["gpt2"], tmp_path / "d.json", tmp_path / out, **flags)
        if out == "out":
            run_stopped(monkeypatch, kd_main.main, command, 3)
            (state,) = (tmp_path / out / "state").iterdir()
            command = [*command, "--checkpoint_path", str(state)]
        kd_main.main(command)
    assert result(tmp_path / "out") == result(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"warmup_steps": 0.5, "lr_scheduler_type": "cosine", "label_smoothing": 0.1, "epochs": 1},
            "learning rate: warm-up over 2 updates, falls along a cosine to 0 at update 4\n",
        ),
        pytest.param(
            {"lora_rank": 2, "keep_checkpoint_after_test": True, "epochs": 3},
            "LoRA of rank 2: ",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["schedule", "adapter"],
)
def test_continued_with_training_choices(monkeypatch, tmp_path, dropout_models, capsys, flags, said):
    if "lora_rank" in flags:
        pytest.importorskip("peft", reason="requirements-extras.txt")
    texts = ["A dog.", "A cat.", "The bird.", "The house."]
    columns = {"text": texts, "target": texts}
    (tmp_path / "d.json").write_text(json.dumps({"train": columns, "dev": columns}))
    flags = {"batch_size": 1, "metric_for_best_model": "nll", "save_checkpoint_every_n_steps": 1.0, **flags}
    for out in ("whole", "out"):
        command = ft_flags(dropout_models["gpt2"]["student"], tmp_path / "d.json", tmp_path / out, **flags)
        if out == "out":
            assert run_stopped(monkeypatch, ft_main.main, command, 3)
        ft_main.main(command)
        assert said in capsys.readouterr().out
    assert result(tmp_path / "out") == result(tmp_path / "whole")


# -------------------------------------------------------------------------------------------------------------- killed


def run_killed(main: Main, flags: list[str], out: Path, concerns: Callable[[Path], bool], number: int) -> bool:
    """Run in a child that dies, without any clean-up, before its n-th change to the disk below `out` that concerns.

    Returns whether it died there; it may end before.
    """
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, KILLED)
        return status == KILLED
    status = 1
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        sys.addaudithook(dying_at(out, concerns, number))
        main(flags)
        status = 0
    finally:
        os._exit(status)


def dying_at(out: Path, concerns: Callable[[Path], bool], number: int) -> Callable[[str, tuple], None]:
    """An audit hook: https://docs.python.org/3/library/audit_events.html."""
    events = iter(range(1_000_000))

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
        if not changes or not isinstance(arguments[0], str | os.PathLike):
            return
        path = Path(os.fspath(arguments[0]))
        if path.is_relative_to(out) and concerns(path) and next(events) == number:
            os._exit(KILLED)

    return hook


def test_states_by_the_clock(tmp_path, commands, whole):
    """A state after every update, if its time has come: a killed run goes on inside an epoch."""
    flags, out = commands["ft"](tmp_path / "out", save_state_every_n_minutes=1e-6), tmp_path / "out"
    assert run_killed(ft_main.main, flags, out, lambda path: path.name == "train_losses.csv", 1)
    assert names(out / "state") == {"2_1"}  # two updates, one of them since the evaluation
    ft_main.main(flags)
    assert result(out) == whole["ft"]


def check_that_no_file_is_half(out: Path) -> None:
    """Whatever has its final name can be read (lines may be torn, until they are continued)."""
    for name in ("run.json", "eval_generations.json", "generated_datasets.json"):
        if (out / name).exists():
            read(out / name)
    for folder in (*out.glob("epoch*"), *out.glob("model"), *out.glob("state/[0-9]*")):
        if folder.is_dir():
            assert {"config.json", "model.safetensors", "tokenizer.json"} <= names(folder)
            read(folder / "config.json")
        else:
            torch.load(folder, weights_only=True)


def anything(_path: Path) -> bool:
    return True


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ("ft", 70),
        ("gen", 11),
        *slow(("ft", 202), ("kd", 150), ("kd", 330), ("gen", 3)),
    ],
)
def test_killed_and_continued(tmp_path, commands, whole, script, number):
    flags, out = commands[script](tmp_path / "out"), tmp_path / "out"
    assert run_killed(MAINS[script], flags, out, anything, number)
    check_that_no_file_is_half(out)
    MAINS[script](flags)
    assert result(out) == whole[script]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["ft", "kd", "gen"])
def test_killed_anywhere(tmp_path, commands, whole, script):
    """Every change to the disk; first the later ones, so that each run is killed once and continued once."""
    for number in range(0, 2000, 1 if script == "gen" else 7):
        flags, out = commands[script](tmp_path / "out"), tmp_path / "out"
        if not run_killed(MAINS[script], flags, out, anything, number):
            assert number > 10
            return
        check_that_no_file_is_half(out)
        MAINS[script](flags)
        assert result(out) == whole[script], number
        shutil.rmtree(out)


@pytest.mark.parametrize(
    ("script", "what", "number"),
    [
        ("ft", "eval_scores.csv", 1),  # rows of an evaluation whose state was not saved
        ("kd", "eval_generations.json", 0),
        ("gen", "run.json", 1),
        *slow(
            ("ft", "eval_generations.jsonl", 2),
            ("ft", "train_losses.csv", 0),  # before any state: begins anew
            ("ft", "model", 0),
            ("ft", "run.json", 1),  # all is there, but not said to be finished
        ),
    ],
)
def test_killed_at_a_file(tmp_path, commands, whole, script, what, number):
    flags, out = commands[script](tmp_path / "out"), tmp_path / "out"

    def concerns(path: Path) -> bool:
        return path.name == what or path.name.startswith(f".{what}.")

    assert run_killed(MAINS[script], flags, out, concerns, number)
    check_that_no_file_is_half(out)
    MAINS[script](flags)
    assert result(out) == whole[script]


@pytest.mark.parametrize("number", [1, *slow(0, 3, 5)])
def test_killed_while_a_finished_run_is_tidied(tmp_path, commands, number):
    """The same command finishes the tidying: bare state dicts, nothing else but what the dead process held."""
    flags = commands["ft"](tmp_path / "out", keep_checkpoint_after_test=False)
    out = tmp_path / "out"
    finished: list[bool] = []

    def concerns(path: Path) -> bool:
        if not finished and (out / "run.json").is_file() and read(out / "run.json")["status"] == "finished":
            finished.append(True)
        return bool(finished) and ".partial" not in path.name

    assert run_killed(ft_main.main, flags, out, concerns, number)
    ft_main.main(flags)
    made = names(out) - {"run.json", "eval_scores.csv", "eval_generations.json", "train_losses.csv", "model", LOCK}
    assert len(made) == 2
    assert all(name.startswith("epoch") and name.endswith("__model.pt") for name in made)
    check_that_no_file_is_half(out)


def test_only_test_killed_after_its_row_has_one_row(tmp_path, commands):
    flags = commands["ft"](tmp_path / "out", do_train=False)
    assert run_killed(ft_main.main, flags, tmp_path / "out", lambda path: ".eval_generations.json." in path.name, 0)
    assert places(tmp_path / "out") == [("test", -1, -1)]
    ft_main.main(flags)
    assert places(tmp_path / "out") == [("test", -1, -1)]


# ------------------------------------------------------------------------------------------------------------ finished


@pytest.fixture
def finished(tmp_path, commands, dropout_models) -> tuple[Path, Callable[..., list[str]]]:
    def command(**flags) -> list[str]:
        return commands["ft"](tmp_path / "out", **{"epochs": 1, "keep_checkpoint_after_test": False, **flags})

    ft_main.main(command())
    return tmp_path / "out", command


def test_a_finished_run_prints_its_scores_and_changes_nothing(finished, capsys):
    out, command = finished
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    hashes = snapshot(out)
    capsys.readouterr()
    scores = ft_main.main(command())
    assert run_script(ft_main.main, command()) == 0
    assert f"{scores['chrf']:10.2f}\n" in capsys.readouterr().out
    assert scores == read(out / "run.json")["scores"]
    assert snapshot(out) == hashes
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_a_finished_distillation_does_not_need_its_models_any_more(tmp_path, dropout_models, rotation_path):
    models = {role: str(shutil.copytree(folder, tmp_path / role)) for role, folder in dropout_models["gpt2"].items()}
    flags = kd_flags(models, rotation_path, tmp_path / "out", epochs=1)
    scores = kd_main.main(flags)
    shutil.rmtree(tmp_path / "teacher")
    shutil.rmtree(tmp_path / "student")
    assert kd_main.main(flags) == scores


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"epochs": 2}, "--epochs was 1, is 2"),
        ({"seed": 1}, "--seed was 42, is 1"),
        ({"resume": False}, "holds this run already"),
        ({"task_prompt": "modern:"}, "--task_prompt was , is modern:"),
    ],
)
def test_other_flags_on_the_folder_of_a_run(finished, capsys, flags, named):
    out, command = finished
    hashes = snapshot(out)
    capsys.readouterr()
    assert run_script(ft_main.main, command(**flags)) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert len(printed.err.splitlines()) == 1
    assert snapshot(out) == hashes


def test_overwrite(finished):
    out, command = finished
    hashes = snapshot(out)
    ft_main.main(command(overwrite=True, seed=1))
    assert read(out / "run.json")["flags"]["seed"] == 1
    assert snapshot(out).keys() != hashes.keys() or snapshot(out) != hashes
    ft_main.main(command(overwrite=True))
    assert result(out) == {name: value for name, value in hashes.items() if name not in ("run.json", "model/README.md")}


def test_changed_data_are_refused(tmp_path, commands, dropout_models, rotation_path):
    data = shutil.copy(rotation_path, tmp_path / "d.json")
    flags = ft_flags(dropout_models["t5"]["student"], data, tmp_path / "out", epochs=1)
    ft_main.main(flags)
    with Path(data).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="what --dataset_path stands for has changed"):
        ft_main.main(flags)


def test_a_changed_experiment_is_refused(monkeypatch, tmp_path, dropout_models, rotation_path):
    """The key is the same, but what it stands for is another loss: neither continued nor taken for done."""
    yaml = tmp_path / "e.yaml"
    text = "mine: {name: mine, layer: l, scheduling: s, losses: [a]}\nl: {student_dec_ca_layer: -1}\n"
    text += "s: {keep_last: True}\na: {forward_weight: 0.5, logits_weight: 0.5}\n"
    yaml.write_text(text)
    flags = {"experiment_config_key": "mine", "experiment_config_path": yaml}
    command = kd_flags(dropout_models["gpt2"], rotation_path, tmp_path / "out", **flags)
    run_stopped(monkeypatch, kd_main.main, command, 3)
    yaml.write_text(text + "another: {forward_weight: 1.0}\n")
    run_stopped(monkeypatch, kd_main.main, command, 3)
    yaml.write_text(text.replace("forward_weight: 0.5", "forward_weight: 0.6"))
    with pytest.raises(UserError, match="what --experiment_config_key stands for has changed"):
        kd_main.main(command)


def test_a_finished_generation_is_not_repeated(tmp_path, commands, capsys):
    flags = commands["gen"](tmp_path / "out")
    path = gen_main.main(flags)
    hashes = snapshot(tmp_path / "out")
    assert names(tmp_path / "out") == {"generated_datasets.json", "run.json"}
    capsys.readouterr()
    assert gen_main.main(flags) == path
    assert "written already" in capsys.readouterr().out
    assert snapshot(tmp_path / "out") == hashes
    with pytest.raises(UserError, match="--num_return_sequences was 2, is 3"):
        gen_main.main(commands["gen"](tmp_path / "out", num_return_sequences=3))
    path.unlink()
    gen_main.main(flags)
    assert result(tmp_path / "out") == {name: value for name, value in hashes.items() if name != "run.json"}


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_obeyed_where_the_state_is_whole(number, status):
    former = signal.getsignal(number)
    with StopRequests() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.received == number
        with pytest.raises(Interrupted) as stopped:
            stop.check()
        assert stopped.value.code == status
        with pytest.raises(SystemExit) as at_once:
            os.kill(os.getpid(), number)
        assert at_once.value.code == status
        assert not isinstance(at_once.value, Interrupted)
    assert signal.getsignal(number) is former


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("nothing happened within a minute")


@pytest.mark.slow  # test_faults.py has the same of its runs
def test_exit_statuses_of_a_process(tmp_path, commands):
    """SIGTERM: 143, a state is there. The same command continues; Ctrl-C: 130. Nothing is printed as an error."""
    flags, out = commands["ft"](tmp_path / "out", epochs=10_000), tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    n_rows = [0]
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "ft_main.py"), *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment,
        )  # fmt: skip
        wait_for(lambda: (out / "eval_scores.csv").is_file() and len(rows(out)) > n_rows[-1], process)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        assert "Traceback" not in errors
        assert "the same command continues there" in printed
        assert ("continuing from" in printed) is (number == signal.SIGINT)
        assert len(names(out / "state")) == 1
        n_rows.append(len(rows(out)))
    evaluations = places(out)
    assert len(set(evaluations)) == len(evaluations)
    assert [entry for entry in out.iterdir() if entry.name.endswith((".tmp", ".former"))] == []
