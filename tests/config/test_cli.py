"""Command line: types, precedence of --config, one-line errors, and every command of the published README."""

import os
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest

from src.config.cli import explicit_flags, parse, run_script
from src.config.errors import UserError
from src.config.flags import generate
from src.config.flags.base import REPOSITORY
from src.config.flags.create_student import CreateStudentArguments
from src.config.flags.generate import GenerateArguments
from src.config.flags.prepare import PrepareArguments
from src.config.flags.profile import ProfileArguments
from src.config.flags.report import CompareArguments, ReportArguments
from src.config.flags.train import DistillArguments, DistillStoredArguments, FineTuneArguments

CLASSES = {
    each.script: each
    for each in (
        FineTuneArguments,
        DistillArguments,
        DistillStoredArguments,
        GenerateArguments,
        PrepareArguments,
        CreateStudentArguments,
        ProfileArguments,
    )
}
BASE = ["--output_dir", "out", "--dataset_path", "data.json"]

# Commands of the published README, word for word but for shorter paths, with a few of the values they must give.
PUBLISHED = [
    (
        "prepare_datasets_main.py --dataset_name shakespeare --train_size 7000 --val_size 750 --val_ppl_size 750 "
        "--unlabeled_size 28000 --unlabeled_split True --filter_by_length False --max_input_length 48 "
        "--max_labels_length 48 --add_ft_split full --file_name shakespeare_7k.json --output_dir ./datasets/original",
        {"dataset_name": "shakespeare", "unlabeled_size": 28000, "unlabeled_split": True, "filter_by_length": False},
    ),
    (
        "ft_main.py --max_input_length 48 --max_labels_length 48 --task_prompt modern: --mixed_precision no "
        "--metrics all --num_beams 4 --seed 42 --debug False --do_train True --save_checkpoint_every_n_steps 0.55 "
        "--test_every_n_epochs 5 --keep_checkpoint_after_test False --n_patience_epochs 10 "
        "--metric_for_best_model sacrebleu --greater_is_better True --model_name t5-large --batch_size 96 "
        "--max_gpu_batch_size 96 --learning_rate 5e-05 --epochs 15 --output_dir ./outputs/ft_teacher "
        "--dataset_path ./datasets/original/shakespeare_7k.json",
        {"task_prompt": "modern:", "metrics": ("all",), "learning_rate": 5e-5, "micro_batch_size": 96, "debug": False},
    ),
    (
        "gen_main.py --max_input_length 48 --max_labels_length 48 --task_prompt modern: --mixed_precision no "
        "--split_for_generation unlabeled train --num_beams 48 --num_return_sequences 48 --generation_type sampling "
        "--add_original_data True --seed 42 --debug False --model_name t5-large --batch_size 96 "
        "--output_dir ./datasets/generations/sampling --dataset_path ./datasets/original/shakespeare_7k.json "
        "--checkpoint_path ./outputs/ft_teacher/********.pt",
        {"split_for_generation": ("unlabeled", "train"), "num_return_sequences": 48, "add_original_data": True},
    ),
    (
        "prepare_datasets_main.py --original_dataset_path ./datasets/original/shakespeare_7k.json "
        "--generation_dataset_path ./datasets/generations/sampling/generated_datasets.json "
        "--n_augmentations_per_example 48 --file_name sampling_48.json --use_unlabeled True --use_labeled True "
        "--use_original True --output_dir ./datasets/with_augmentations",
        {"n_augmentations_per_example": 48, "use_original": True, "file_name": "sampling_48.json"},
    ),
    (
        "kd_main.py --max_input_length 48 --max_labels_length 48 --task_prompt modern: --mixed_precision no "
        "--metrics all --num_beams 4 --seed 42 --debug False --do_train True --save_checkpoint_every_n_steps 0.55 "
        "--test_every_n_epochs 8 --keep_checkpoint_after_test True --n_patience_epochs 16 --ft_steps_at_end 10 "
        "--epochs 192 --stop_training_after_n_epochs 96 --metric_for_best_model sacrebleu --greater_is_better True "
        "--experiment_config_key logits_kd --student_name t5-small --teacher_name t5-large --batch_size 96 "
        "--max_gpu_batch_size 96 --learning_rate 0.0005 --output_dir ./outputs/kd/logits_kd "
        "--teacher_state_dict_path ./outputs/ft_teacher/********.pt "
        "--dataset_path ./datasets/with_augmentations/sampling_48.json",
        {"ft_steps_at_end": 10, "stop_training_after_n_epochs": 96, "teacher_name": "t5-large", "learning_rate": 5e-4},
    ),
    (
        "prepare_datasets_main.py --logits_dataset_path ./datasets/for_gpt4/logits/shakespeare_7k.json "
        "--file_name 1.json --student_name t5-small --seed 42 --n_augmentations_per_example 1 "
        "--output_dir ./datasets/with_logits/shakespeare_7k",
        {"file_name": "1.json", "n_augmentations_per_example": 1, "student_name": "t5-small"},
    ),
    (
        "kd_dataset_with_logits_main.py --max_input_length 48 --max_labels_length 48 --task_prompt modern: "
        "--mixed_precision no --metrics all --num_beams 4 --seed 42 --debug False --do_train True "
        "--save_checkpoint_every_n_steps 0.55 --test_every_n_epochs 8 --keep_checkpoint_after_test True "
        "--n_patience_epochs 16 --ft_steps_at_end 10 --epochs 192 --stop_training_after_n_epochs 96 "
        "--metric_for_best_model sacrebleu --greater_is_better True --experiment_config_key logits_kd "
        "--student_name t5-small --batch_size 96 --max_gpu_batch_size 48 --learning_rate 0.003 "
        "--output_dir ./outputs/logits/1 --dataset_path ./datasets/with_logits/1.json",
        {"accumulation_steps": 2, "learning_rate": 0.003, "experiment_config_key": "logits_kd"},
    ),
    (
        "profile_main.py --output_file_path outputs/profiling_32.csv --model_name t5-small gpt2 "
        "facebook/bart-base_prune0_1: --batch_size 1 --input_length 48 320 480 --target_length 32 --num_beams 1 "
        "--n_calls 25 --warmup_calls 5 --device 0 --find_maximal_batch_size True --maximum_memory 16000",
        {"input_length": (48, 320, 480), "find_maximal_batch_size": True, "device": "0", "maximum_memory": 16000},
    ),
    (
        "profile_main.py --output_file_path out.csv --model_name t5-small --input_length 1 16 --target_length 16 1 "
        "--paired_lengths --find_maximal_batch_size --n_calls 100 --enc_layers_to_keep 0 1 --dec_layers_to_keep 0 -1",
        {"paired_lengths": True, "find_maximal_batch_size": True, "dec_layers_to_keep": (0, -1), "num_beams": (1,)},
    ),
]


