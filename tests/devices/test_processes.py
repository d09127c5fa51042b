"""Runs of several processes: together they do what one process does, and they end together."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from several_processes import REPOSITORY, Command, environment, launched, run, run_forked, run_together
from tiny_runs import ft_flags, gen_flags, kd_flags, names, places, read, rows, weights

from src.tokens.order import chunks, longest_first
from tests.distillation.test_stored_teacher import store

SIXTY = {"epochs": 10, "batch_size": 8, "max_gpu_batch_size": 4, "optimizer_eps": 1e-6, "learning_rate": 0.003}
STORED = "kd_dataset_with_logits_main"
CO_TEACHING = "logits_kd_student_gens_co_teaching"


@pytest.fixture(scope="module")
def data_path(tmp_path_factory) -> Path:
    """A copy task of 41 training rows: the last update of an epoch has one row, so all processes but one are idle."""
    from conftest import tiny_sentences

    texts = list(dict.fromkeys(tiny_sentences(400, seed=1)))
    parts = {"train": texts[:41], "dev": texts[41:50], "test": texts[50:61], "unlabeled": texts[61:78]}
    columns = {split: {"text": part, "target": part} for split, part in parts.items()}
    del columns["unlabeled"]["target"]
    path = tmp_path_factory.mktemp("data") / "data.json"
    path.write_text(json.dumps(columns))
    return path


@pytest.fixture(scope="module")
def stored_path(tiny_models, data_path) -> Path:
    """The same data with the log-probabilities of a teacher."""
    path = data_path.with_name("stored.json")
    path.write_text(json.dumps(store(tiny_models["gpt2"]["teacher"], read(data_path), 5)))
    return path


@pytest.fixture(scope="module")
def experiments_path(data_path) -> Path:
    """The published experiments, and one whose loss does not reach the output of the last layers."""
    published = (REPOSITORY / "arg_configs" / "kd_experiment_configs.yaml").read_text()
    path = data_path.with_name("experiments.yaml")
    path.write_text(
        f"{published}\n"
        "alone: {name: alone, layer: last_layer, scheduling: no_scheduling, losses: [relations_alone]}\n"
        "relations_alone: {attention_relation_weight: 1.0}\n"
    )
    return path


Commands = Callable[[Path], dict[str, Command]]


@pytest.fixture(scope="module")
def commands(tiny_models, dropout_models, data_path, stored_path, experiments_path) -> Commands:
    """By name, commands that write into a folder of this name."""

    def made(root: Path) -> dict[str, Command]:
        t5, gpt2 = tiny_models["t5"], tiny_models["gpt2"]
        kd = {"metric_for_best_model": "nll", **SIXTY}
        writing = {"generation_type": "sampling", "num_return_sequences": 3, "batch_size": 3}
        flags = {
            "co_teaching": kd_flags(t5, data_path, root / "co_teaching", experiment_config_key=CO_TEACHING, **kd),
            "ft": ft_flags(gpt2["student"], data_path, root / "ft", **kd),
            "logits": kd_flags(gpt2, data_path, root / "logits", **kd, clip_grad_norm=0.5),
            "attention": kd_flags(t5, data_path, root / "attention", experiment_config_key="attention_kd", **kd),
        }
        few = {**kd, "epochs": 2}
        flags["few updates"] = kd_flags(t5, data_path, root / "few updates", experiment_config_key=CO_TEACHING, **few)
        alone = {"experiment_config_path": experiments_path, "experiment_config_key": "alone", **kd}
        flags["relations alone"] = kd_flags(t5, data_path, root / "relations alone", **alone)
        stored = {"teacher_name": None, **kd}
        flags["stored"] = kd_flags(gpt2, stored_path, root / "stored", **stored)
        for name in ("dropout", "dropout again"):
            flags[name] = ft_flags(dropout_models["t5"]["student"], data_path, root / name, **kd)
        scripts = {"ft": "ft_main", "dropout": "ft_main", "dropout again": "ft_main", "stored": STORED}
        trained = {name: Command(scripts.get(name, "kd_main"), each, True) for name, each in flags.items()}
        return trained | {"gen": Command("gen_main", gen_flags(t5["teacher"], data_path, root / "gen", **writing))}

    return made


FAST = ("few updates", "gen")


@pytest.fixture(scope="module")
def alone(commands, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a command that one process has run."""
    root = tmp_path_factory.mktemp("alone")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            assert run(commands(root)[name]) == 0
        return root / name

    return folder


FSDP = {"ACCELERATE_USE_FSDP": "true"}  # as `accelerate launch` sets it for arg_configs/accelerate/fsdp.yaml


