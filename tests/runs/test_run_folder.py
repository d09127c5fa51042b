"""Run folders: run.json, score rows, generations; and which run a folder belongs to."""

import errno
import json
import logging
import os
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from tiny_runs import ft_flags

import ft_main
from src import __version__
from src.config.cli import run_script
from src.config.console import say
from src.config.errors import UserError
from src.config.flags.base import REPOSITORY
from src.config.flags.generate import GenerateArguments
from src.config.flags.train import FineTuneArguments
from src.config.warning_record import begin_recording
from src.runs import description, folder
from src.runs.description import FINISHED, NEW, UNFINISHED, data_fingerprint
from src.runs.folder import RunFolder, open_run
from src.storage.locks import LOCK, NO_LOCKS

DATA = {"dataset_path": "abc"}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path) -> FineTuneArguments:
    return FineTuneArguments(output_dir=str(tmp_path / "out"), dataset_path="d.json", metrics=("sacrebleu", "wer"))


def begun(config, inputs=DATA) -> RunFolder:
    run = open_run(config, inputs)
    run.begin(anew=True)
    return run


# ---------------------------------------------------------------------------------------------------------- which run


def test_a_new_run_writes_nothing_before_it_begins(config):
    run = open_run(config, DATA)
    assert run.status == NEW
    assert not run.path.exists()


def test_the_same_command_again(config):
    run = begun(config)
    assert open_run(config, DATA).status == UNFINISHED
    run.finish({"sacrebleu": 12.5})
    again = open_run(config, DATA)
    assert (again.status, again.scores) == (FINISHED, {"sacrebleu": 12.5})


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_score_that_is_no_finite_number_is_null_in_json(config, value):
    """The perplexity of an NLL of 800, for example."""
    run = begun(config)
    run.finish({"ppl": value, "nll": 800.0})
    assert json.loads((run.path / "run.json").read_text())["scores"] == {"ppl": None, "nll": 800.0}
    again = open_run(config, DATA).scores
    assert str(again) == "{'ppl': nan, 'nll': 800.0}"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 3}, "--epochs was 20, is 3"),
        ({"metrics": ("wer",)}, r"--metrics was \['sacrebleu', 'wer'\], is \['wer'\]"),
        ({"metrics": None}, "--metrics was .* is None"),
        ({"learning_rate": 0.5}, "--learning_rate was 1e-05, is 0.5"),
        ({"checkpoint_path": "w.pt"}, "--checkpoint_path was None, is w.pt"),
        ({"dataset_path": "e.json", "seed": 1}, "--seed was 42, is 1; --dataset_path was d.json, is e.json"),
    ],
)
def test_other_flags_are_refused_and_named(config, changes, named):
    begun(config)
    with pytest.raises(UserError, match=named):
        open_run(replace(config, **changes), DATA)


@pytest.mark.parametrize("changes", [{"save_state_every_n_minutes": 1.0}, {"resume": True}])
def test_flags_without_influence_may_differ(config, changes):
    begun(config)
    assert open_run(replace(config, **changes), DATA).status == UNFINISHED


def test_a_flag_that_the_run_did_not_have_yet_had_its_default(config):
    path = begun(config).path / "run.json"
    content = json.loads(path.read_text())
    for name in ("text_column", "id_column", "val_size"):
        del content["flags"][name]
    path.write_text(json.dumps(content))
    assert open_run(config, DATA).status == UNFINISHED
    with pytest.raises(UserError, match="--val_size was None, is 0.1"):
        open_run(replace(config, val_size=0.1), DATA)


def test_changed_data_are_refused(config):
    begun(config)
    with pytest.raises(UserError, match="what --dataset_path stands for has changed"):
        open_run(config, {"dataset_path": "abd"})


def test_an_input_may_be_any_json_value(config):
    inputs = {"experiment_config_key": {"losses": [{"logits_weight": 0.5}]}}
    begun(config, inputs)
    assert open_run(config, inputs).status == UNFINISHED
    with pytest.raises(UserError, match="what --experiment_config_key stands for has changed"):
        open_run(config, {"experiment_config_key": {"losses": [{"logits_weight": 0.6}]}})


def test_a_run_of_another_script_is_refused(config):
    begun(config)
    generating = GenerateArguments(output_dir=config.output_dir, dataset_path="d.json")
    with pytest.raises(UserError, match="holds a run of ft_main.py"):
        open_run(generating, DATA)