@pytest.mark.parametrize(("command", "expected"), PUBLISHED, ids=[command.split()[0] for command, _ in PUBLISHED])
def test_published_commands(command, expected):
    script, *argv = shlex.split(command)
    args = parse(CLASSES[script], argv)
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("arguments_class", CLASSES.values(), ids=CLASSES)
def test_examples_in_help_work(arguments_class):
    lines = arguments_class.__doc__.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.strip().startswith("python ")]
    assert commands
    for _, script, *argv in commands:
        assert script == arguments_class.script
        parse(arguments_class, argv)


@pytest.mark.parametrize("word", ["True", "true", "TRUE", "tRuE"])
def test_true(word):
    assert parse(FineTuneArguments, [*BASE, "--debug", word]).debug is True


@pytest.mark.parametrize("word", ["False", "false", "FALSE"])
def test_false(word):
    assert parse(FineTuneArguments, [*BASE, "--do_train", word]).do_train is False


@pytest.mark.parametrize("rest", [[], ["--seed", "1"]])
def test_a_boolean_without_a_value_is_true(rest):
    assert parse(FineTuneArguments, [*BASE, "--debug", *rest]).debug is True
    chrf = ["--metric_for_best_model", "chrf", "--greater_is_better", *rest]
    assert parse(FineTuneArguments, [*BASE, *chrf]).greater_is_better is True