@pytest.fixture(
    scope="module",
    params=[
        (2, FAST, {}),
        *(
            pytest.param((n_processes, (), variables), marks=pytest.mark.slow)
            for n_processes, variables in ((2, {}), (3, {}), (2, FSDP), (3, FSDP))
        ),
    ],
    ids=["2 processes, fast", "2 processes", "3 processes", "2 processes, FSDP", "3 processes, FSDP"],
)
def together(request, commands, tmp_path_factory) -> Path:
    """The folder of the commands that several processes have run."""
    n_processes, chosen, variables = request.param
    root = tmp_path_factory.mktemp("together")
    made = commands(root)
    if chosen:
        run_forked(n_processes, [made[name] for name in chosen])
    else:
        run_together(n_processes, list(made.values()), root / "commands.json", **variables)
    return root


def test_together_as_alone(together, alone):
    """Weights after 60 updates, scores, losses; generated texts letter for letter, each row once."""
    for name in (entry.name for entry in together.iterdir() if entry.is_dir() and "dropout" not in entry.name):
        ours, theirs = together / name, alone(name)
        assert names(ours) == names(theirs)
        if name == "gen":
            assert read(ours / "generated_datasets.json") == read(theirs / "generated_datasets.json")
            continue
        mine, expected = weights(ours / "model"), weights(theirs / "model")
        assert max(float((mine[key] - value).abs().max()) for key, value in expected.items()) < 1e-5
        for table in ("eval_scores.csv", "train_losses.csv"):
            for row, expected_row in zip(rows(ours, table), rows(theirs, table), strict=True):
                assert row.keys() == expected_row.keys()
                for column, value in expected_row.items():
                    if column in ("split", "learned"):
                        assert row[column] == value
                    else:
                        assert float(row[column]) == pytest.approx(float(value), rel=1e-6, abs=1e-6), column
        assert read(ours / "eval_generations.json") == read(theirs / "eval_generations.json")


def test_dropout_is_that_of_the_seed(together):
    """It differs from process to process, but not from run to run."""
    runs = [together / name / "model" for name in ("dropout", "dropout again")]
    if not runs[0].exists():
        pytest.skip("among the slow runs alone")
    first, second = map(weights, runs)
    assert all(torch.equal(first[name], value) for name, value in second.items())


# --------------------------------------------------------------------------------------------------- how they end


def start(n_processes: int, script: str, flags: list[str], folder: Path, **variables: str) -> subprocess.Popen:
    line = launched(n_processes, str(REPOSITORY / script), *flags)
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment(**variables)
    )


def ranks(launcher: subprocess.Popen) -> list[psutil.Process]:
    """The processes of a launcher, by rank."""
    children = psutil.Process(launcher.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def wait_for(condition: Callable[[], bool], launcher: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def own_lines(errors: str) -> list[str]:
    """What our scripts have printed on stderr, without the launcher's lines."""
    return [line for line in errors.splitlines() if "_main.py: error: " in line]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{"epochs": "three"}, {"dataset_path": "missing.json"}, {"model_name": "missing"}])
def test_a_mistake_is_told_once(tiny_models, data_path, tmp_path, flags):
    given = ft_flags(tiny_models["gpt2"]["student"], data_path, tmp_path / "out", **flags)
    _, errors = start(2, "ft_main.py", given, tmp_path).communicate(timeout=120)
    assert len(own_lines(errors)) == 1, errors
    assert str(REPOSITORY / "src") not in errors  # a traceback, but for the launcher's own
    assert set(re.findall(r"exitcode *: (\d+)", errors)) == {"2"}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_that_is_killed_is_named_and_the_run_continues(tiny_models, data_path, tmp_path, rank):
    out = tmp_path / "out"
    given = ft_flags(tiny_models["gpt2"]["student"], data_path, out, **{**SIXTY, "epochs": 60})
    uninterrupted = ft_flags(tiny_models["gpt2"]["student"], data_path, tmp_path / "whole", **{**SIXTY, "epochs": 60})
    launcher = start(3, "ft_main.py", given, tmp_path)
    wait_for(lambda: (out / "eval_scores.csv").is_file() and len(rows(out)) > 2, launcher)
    ranks(launcher)[rank].kill()
    killed_at = time.monotonic()
    _, errors = launcher.communicate(timeout=90)
    assert time.monotonic() - killed_at < 60
    (line,) = own_lines(errors)
    assert f"process {rank} of 3 (counted from 0) was killed" in line
    for flags in (given, uninterrupted):
        assert start(3, "ft_main.py", flags, tmp_path).wait(timeout=300) == 0
    mine, expected = weights(out / "model"), weights(tmp_path / "whole" / "model")
    assert all(torch.equal(mine[name], value) for name, value in expected.items())
    assert rows(out) == rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_stopped_leaves_a_state_for_any_number_of_processes(
    tiny_models, data_path, tmp_path, number
):
    out = tmp_path / "out"
    given = ft_flags(tiny_models["gpt2"]["student"], data_path, out, **{**SIXTY, "epochs": 40})
    launcher = start(2, "ft_main.py", given, tmp_path)
    wait_for(lambda: (out / "eval_scores.csv").is_file() and len(rows(out)) > 2, launcher)
    launcher.send_signal(number)
    printed, errors = launcher.communicate(timeout=60)
    assert "the same command continues there" in printed, errors
    assert own_lines(errors) == []
    assert len(names(out / "state")) == 1
    assert run(Command("ft_main", given)) == 0
    evaluations = places(out)
    assert len(set(evaluations)) == len(evaluations)


