"""Plans of studies: what they expand to, what is shared, and one-line errors before anything runs."""

import re
import shlex
from pathlib import Path

import pytest

from src.config.cli import run_script
from src.config.errors import UserError
from src.config.flags.base import REPOSITORY
from src.studies.jobs import Study
from src.studies.plan import read_study
from study_main import main

SHIPPED = sorted((REPOSITORY / "arg_configs" / "studies").glob("*.yaml"))
PLAN = """
output_dir: OUT
seeds: [1, 2]
flags: {max_input_length: 48, gen_main: {batch_size: 64}, kd_main: {batch_size: 16}}
data:
  small: {dataset_name: demo, train_size: 20, unlabeled_split: True}
models:
  new: {family: t5, vocab_size: 90, dataset_path: small}
  smaller: {from_model: large, n_decoder_layers: 1}
teachers:
  large: {model_name: new, dataset_path: small, epochs: 2}
students:
  student: {model: smaller, teacher: large, data: small}
pseudo_targets:
  sampling: {generation_type: sampling, num_return_sequences: 2}
  sampling_labeled: {generation_type: sampling, num_return_sequences: 2, use_unlabeled: False}
methods:
  finetuning: {epochs: 3}
  kd: {experiment_config_key: logits_kd, learning_rate: [0.01, 0.001], pseudo_targets: [sampling, sampling_labeled]}
"""
METHODS = PLAN[PLAN.index("methods:") :]


def study_of(tmp_path: Path, text: str = PLAN) -> Study:
    (tmp_path / "plan.yaml").write_text(text.replace("OUT", str(tmp_path / "out")))
    return read_study(tmp_path / "plan.yaml")


def test_what_a_plan_expands_to(tmp_path):
    study = study_of(tmp_path)
    jobs = {job.name: job for job in study.jobs}
    assert list(jobs)[:4] == ["data/small", "models/new", "teachers/large", "models/smaller"]
    assert {name for name in jobs if name.startswith("ft/")} == {"ft/finetuning__seed1", "ft/finetuning__seed2"}
    assert {name for name in jobs if name.startswith("kd/")} == {
        f"kd/kd__{targets}__lr{rate}__seed{seed}"
        for targets in ("sampling", "sampling_labeled") for rate in ("0.01", "0.001") for seed in (1, 2)
    }  # fmt: skip
    kd = jobs["kd/kd__sampling_labeled__lr0.001__seed2"]
    assert kd.needs == ("models/smaller", "teachers/large", "data/sampling_labeled")
    assert kd.command == (
        f"python {REPOSITORY / 'kd_main.py'} --max_input_length 48 --batch_size 16 --experiment_config_key logits_kd "
        f"--learning_rate 0.001 --seed 2 --student_name {tmp_path}/out/models/smaller "
        f"--teacher_name {tmp_path}/out/teachers/large/model --dataset_path {tmp_path}/out/data/sampling_labeled.json "
        f"--output_dir {tmp_path}/out/kd/kd__sampling_labeled__lr0.001__seed2"
    ).replace(f"{REPOSITORY}/", "" if Path.cwd() == REPOSITORY else f"{REPOSITORY}/")
    assert kd.words == shlex.split(kd.command)[2:]


def test_equal_flags_are_one_job(tmp_path):
    """One teacher, one student, one generation for two ways to merge it; each job after those that it needs."""
    study = study_of(tmp_path)
    names = [job.name for job in study.jobs]
    assert [name for name in names if name.startswith("gen/")] == ["gen/sampling"]
    assert {"data/sampling", "data/sampling_labeled"} <= set(names)
    for place, job in enumerate(study.jobs):
        assert set(job.needs) <= set(names[:place])


def test_a_profile_measures_each_model_once(tmp_path):
    *_, profile = study_of(tmp_path, f"{PLAN}profile: {{n_calls: 5}}").jobs
    root = tmp_path / "out"
    assert profile.words == [
        "--n_calls", "5", "--model_name", f"{root}/teachers/large/model", f"{root}/models/smaller",
        "--output_file_path", f"{root}/profile.json",
    ]  # fmt: skip
    assert profile.needs == ("teachers/large", "models/smaller")


def test_a_seed_of_the_command_line_replaces_the_plans(tmp_path):
    study_of(tmp_path)
    jobs = read_study(tmp_path / "plan.yaml", str(tmp_path / "other"), 7).jobs
    seeded = [job for job in jobs if job.name.startswith(("ft/", "kd/"))]
    assert len(seeded) == 1 + 4 and {job.flags["seed"] for job in seeded} == {"7"}
    assert all(job.result.is_relative_to(tmp_path / "other") for job in jobs)