@pytest.mark.parametrize("is_finished", [False, True])
def test_no_resume(config, is_finished):
    run = begun(config)
    if is_finished:
        run.finish({})
    with pytest.raises(UserError, match=f"holds this run already .{'finished' if is_finished else 'unfinished'}.*over"):
        open_run(replace(config, resume=False), DATA)


def test_overwrite_starts_anew_whatever_is_there(config):
    begun(config).finish({"sacrebleu": 1.0})
    run = open_run(replace(config, overwrite=True, epochs=3), {"dataset_path": "abd"})
    assert (run.status, run.scores) == (NEW, {})


@pytest.mark.parametrize("text", ["{", "[]", '{"script": "ft_main.py"}'])
def test_a_damaged_run_json_is_refused_but_can_be_overwritten(config, text):
    begun(config)
    path = Path(config.output_dir) / "run.json"
    path.write_text(text)
    with pytest.raises(UserError, match="run.json"):
        open_run(config, DATA)
    assert open_run(replace(config, overwrite=True), DATA).status == NEW


def test_output_dir_is_a_file(config):
    Path(config.output_dir).write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        open_run(config, DATA)


@pytest.mark.parametrize("name", ["model", "state", "eval_scores.csv", "epoch0__step3__score1_000"])
def test_files_of_no_run_are_not_replaced_unless_asked(config, name):
    """A folder `model` may be a model that somebody put there."""
    path = Path(config.output_dir) / name
    path.mkdir(parents=True)
    with pytest.raises(UserError, match=f"holds '{name}', but no run.json"):
        open_run(config, DATA)
    assert path.is_dir()
    assert open_run(replace(config, overwrite=True), DATA).status == NEW


def test_files_that_are_none_of_ours_do_not_matter(config):
    path = Path(config.output_dir)
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    begun(config)
    assert (path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("flag", "inside"), [("model_name", "model"), ("model_name", "model_prune0"), ("checkpoint_path", "state/3_1")]
)
def test_overwriting_does_not_remove_an_input(config, flag, inside):
    run = begun(config)
    (run.path / inside.removesuffix("_prune0")).mkdir(parents=True)
    named = replace(config, overwrite=True, **{flag: str(run.path / inside)})
    with pytest.raises(UserError, match=f"would remove --{flag}"):
        open_run(named, DATA)


def test_a_checkpoint_of_the_run_itself_is_no_other_flag(config):
    """It says where to go on; afterwards the command without it is still the run's."""
    run = begun(config)
    named = replace(config, checkpoint_path=str(run.path / "state" / "3_1"))
    continued = open_run(named, DATA)
    assert continued.status == UNFINISHED
    continued.begin(anew=False)
    assert open_run(config, DATA).status == UNFINISHED
    assert open_run(named, DATA).status == UNFINISHED


def test_a_checkpoint_of_the_run_does_not_hide_what_it_started_from(config):
    started = replace(config, checkpoint_path="w.pt")
    begun(started)
    continued = open_run(replace(config, checkpoint_path=f"{config.output_dir}/state/3_1"), DATA)
    assert continued.flags["checkpoint_path"] == "w.pt"


# -------------------------------------------------------------------------------------------------------------- begin


def test_begin_anew_removes_our_files_and_no_others(config):
    run = begun(config)
    ours = ["state/3_1/x", "model/x", "epoch0__step1__score1_0/x", "epoch0__step1__score1_0__model.pt",
            "eval_scores.csv", "eval_generations.json", "eval_generations.jsonl", "train_losses.csv",
            "generated_datasets.json", "generated_datasets.partial.jsonl",
            ".model.1a2b.tmp/x", ".epoch0__step1__score1_0.1a2b.former/x", ".run.json.1a2b.tmp",
            ".epoch0__step1__score1_0__model.pt.tmp"]  # fmt: skip
    others = ["notes.txt", "epochs/x", "models/x", ".hidden", "data.json", "my_model/x", ".git/x.tmp"]
    for name in (*ours, *others):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name)
    run.begin(anew=True)
    left = {str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()}
    assert left == {*others, "run.json"}