def test_only_booleans_may_lack_a_value():
    with pytest.raises(UserError, match="^--seed: expected one argument"):
        parse(FineTuneArguments, [*BASE, "--seed"])


@pytest.mark.parametrize("word", ["yes", "1", "0", "", "T", "None"])
def test_other_words_are_not_booleans(word):
    with pytest.raises(UserError, match="^--debug: "):
        parse(FineTuneArguments, [*BASE, "--debug", word])


@pytest.mark.parametrize(
    ("words", "metrics"),
    [
        (["rouge", "gleu"], ("rouge", "gleu")),
        (["rouge gleu"], ("rouge", "gleu")),
        (["rouge"], ("rouge",)),
        (["None"], None),
    ],
)
def test_lists(words, metrics):
    assert parse(FineTuneArguments, [*BASE, "--metrics", *words]).metrics == metrics


def test_negative_integers_in_lists():
    argv = shlex.split("--output_dir out --from_model m --keep_decoder_layers 0 -1 --seed 1")
    args = parse(CreateStudentArguments, argv)
    assert args.keep_decoder_layers == (0, -1)


@pytest.mark.parametrize(
    ("flag", "word", "value"),
    [
        ("n_patience_epochs", "None", None),
        ("n_patience_epochs", "3", 3),
        ("checkpoint_path", "None", None),
        ("checkpoint_path", "a.pt", "a.pt"),
        ("learning_rate", "5e-05", 5e-5),
        ("save_checkpoint_every_n_steps", "100", 100.0),
        ("task_prompt", "", ""),
        ("task_prompt", "TL;DR: ", "TL;DR: "),
    ],
)
def test_words_and_values(flag, word, value):
    given = getattr(parse(FineTuneArguments, [*BASE, f"--{flag}", word]), flag)
    assert given == value
    assert type(given) is type(value)


def test_equals_sign_and_blank_value():
    assert parse(FineTuneArguments, [*BASE, "--task_prompt=-> modern:"]).task_prompt == "-> modern:"
    assert parse(PrepareArguments, ["--output_dir", "o", "--teacher_new_word_char", " "]).teacher_new_word_char == " "


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--output_dir, --dataset_path: required, but not given"),
        (["--output_dir", "out"], "--dataset_path: required, but not given"),
        ([*BASE, "--learning_rat", "1"], "unknown flag '--learning_rat'; nearest: '--learning_rate'"),
        ([*BASE, "--batch-size", "1"], "unknown flag '--batch-size'; nearest: '--batch_size'"),
        ([*BASE, "--report", "none"], "unknown flag '--report'; nearest: '--report_to'"),  # no abbreviations
        ([*BASE, "--confg=a.yaml"], "unknown flag '--confg'; nearest: '--config'"),
        ([*BASE, "--task_prompt", "in", "modern:"], "unexpected 'modern:'"),
        ([*BASE, "--seed"], "--seed: expected one argument"),
        ([*BASE, "--seed", "1.5"], "--seed: '1.5' is not an integer"),
        ([*BASE, "--learning_rate", "fast"], "--learning_rate: 'fast' is not a number"),
        ([*BASE, "--learning_rate", "nan"], "--learning_rate: 'nan' is not a finite number"),
        ([*BASE, "--weight_decay", "inf"], "--weight_decay: 'inf' is not a finite number"),
        ([*BASE, "--metrics"], "--metrics: needs at least one value"),
        ([*BASE, "--metrics", "rogue"], "--metrics: 'rogue' is not one of .*; nearest: 'rouge'"),
        ([*BASE, "--task_prompt", "None"], "--task_prompt: needs a value, not None"),
        ([*BASE, "--epochs", "0"], "--epochs: must be at least 1, not 0"),
    ],
)
def test_error_lines(argv, message):
    with pytest.raises(UserError, match=f"^{message}"):
        parse(FineTuneArguments, argv)


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_command_line_over_config_over_default(config_file):
    path = config_file("output_dir: from_file\ndataset_path: data.json\nseed: 7\nepochs: 3\n")
    args = parse(FineTuneArguments, ["--seed", "8", "--config", path])
    assert (args.output_dir, args.seed, args.epochs, args.batch_size) == ("from_file", 8, 3, 32)