def test_a_teacher_of_other_data_is_scored_on_the_students(tmp_path):
    text = PLAN.replace("data:\n  small", "data:\n  big: {dataset_name: demo, train_size: 30}\n  small")
    study = study_of(
        tmp_path, text.replace("model_name: new, dataset_path: small", "model_name: new, dataset_path: big")
    )
    (scored,) = (job for job in study.jobs if job.name == "teachers/large__on_small")
    assert scored.flags["do_train"] == "False" and scored.flags["model_name"].endswith("teachers/large/model")
    assert "teachers/large__on_small" not in {job.name for job in study_of(tmp_path).jobs}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("methods:", "profile: {output_file_path: a}\nmethods:", "profile: unknown key 'output_file_path'"),
        ("seeds:", "seds:", "plan.yaml: unknown key 'seds'; nearest: 'seeds'"),
        ("epochs: 3", "epoch: 3", "plan.yaml: methods.finetuning: unknown key 'epoch'; nearest: 'epochs'"),
        ("epochs: 3", "epochs: three", "plan.yaml: methods.finetuning: --epochs: .*three"),
        ("epochs: 2", "epochs: -2", "plan.yaml: teachers.large: --epochs: must be at least"),
        ("48, gen_main", "48, genmain", "plan.yaml: flags: unknown key 'genmain'; nearest: 'gen_main'"),
        ("key: logits_kd", "key: logit_kd", "methods.kd: .*: unknown experiment 'logit_kd'; nearest: 'logits_kd'"),
        ("data: small}", "data: smal}", "unknown entry of data: 'smal'; nearest: 'small'"),
        ("teacher: large,", "", "students.student: needs teacher"),
        ("[sampling, sampling_labeled]", "smpling", "unknown entry of pseudo_targets: 'smpling'; nearest: 'sampling'"),
        ("dataset_path: small, epochs", "dataset_path: small.json, epochs", "dataset_path: small.json: there is no"),
        ("model_name: new", "model_name: ./new", "teachers.large: model_name: ./new: there is no such folder"),
        ("model_name: new", "model_name: smaller", "models.smaller needs teachers.large needs models.smaller: a cycle"),
        ("  finetuning: {epochs: 3}", "  a/b: {epochs: 3}", "methods.a/b: a name may have letters"),
        ("  finetuning: {epochs: 3}", "  finetuning: 3", "methods.finetuning: must consist of"),
        ("[0.01, 0.001]", "[[1]]", "methods.kd: learning_rate: must be one value or a list of values"),
        ("learning_rate: [0.01, 0.001]", "output_dir: x", "methods.kd: unknown key 'output_dir'"),
        ("[sampling, sampling_labeled]", "[[sampling]]", "methods.kd: pseudo_targets: must be one value or a list"),
        ("flags: {", "flags: 3\n# {", "plan.yaml: flags: must consist of `flag: value` lines"),
        ("methods:", "profile: [1]\nmethods:", "plan.yaml: profile: must consist of `flag: value` lines"),
        (METHODS, "methods: [a]\n", "plan.yaml: methods: must consist of named entries"),
        (METHODS, "methods: {}\n", "plan.yaml: methods: names no method, so there is nothing to run"),
        ("  student: {model: smaller, teacher: large, data: small}\n", "", "plan.yaml: students: names no student"),
        ("  finetuning: {epochs: 3}", "  kd__sampling__lr0.01: {epochs: 3, experiment_config_key: noisy_kd}",
         "is the name of two runs with different flags"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_plan_is_one_line(tmp_path, monkeypatch, old, new, said):
    assert old in PLAN
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(said).replace(r"\.\*", ".*")):
        study_of(tmp_path, PLAN.replace(old, new))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def raw_data(tmp_path, monkeypatch) -> None:
    """The file that e2e.yaml asks the user for, in the folder of the test, where the plans are read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets" / "raw").mkdir(parents=True)
    (tmp_path / "datasets" / "raw" / "e2e_nlg.json").write_text("{}")


@pytest.mark.usefixtures("raw_data")
@pytest.mark.parametrize("plan", SHIPPED, ids=lambda plan: plan.stem)
def test_shipped_plans_are_read(plan):
    assert {"ft_main.py", "kd_main.py"} <= {job.script for job in read_study(plan).jobs}


@pytest.mark.usefixtures("raw_data")
@pytest.mark.parametrize(
    "plan",
    [pytest.param(plan, marks=[pytest.mark.slow] if plan.stem != "demo" else [], id=plan.stem) for plan in SHIPPED],
)
def test_snakemake_plans_what_is_shipped(plan, tmp_path, capfd):
    flags = ["--plan", str(plan), "--output_dir", str(tmp_path / "out"), "--dry_run", "True"]
    assert run_script(main, flags) == 0
    printed = capfd.readouterr()
    assert "kd_main.py --" in printed.out
    assert not (tmp_path / "out").exists()