@pytest.mark.slow
@pytest.mark.parametrize("variables", [({}, FSDP), (FSDP, {}), (FSDP, FSDP)], ids=["to FSDP", "from FSDP", "FSDP"])
def test_shares_of_a_model_are_continued_as_a_whole_and_the_other_way(tiny_models, data_path, tmp_path, variables):
    """The weights and the optimizer's state are whole on disk."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    given, uninterrupted = (
        kd_flags(tiny_models["t5"], data_path, folder, experiment_config_key="attention_kd", **{**SIXTY, "epochs": 20})
        for folder in (out, whole)
    )
    launcher = start(2, "kd_main.py", given, tmp_path, **variables[0])
    wait_for(lambda: (out / "eval_scores.csv").is_file() and len(rows(out)) > 4, launcher)
    launcher.send_signal(signal.SIGTERM)
    printed, errors = launcher.communicate(timeout=60)
    assert "the same command continues there" in printed, errors
    assert start(2, "kd_main.py", given, tmp_path, **variables[1]).wait(timeout=300) == 0
    assert run(Command("kd_main", uninterrupted)) == 0
    assert names(out) == names(whole)
    mine, expected = weights(out / "model"), weights(whole / "model")
    assert max(float((mine[name] - value).abs().max()) for name, value in expected.items()) < 1e-4


@pytest.mark.slow
def test_what_fsdp_cannot_do_is_refused_once(tiny_models, data_path, tmp_path):
    given = ft_flags(tiny_models["gpt2"]["student"], data_path, tmp_path / "out", optimizer="adafactor")
    _, errors = start(2, "ft_main.py", given, tmp_path, **FSDP).communicate(timeout=120)
    (line,) = own_lines(errors)
    assert "not with FSDP" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_generation_continues_with_another_number_of_processes(tiny_models, data_path, tmp_path):
    flags = {"generation_type": "sampling", "num_return_sequences": 1_000, "batch_size": 1, "max_labels_length": 24}
    given, whole = (gen_flags(tiny_models["t5"]["teacher"], data_path, tmp_path / name, **flags) for name in "ab")
    partial = tmp_path / "a" / "generated_datasets.partial.jsonl"
    launcher = start(2, "gen_main.py", given, tmp_path)
    wait_for(lambda: partial.is_file() and partial.read_bytes().count(b"\n") > 3, launcher)
    ranks(launcher)[1].kill()
    _, errors = launcher.communicate(timeout=90)
    assert len(own_lines(errors)) == 1, errors
    assert partial.is_file()
    printed, errors = start(3, "gen_main.py", given, tmp_path).communicate(timeout=300)
    assert "targets are there" in printed, errors
    assert run(Command("gen_main", whole)) == 0
    assert read(tmp_path / "a" / "generated_datasets.json") == read(tmp_path / "b" / "generated_datasets.json")


@pytest.mark.slow
def test_a_full_disk_is_told_once(tiny_models, data_path, tmp_path):
    """An error of the main process alone; the other one waits in a collective."""
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os\n"
        "if os.environ.get('RANK') == '0':\n"
        "    import src.training.checkpoints as checkpoints\n"
        "    def full(*_): raise OSError(errno.ENOSPC, 'No space left on device', 'state')\n"
        "    checkpoints._save = full\n"
    )
    given = ft_flags(tiny_models["gpt2"]["student"], data_path, tmp_path / "out", **SIXTY)
    launcher = subprocess.run(
        launched(2, str(REPOSITORY / "ft_main.py"), *given), capture_output=True, text=True, timeout=120, check=False,
        env=environment(PYTHONPATH=f"{tmp_path}:{REPOSITORY}"),
    )  # fmt: skip
    (line,) = own_lines(launcher.stderr)
    assert line.endswith("error: state: No space left on device")
    assert set(re.findall(r"exitcode *: (\d+)", launcher.stderr)) == {"2"}


# ------------------------------------------------------------------------------------------------------------ sharing


@pytest.mark.parametrize("n_processes", [2, 3, 5, 8])
def test_processes_have_work_of_equal_length(n_processes):
    """Decoder steps of batches that are dealt round: the longest output of each. Outputs are as long as inputs within a
    factor of two; E2E and Shakespeare give 1.00 to 1.07."""
    draw = np.random.default_rng(n_processes)
    inputs = np.ceil(draw.lognormal(3, 0.4, 2_000))
    outputs = np.ceil(inputs * draw.uniform(0.5, 2, len(inputs)))
    steps = [outputs[rows].max() for rows in chunks(longest_first(inputs), 16)]
    of_each = [sum(steps[rank::n_processes]) for rank in range(n_processes)]
    assert max(of_each) <= 1.15 * np.mean(of_each)