def test_config_means_what_the_command_line_means(config_file):
    """Words that YAML 1.1 would turn into something else: no, 5e-05, 1:30, null, dates."""
    path = config_file(
        "mixed_precision: no\nlearning_rate: 5e-05\ntask_prompt: 1:30\ncheckpoint_path: null\nmodel_name: 2020-01-01\n"
        "metrics: [rouge, gleu]\ndebug: TRUE\nn_patience_epochs: ~\ntest_every_n_epochs: None\n"
    )
    args = parse(FineTuneArguments, [*BASE, "--config", path])
    assert (args.mixed_precision, args.learning_rate, args.task_prompt) == ("no", 5e-5, "1:30")
    assert (args.checkpoint_path, args.n_patience_epochs, args.test_every_n_epochs) == (None, None, None)
    assert (args.model_name, args.metrics, args.debug) == ("2020-01-01", ("rouge", "gleu"), True)


def test_config_list_as_one_text(config_file):
    path = config_file("split_for_generation: unlabeled train\n")
    assert parse(GenerateArguments, [*BASE, "--config", path]).split_for_generation == ("unlabeled", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "mine.yaml: unknown key 'learning_rat'; nearest: 'learning_rate'"),
        ("config: other.yaml", "mine.yaml: unknown key 'config'"),
        ("seed: one", "mine.yaml: seed: 'one' is not an integer"),
        ("debug: yes", "mine.yaml: debug: 'yes' is neither True nor False"),
        ("epochs: 0", "mine.yaml: epochs: must be at least 1, not 0"),
        ("seed: [1, 2]", "mine.yaml: seed: needs one value, not a list"),
        ("seed: {a: 1}", "mine.yaml: seed: needs one value, not a mapping"),
        ("seed:", "mine.yaml: seed: needs a value, not None"),
        ("metrics: {rouge: 1}", "mine.yaml: metrics: needs a list of single values"),
        ("metrics: [[rouge]]", "mine.yaml: metrics: needs a list of single values"),
        ("seed: 1\nseed: 2", "mine.yaml: line 2: key 'seed' is given twice"),
        ("seed: !!python/object/apply:os.getpid []", "mine.yaml: line 1: tag .* is not allowed"),
        ("seed: !!int 1", "mine.yaml: line 1: tag .* is not allowed"),
        ("<<: {seed: 1}", "mine.yaml: unknown key '<<'"),
        ("seed: [1", "mine.yaml: line "),
        ("seed: 1\n\tepochs: 2", "mine.yaml: line 2: "),
        ("- seed", "mine.yaml: must consist of `key: value` lines"),
        ("", "mine.yaml: must consist of `key: value` lines"),
        ("seed: 1\n---\nseed: 2", "mine.yaml: line 2: "),
        ("null: 1", "mine.yaml: line 1: a key must be a text"),
        ("[a]: 1", "mine.yaml: line 1: a key must be a text"),
        ("metrics: &x [*x]", "mine.yaml: "),
        ("seed: \x00", "mine.yaml: is not YAML"),
    ],
)
def test_config_mistakes(config_file, text, message):
    with pytest.raises(UserError, match=f"^{message}") as raised:
        parse(FineTuneArguments, [*BASE, "--config", config_file(text)])
    assert "\n" not in str(raised.value)


def test_config_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: cannot be read: No such file"):
        parse(FineTuneArguments, [*BASE, "--config", str(tmp_path / "nowhere.yaml")])
    (tmp_path / "latin.yaml").write_bytes(b"task_prompt: \xe9\n")
    with pytest.raises(UserError, match="latin.yaml: is not UTF-8 text"):
        parse(FineTuneArguments, [*BASE, "--config", str(tmp_path / "latin.yaml")])


