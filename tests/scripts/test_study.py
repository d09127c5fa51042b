"""Whole studies: killed and continued, a command that fails, a GPU for each command."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import study_main
from src import run_study
from src.config.errors import UserError
from src.config.flags.base import REPOSITORY
from src.run_study import _report_failures
from src.studies.jobs import Study
from src.studies.plan import read_study
from tests.faults import differences, outcome

PLAN = """
seeds: [1]
flags:
  {max_input_length: 32, max_labels_length: 16, num_beams: 1, metrics: [chrf], metric_for_best_model: chrf,
   max_gpu_batch_size: 16, save_checkpoint_every_n_steps: 1, ft_main: {batch_size: 16}, kd_main: {batch_size: 16}}
data:
  demo: {dataset_name: demo, train_size: 48, val_size: 16, test_size: 16, unlabeled_split: True, unlabeled_size: 32}
models:
  new: {family: t5, d_model: 16, d_ff: 16, n_heads: 2, n_encoder_layers: 1, n_decoder_layers: 1, vocab_size: 200,
        dataset_path: demo}
teachers:
  teacher: {model_name: new, dataset_path: demo, epochs: 2}
students:
  student: {model: new, teacher: teacher, data: demo}
pseudo_targets:
  sampling: {generation_type: sampling, num_return_sequences: 2, split_for_generation: [unlabeled, train]}
methods:
  finetuning: {epochs: 2, seed: 3}
  logits_kd: {experiment_config_key: logits_kd, epochs: 2, pseudo_targets: sampling}
"""
NOT_RESULTS = ("study/.done", "study/logs", "study/.lock", "study/report.html", "study/report.md")  # these show times


def command_of(plan: Path, *more: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "study_main.py"), "--plan", str(plan), "--jobs", "2", *more]


def results(out: Path) -> dict:
    """Everything in the study's folder but logs and markers."""
    return {
        name: what for name, what in outcome(out).items()
        if name.startswith("study/") and not name.startswith(NOT_RESULTS)
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_ten_times_and_continued(tmp_path):
    """SIGKILL to the whole process group: weights, scores and data files are those of an undisturbed study."""
    rng, environment = random.Random(4), {**os.environ, "HF_HUB_OFFLINE": "1"}
    found = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "plan.yaml").write_text(f"output_dir: study\n{PLAN}")
        kills = 0
        while True:
            with (folder / "console.txt").open("a") as console:
                process = subprocess.Popen(
                    command_of(folder / "plan.yaml"), cwd=folder, env=environment, stdout=console,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            if name == "whole" or kills == 10:
                break
            try:
                process.wait(rng.uniform(2, 12))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            process.wait()
        assert process.wait() == 0, (folder / "console.txt").read_text()[-3000:]
        found.append(results(folder / "study"))
    assert differences(*found) == []
    assert any(path.endswith("model/model.safetensors") for path in found[0])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failed_command_stops_what_needs_it_alone(tmp_path):
    """It is named at the end with its last line and its log; when the cause is gone the same command goes on."""
    plan = PLAN.replace("finetuning: {epochs: 2, seed: 3}", "finetuning: {epochs: 2, pseudo_targets: broken}").replace(
        "pseudo_targets:\n", "pseudo_targets:\n  broken: {split_for_generation: [no_such_split]}\n", 1
    )
    (tmp_path / "plan.yaml").write_text(f"output_dir: study\n{plan}")
    ended = subprocess.run(
        command_of(tmp_path / "plan.yaml"), cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ended.returncode == 2
    assert "failed: gen/broken: gen_main.py: error: " in ended.stdout
    assert "commands that failed: 1, that were not run: 2" in ended.stderr
    assert (tmp_path / "study" / "kd" / "logits_kd__sampling__seed1" / "model").is_dir()


def test_what_is_missing_is_reported(tmp_path, capsys):
    """A command that failed by its log, those that wait for it by their number."""
    (tmp_path / "plan.yaml").write_text(f"output_dir: {tmp_path}/study\n{PLAN}")
    study = read_study(tmp_path / "plan.yaml")
    for job in study.jobs[:2]:
        finish(study, job)
    failed = study.jobs[2]
    study.log(failed).parent.mkdir(parents=True)
    study.log(failed).write_text("reading\nft_main.py: error: the disk is full\n\n")
    with pytest.raises(UserError, match=f"commands that failed: 1, that were not run: {len(study.jobs) - 3}"):
        _report_failures(study, 1)
    assert capsys.readouterr().out == (
        f"failed: {failed.name}: ft_main.py: error: the disk is full (log: {study.log(failed)})\n"
    )
    for job in study.jobs:
        finish(study, job)
    _report_failures(study, 0)


def finish(study: Study, job) -> None:
    for path in (study.marker(job), job.result):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_what_a_study_needs_is_looked_for_first(tmp_path, monkeypatch):
    (tmp_path / "plan.yaml").write_text(f"output_dir: {tmp_path}/study\n{PLAN}")
    with pytest.raises(UserError, match="^--profile no/such: there is no such folder"):
        study_main.main(["--plan", str(tmp_path / "plan.yaml"), "--profile", "no/such"])
    monkeypatch.setattr(run_study, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="^snakemake is not installed; run pip install -r requirements-study.txt"):
        study_main.main(["--plan", str(tmp_path / "plan.yaml")])
    assert not (tmp_path / "study").exists()


def test_each_command_has_a_gpu_of_its_own(tmp_path):
    """Also when the one before on that GPU was killed; no more commands than GPUs are started."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "3,5"}
    script = [sys.executable, str(REPOSITORY / "workflow" / "one_gpu.py"), "2", str(tmp_path / "locks")]

    def start(name: str) -> subprocess.Popen:
        shown = f"echo $CUDA_VISIBLE_DEVICES > {tmp_path / name}; exec sleep 60"
        return subprocess.Popen([*script, "sh", "-c", shown], env=environment)

    def device(name: str) -> str:
        for _ in range(300):
            if (tmp_path / name).is_file() and (text := (tmp_path / name).read_text()):
                return text.strip()
            time.sleep(0.05)
        raise AssertionError(name)

    first, second = start("first"), start("second")
    try:
        taken = device("first")
        assert {taken, device("second")} == {"3", "5"}
        third = start("third")
        time.sleep(0.3)
        assert not (tmp_path / "third").exists()
        first.kill()
        assert device("third") == taken
    finally:
        for process in (first, second, third):
            process.kill()
            process.wait()
