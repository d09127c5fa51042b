"""--config: one YAML for all scripts, sections for one script, run.json, and hints for unknown names."""

import json
import shlex
from dataclasses import asdict

import pytest
from conftest import ARGUMENTS

from src.config.cli import explicit_flags, parse
from src.config.errors import UserError
from src.config.flags.base import REPOSITORY
from src.config.flags.prepare import PrepareArguments
from src.config.flags.train import DistillArguments, FineTuneArguments
from src.config.hints import SYNONYMS
from src.config.scripts import flag_names, scripts_with

ALL = """
seed: 7
max_input_length: 48          # tokens
task_prompt: "modern:"
batch_size: 8
generation_type: sampling
text_column: article
filter_by_length: True
prepare_datasets_main:
  max_input_length: 30        # words
  dataset_path: raw.csv
  output_dir: data
ft_main:
  batch_size: 4
  output_dir: out/ft
  dataset_path: data/dataset.json
  metrics: [rouge, gleu]
kd_main:
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="all.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_one_file_for_all_scripts(write):
    path = write(ALL)
    prepared = parse(PrepareArguments, ["--config", path])
    assert (prepared.max_input_length, prepared.filter_by_length, prepared.text_column) == (30, True, "article")
    tuned = parse(FineTuneArguments, ["--config", path, "--seed", "8"])
    assert (tuned.max_input_length, tuned.batch_size, tuned.seed, tuned.metrics) == (48, 4, 8, ("rouge", "gleu"))
    assert explicit_flags(DistillArguments, ["--config", path]) == {
        "seed": 7, "max_input_length": 48, "task_prompt": "modern:", "batch_size": 8, "text_column": "article"
    }  # fmt: skip


@pytest.mark.parametrize("script", ARGUMENTS)
def test_every_script_takes_the_file(write, script):
    assert explicit_flags(ARGUMENTS[script], ["--config", write(ALL)])["seed"] == 7


def test_the_file_of_the_documentation_works(write):
    page = (REPOSITORY / "docs" / "flags.md").read_text(encoding="utf-8")
    path = write(page.split("```yaml\n")[1].split("```")[0])
    assert parse(PrepareArguments, ["--config", path]).max_input_length == 90
    assert parse(FineTuneArguments, ["--config", path]).max_input_length == 128


@pytest.mark.parametrize("script", ARGUMENTS)
def test_no_script_refuses_a_flag_of_another(write, script):
    everything = {name for each in ARGUMENTS for name in flag_names(each)}
    others = everything - set(flag_names(script))
    path = write("".join(f"{name}: anything\n" for name in others))
    assert explicit_flags(ARGUMENTS[script], ["--config", path]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "all.yaml: unknown key 'learning_rat'; nearest: 'learning_rate'"),
        ("student_nam: a", "all.yaml: unknown key 'student_nam'; nearest: 'student_name'"),
        ("ft_mian: {seed: 1}", "all.yaml: unknown key 'ft_mian'; nearest: 'ft_main'"),
        ("lr: 1", "all.yaml: unknown key 'lr'; did you mean learning_rate?"),
        ("fp16: True", "all.yaml: unknown key 'fp16'; did you mean mixed_precision: fp16?"),
        ("ft_main: {sed: 1}", "all.yaml: ft_main: unknown key 'sed'; nearest: 'seed'"),
        ("kd_main: {teacher_nam: 1}", "all.yaml: kd_main: unknown key 'teacher_nam'; nearest: 'teacher_name'"),
        ("ft_main: {teacher_name: a}", "all.yaml: ft_main: unknown key 'teacher_name'; teacher_name is for kd_main.py"),
        ("ft_main: 1", "all.yaml: ft_main: must consist of `key: value` lines"),
        ("ft_main: {seed: one}", "all.yaml: ft_main: seed: 'one' is not an integer"),
        ("ft_main: {kd_main: {seed: 1}}", "all.yaml: ft_main: unknown key 'kd_main'"),
        ("flags: {seed: 1}", "all.yaml: unknown key 'flags'"),
    ],
)
def test_mistakes(write, text, message):
    with pytest.raises(UserError) as raised:
        explicit_flags(FineTuneArguments, ["--config", write(text)])
    assert str(raised.value).startswith(message)


def run_json(write, arguments, **changes):
    flags = {**asdict(arguments), **changes}
    content = {"script": arguments.script, "status": "finished", "scores": {"nll": 1.0}, "flags": flags, "data": {}}
    return write(json.dumps(content, ensure_ascii=False, indent=1), "run.json")


ARGV = shlex.split(
    "--output_dir old --dataset_path d.json --metrics rouge gleu --learning_rate 5e-05 --overwrite True --compile True "
    "--n_patience_epochs None --max_gpu_batch_size 4"
)


def test_a_run_json_gives_the_flags_of_its_run(write):
    former = parse(FineTuneArguments, [*ARGV, "--task_prompt", "a: \u2028\\n 'b' \"c\"\x85 é"])
    path = run_json(write, former)
    again = parse(FineTuneArguments, ["--config", path, "--output_dir", "new"])
    assert asdict(again) == {**asdict(former), "output_dir": "new", "overwrite": False}
    with pytest.raises(UserError, match="--output_dir: required"):
        parse(FineTuneArguments, ["--config", path])


def test_a_run_json_serves_other_scripts(write):
    path = run_json(write, parse(FineTuneArguments, ARGV))
    argv = ["--config", path, "--output_dir", "new", "--experiment_config_key", "logits_kd"]
    config = parse(DistillArguments, argv)
    assert (config.learning_rate, config.metrics, config.teacher_name) == (5e-5, ("rouge", "gleu"), "t5-large")


def test_a_run_json_with_mistakes(write):
    former = parse(FineTuneArguments, ARGV)
    with pytest.raises(UserError, match="run.json: unknown key 'learning_rat'; nearest: 'learning_rate'"):
        explicit_flags(FineTuneArguments, ["--config", run_json(write, former, learning_rat=1)])
    with pytest.raises(UserError, match="run.json: epochs: must be at least 1, not 0"):
        explicit_flags(FineTuneArguments, ["--config", run_json(write, former, epochs=0)])
    with pytest.raises(UserError, match="cut.json: line 1: is not JSON: "):
        explicit_flags(FineTuneArguments, ["--config", write('{"flags": {"seed"', "cut.json")])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--lr", "unknown flag '--lr'; did you mean --learning_rate?"),
        ("--fp16", "unknown flag '--fp16'; did you mean --mixed_precision fp16?"),
        ("--gradient_accumulation_steps=4", "did you mean --max_gpu_batch_size?"),
        ("--per-device-train-batch-size", "did you mean --max_gpu_batch_size?"),
        ("--num_train_epochs", "did you mean --epochs?"),
        ("--max_source_length", "did you mean --max_input_length?"),
        ("--top_p", "unknown flag '--top_p'; --top_p is for gen_main.py, simulate_api_main.py"),
        ("--nucleus", "unknown flag '--nucleus'; --top_p is for gen_main.py, simulate_api_main.py"),
        ("--learning-rate", "unknown flag '--learning-rate'; nearest: '--learning_rate'"),
    ],
)
def test_hints_on_the_command_line(flag, message):
    with pytest.raises(UserError) as raised:
        parse(FineTuneArguments, ["--output_dir", "o", "--dataset_path", "d", flag, "1"])
    assert str(raised.value).endswith(message)


@pytest.mark.parametrize("synonym", SYNONYMS)
def test_synonyms_are_no_flags_and_mean_one(synonym):
    flag, _, value = SYNONYMS[synonym].partition(" ")
    assert synonym == synonym.lower().replace("-", "_")
    assert not scripts_with(synonym)
    choices = {
        field.metadata["limits"]["choices"]
        for script in scripts_with(flag)
        for field in ARGUMENTS[script].__dataclass_fields__.values()
        if field.name == flag
    }
    assert choices
    assert not value or any(value in possible for possible in choices)