def test_explicit_flags(config_file):
    path = config_file("seed: 42\nepochs: 3\n")
    assert explicit_flags(FineTuneArguments, ["--epochs", "4", "--config", path]) == {"seed": 42, "epochs": 4}


def test_run_script_statuses(capsys):
    def fails(_argv):
        raise UserError("--seed: two\nlines")

    def interrupted(_argv):
        raise KeyboardInterrupt

    given = []
    assert run_script(given.append, ["--seed", "1"]) == 0
    assert given == [["--seed", "1"]]
    assert run_script(interrupted, []) == 130
    assert capsys.readouterr() == ("", "")
    assert run_script(fails, []) == 2
    assert capsys.readouterr() == ("", "test_cli.py: error: --seed: two lines\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(36, "File name too long", "data/nnn.json"), "data/nnn.json: File name too long"),
        (OSError("Can't load it.\nIs it there?"), "Can't load it. Is it there?"),
    ],
)
def test_an_error_of_the_system_is_one_line(capsys, error, line):
    def fails(_argv):
        raise error

    assert run_script(fails, []) == 2
    assert capsys.readouterr().err == f"test_cli.py: error: {line}\n"


def test_run_script_hides_no_defect():
    def broken(_argv):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run_script(broken, [])


@pytest.mark.parametrize("arguments_class", CLASSES.values(), ids=CLASSES)
def test_help_shows_every_flag(arguments_class, capsys):
    with pytest.raises(SystemExit) as exited:
        parse(arguments_class, ["--help"])
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    assert shown.isascii()
    first = "output_file_path" if arguments_class is ProfileArguments else "output_dir"
    assert shown.startswith(f"usage: python {arguments_class.script} --{first} ...")
    for each in fields(arguments_class):
        assert f"  --{each.name} " in shown
    assert "(required)" in shown
    assert "[42]" in shown


def test_positional_values(tmp_path):
    """Words without a flag, which may hold spaces; --config has them under their name."""
    argv = ["a b", "c", "--output_file", "r.html"]
    assert parse(ReportArguments, argv).output_dirs == ("a b", "c")
    (tmp_path / "c.yaml").write_text("output_dirs: [a b, c]")
    config = ["--config", str(tmp_path / "c.yaml")]
    assert parse(CompareArguments, config).output_dirs == ("a b", "c")
    assert parse(CompareArguments, ["d", *config]).output_dirs == ("d",)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "OUTPUT_DIRS, --output_file: required, but not given"),
        (["--output_file", "r.html"], "OUTPUT_DIRS: required, but not given"),
        (["a\0b", "--output_file", "r.html"], "OUTPUT_DIRS: .*NUL"),
        (["--output_dirs", "a", "--output_file", "r.html"], "unknown flag '--output_dirs'"),
        (["--output_file", "r.html", "a"], None),
    ],
)
def test_positional_mistakes(argv, message):
    if message is None:
        assert parse(ReportArguments, argv).output_dirs == ("a",)
        return
    with pytest.raises(UserError, match=message):
        parse(ReportArguments, argv)


def test_help_of_positional_values(capsys):
    with pytest.raises(SystemExit):
        parse(ReportArguments, ["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python report_main.py OUTPUT_DIRS ... --output_file ...")
    assert "  OUTPUT_DIRS" in shown


def test_light_imports():
    """--help and flag errors must be quick: nothing heavy, and not even PyYAML, is imported before it is needed."""
    code = (
        "import sys; import src.config.flags.train, src.config.cli; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


def test_scripts_of_one_process_refuse_a_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="^prepare_datasets_main.py runs as one process; start it without a launcher"):
        parse(PrepareArguments, ["--dataset_name", "demo", "--output_dir", "o"])
    parse(FineTuneArguments, BASE)


def test_an_engine_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(generate, "find_spec", lambda _: None)
    flags = ["--model_name", "m", "--output_dir", "o", "--dataset_path", "d", "--generation_engine", "ctranslate2"]
    with pytest.raises(UserError, match="^--generation_engine ctranslate2: is not installed; run pip install ctrans"):
        parse(GenerateArguments, flags)