def test_begin_of_a_continued_run_keeps_its_files_but_no_halves(config):
    run = begun(config)
    kept = ["state/3_1/x", "eval_scores.csv", "epoch0__step1__score1_0/x", "generated_datasets.partial.jsonl"]
    for name in (*kept, ".state.1a2b.former/x", ".eval_scores.csv.1a2b.tmp"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name)
    run.begin(anew=False)
    left = {str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file()}
    assert left == {*kept, "run.json"}


def test_a_beginning_that_is_killed_leaves_nothing_to_be_continued_with_other_flags(config, monkeypatch):
    run = begun(config)
    for name in ("state/3_1/x", "generated_datasets.partial.jsonl"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name)
    monkeypatch.setattr(RunFolder, "_describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_run(replace(config, overwrite=True, epochs=3), DATA).begin(anew=True)
    assert {entry.name for entry in run.path.iterdir()} == {"run.json"}


def test_run_json(config):
    run = begun(config)
    run.finish({"sacrebleu": 12.5, "nll": 0.25})
    described = json.loads((run.path / "run.json").read_text())
    assert described["script"] == "ft_main.py"
    assert described["status"] == "finished"
    assert described["scores"] == {"sacrebleu": 12.5, "nll": 0.25}
    assert described["data"] == DATA
    assert described["flags"]["metrics"] == ["sacrebleu", "wer"]
    assert described["flags"]["seed"] == 42
    assert set(described["flags"]) == {each.name for each in fields(FineTuneArguments)}
    assert {"python", "torch", "transformers"} <= set(described["versions"])
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert described["versions"][project["name"]] == project["version"] == __version__
    assert described["commit"] is None or len(described["commit"].rstrip("+")) >= 40


def test_no_commit_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(description, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert description.commit.__wrapped__() is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert description.commit.__wrapped__() is None


# ---------------------------------------------------------------------------------------------------------------- data


def test_data_fingerprint(tmp_path):
    datasets = {"train": {"text": ["a"], "target": ["b"]}}
    file = tmp_path / "d.json"
    file.write_text(json.dumps(datasets))
    first = data_fingerprint(str(file), datasets)
    assert data_fingerprint("hf:name", datasets) == data_fingerprint("hf:other", datasets) != first
    file.write_text(json.dumps(datasets) + " ")
    assert data_fingerprint(str(file), datasets) != first


# ----------------------------------------------------------------------------------------------------------------- lock


def test_two_runs_on_one_folder(config):
    """The second is refused while the first is at work, and changes nothing; afterwards it may."""
    first = open_run(config, DATA)
    with first.held():
        first.begin(anew=True)
        second = open_run(config, DATA)
        with pytest.raises(UserError, match="out: another run is at work there; wait for its end"), second.held():
            raise AssertionError("refused before anything is done")
        assert open_run(config, DATA).status == UNFINISHED
    assert not (first.path / LOCK).exists()
    with open_run(config, DATA).held():
        pass


def test_two_runs_on_a_folder_that_is_not_there_yet(config):
    """Whoever begins first has it."""
    first, second = open_run(config, DATA), open_run(config, DATA)
    with first.held(), second.held():
        assert not first.path.exists()
        first.begin(anew=True)
        with pytest.raises(UserError, match="another run is at work there"):
            second.begin(anew=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_another_one_has_overtaken(config, overwrite):
    """It was opened on what is no longer true."""
    begun(config)
    late = open_run(replace(config, overwrite=overwrite), DATA)
    with open_run(config, DATA).held():
        open_run(config, DATA).finish({"sacrebleu": 1.0})
    with pytest.raises(UserError, match="another run changed this folder after this one started"), late.held():
        raise AssertionError("refused before anything is done")


def test_the_lock_of_a_killed_process_is_free(config):
    """The system frees it, whatever file it leaves."""
    run = begun(config)
    code = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run.path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is at work"), open_run(config, DATA).held():
            pass
        other.kill()
    assert (run.path / LOCK).exists()
    with open_run(config, DATA).held():
        pass


def test_a_finished_run_in_a_folder_that_cannot_be_written(config, monkeypatch):
    """Its scores can be read all the same; an unfinished one is refused by the lock's file."""
    run = begun(config)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with open_run(config, DATA).held():
        assert (run.path / LOCK).exists()
    run.finish({"sacrebleu": 1.0})
    finished = open_run(config, DATA)
    with finished.held():
        assert not (run.path / LOCK).exists()
    assert finished.scores == {"sacrebleu": 1.0}


def test_a_finished_run_is_not_tidied_while_another_one_begins_anew(config):
    begun(config).finish({})
    late, anew = open_run(config, DATA), open_run(replace(config, overwrite=True), DATA)
    with anew.held(), pytest.raises(UserError, match="another run is at work there"), late.held():
        raise AssertionError("refused before anything is done")


# ------------------------------------------------------------------------------------------- file systems without locks


@pytest.fixture(params=NO_LOCKS)
def no_locks(request, monkeypatch) -> int:
    """As on NFS and on some clusters."""

    def flock(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", flock)
    return request.param


def test_a_file_system_without_locks_is_warned_of(config, no_locks, capsys):
    run = open_run(config, DATA)
    with run.held():
        run.begin(anew=True)
        assert f"warning: {run.path}: its file system has no locks; do not start another run" in capsys.readouterr().out
        with open_run(replace(config, dry_run=True), DATA).held():
            pass
    assert {entry.name for entry in run.path.iterdir()} == {"run.json"}


def test_a_run_that_another_one_has_overtaken_without_locks(config, no_locks):
    begun(config)
    late = open_run(config, DATA)
    open_run(config, DATA).finish({"sacrebleu": 1.0})
    with pytest.raises(UserError, match="another run changed this folder"), late.held():
        raise AssertionError("refused before anything is done")


@pytest.mark.parametrize("no_locks", NO_LOCKS[:1], indirect=True)
def test_a_whole_run_without_locks(tiny_models, tiny_dataset_path, tmp_path, no_locks):
    flags = ft_flags(tiny_models["t5"]["student"], tiny_dataset_path, tmp_path / "out")
    assert run_script(ft_main.main, [*flags, "--dry_run", "True"]) == 0
    assert run_script(ft_main.main, flags) == run_script(ft_main.main, flags) == 0
    assert not list((tmp_path / "out").glob(".*"))


def test_other_errors_of_a_lock_are_no_missing_locks(config, monkeypatch):
    begun(config)

    def flock(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match="out: cannot be written: Input/output error"), open_run(config, DATA).held():
        pass


# ------------------------------------------------------------------------------------------------- time and warnings


def record(run):
    return json.loads((run.path / "run.json").read_text())


def test_time_and_warnings_of_all_commands_that_continued_a_run(config, monkeypatch):
    """What a continued run says again counts once; the time of each command counts."""
    clock = [100.0]
    monkeypatch.setattr(folder, "monotonic", lambda: clock[0])
    begin_recording()
    run = open_run(config, DATA)
    with pytest.raises(KeyboardInterrupt), run.held():
        say("warning: dev: loops")
        run.begin(anew=True)
        clock[0] += 60
        raise KeyboardInterrupt
    assert {name: record(run)[name] for name in ("seconds", "warnings", "stopped", "status")} == {
        "seconds": 60.0, "warnings": ["dev: loops"], "stopped": "interrupted", "status": UNFINISHED
    }  # fmt: skip
    begin_recording()
    again = open_run(config, DATA)
    with again.held():
        again.begin(anew=False)
        assert record(again)["stopped"] is None
        say("warning: dev: loops")
        logging.getLogger("src.somewhere").warning("split '%s' is ignored", "train")
        clock[0] += 5
        again.finish({"nll": 1.0})
    assert (record(run)["seconds"], record(run)["warnings"]) == (65.0, ["dev: loops", "split 'train' is ignored"])
    assert record(run)["stopped"] is None


def test_what_stopped_a_run(config):
    run = open_run(config, DATA)
    with pytest.raises(UserError), run.held():
        run.begin(anew=True)
        raise UserError("the loss is not finite")
    assert record(run)["stopped"] == "the loss is not finite"
    started_anew = open_run(replace(config, overwrite=True), DATA)
    with started_anew.held():
        started_anew.begin(anew=True)
    assert record(run)["seconds"] < 60


def test_a_run_that_fails_before_it_begins_writes_nothing(config):
    with pytest.raises(UserError), open_run(config, DATA).held():
        raise UserError("no such model")
    assert not Path(config.output_dir).exists()


def test_warnings_stay_on_stderr():
    code = (
        "import logging, src.config.warning_record as record\n"
        "record.begin_recording(); record.begin_recording()\n"
        "logging.getLogger('src.a').warning('one %d', 1)\n"
        "print(record.recorded_warnings())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("['one 1']\n", "one 1\n")
