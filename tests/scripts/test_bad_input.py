"""Common mistakes of users: one line on stderr, exit status 2, and nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY, argv, ft_flags, gen_flags, kd_flags, read, says, snapshot

import compare_main
import create_student_main
import ft_main
import gen_main
import kd_dataset_with_logits_main
import kd_main
import prepare_datasets_main
import profile_main
import report_main
import simulate_api_main
import study_main
from src.config.cli import run_script
from src.decoding import generator
from src.models import weights
from src.training import setup

MAINS = {
    "ft": ft_main.main,
    "kd": kd_main.main,
    "stored": kd_dataset_with_logits_main.main,
    "gen": gen_main.main,
    "prepare": prepare_datasets_main.main,
    "simulate": simulate_api_main.main,
    "student": create_student_main.main,
    "profile": profile_main.main,
    "study": study_main.main,
    "compare": compare_main.main,
    "report": report_main.main,
}
PAIR = {"text": ["A cat.", "A dog."], "target": ["A dog.", "A cat."]}
GOOD = {"train": PAIR, "dev": PAIR, "test": PAIR, "ft": PAIR, "unlabeled": {"text": ["A bird."]}}
GENERATED = {"train": {"text": ["A cat.", "A cat.", "A dog."], "generated": ["a", "b", "c"]}}


@pytest.fixture
def place(tmp_path, dropout_models) -> Path:
    return make_place(tmp_path, dropout_models)


def make_place(root: Path, models: dict[str, dict[str, str]]) -> Path:
    """A folder with good data, models and a student's weights; `out` is not there."""
    (root / "data.json").write_text(json.dumps(GOOD))
    (root / "generated.json").write_text(json.dumps(GENERATED))
    for family, folders in models.items():
        for role, folder in folders.items():
            shutil.copytree(folder, root / f"{family}_{role}")
    return root


def flags_of(script: str, place: Path, **flags: Any) -> list[str]:
    """A good command, changed by `flags`; @ in a text stands for the folder."""
    flags = {name: value.replace("@", str(place)) if isinstance(value, str) else value for name, value in flags.items()}
    if script in ("report", "compare"):
        return [*argv({"output_file": place / "out.html"} if script == "report" else {}), *argv(flags), str(place)]
    if script == "study":
        return argv({"plan": place / "plan.yaml", **flags})
    if script == "profile":
        return argv({"model_name": place / "t5_student", "output_file_path": place / "out.csv", **flags})
    flags = {"dataset_path": place / "data.json", "output_dir": place / "out", **flags}
    if script == "kd":
        models = {"student": str(place / "t5_student"), "teacher": str(place / "t5_teacher")}
        return kd_flags(models, flags.pop("dataset_path"), flags.pop("output_dir"), **flags)
    if script == "stored":
        named = {"student_name": place / "t5_student", "experiment_config_key": "logits_kd"}
        return argv({**TINY, **named, **flags})
    if script in ("ft", "gen", "simulate"):
        command = {"ft": ft_flags, "gen": gen_flags, "simulate": gen_flags}[script]
        return command(str(place / "t5_student"), flags.pop("dataset_path"), flags.pop("output_dir"), **flags)
    if script == "prepare" and {"original_dataset_path", "logits_dataset_path"} & flags.keys():
        del flags["dataset_path"]
    return argv(flags)


def refused(script: str, command: list[str], place: Path, capsys) -> str:
    """The one line that a refused command prints; the disk is as it was."""
    before = snapshot(place)
    folders = {path for path in place.rglob("*") if path.is_dir()}
    capsys.readouterr()
    assert run_script(MAINS[script], command) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"{Path(MAINS[script].__code__.co_filename).name}: error: ")
    assert "Traceback" not in printed.out
    assert snapshot(place) == before
    assert {path for path in place.rglob("*") if path.is_dir()} == folders
    return line


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        # flags
        ("ft", {"batchsize": 3}, "unknown flag '--batchsize'; nearest: '--batch_size'"),
        ("kd", {"do_train": "maybe"}, "--do_train: 'maybe' is neither True nor False"),
        ("ft", {"epochs": 0}, "--epochs: must be at least 1"),
        ("ft", {"epochs": "two"}, "--epochs: 'two' is not an integer"),
        ("ft", {"learning_rate": "nan"}, "--learning_rate: 'nan' is not a finite number"),
        ("ft", {"metrics": "blue"}, "--metrics: 'blue' is not one of"),
        ("ft", {"metric_for_best_model": "rouge"}, "--metric_for_best_model: 'rouge' is no score; nearest: 'rouge"),
        ("ft", {"metric_for_best_model": "bertscore_f1"}, "exists only in the final test"),
        ("gen", {"split_for_generation": "trian"}, "has no split 'trian'; nearest: 'train'"),
        ("gen", {"num_return_sequences": 5}, "beam_search finds at most --num_beams 1 targets"),
        ("gen", {"generation_type": "greedy"}, "--generation_type: 'greedy' is not one of"),
        ("ft", {"output_dir": "@/data.json"}, "data.json: is a file, not a folder"),
        ("gen", {"output_dir": "@/data.json"}, "data.json: is a file, not a folder"),
        ("ft", {"output_dir": "@/data.json/out"}, "cannot be written: Not a directory"),
        ("ft", {"task_prompt": "modern: " * 30}, "leave no room for text"),
        ("ft", {"dataset_path": None}, "--dataset_path: required, but not given"),
        # files
        ("ft", {"dataset_path": "@/none.json"}, "none.json: No such file or directory"),
        ("kd", {"dataset_path": "@/none.json"}, "none.json: No such file or directory"),
        ("gen", {"dataset_path": "@/none.json"}, "none.json: No such file or directory"),
        ("ft", {"checkpoint_path": "@/none.pt"}, "none.pt: no such file or folder"),
        ("gen", {"checkpoint_path": "@/none.pt"}, "none.pt: no weights there"),
        ("kd", {"student_state_dict_path": "@/none.pt"}, "none.pt: no weights there"),
        ("kd", {"teacher_state_dict_path": "@/none.pt"}, "none.pt: no weights there"),
        ("ft", {"config": "@/none.yaml"}, "none.yaml: cannot be read"),
        # models
        ("ft", {"model_name": "@/none"}, "none: no such model folder"),
        ("kd", {"student_name": "@/none"}, "none: no such model folder"),
        ("kd", {"teacher_name": "@/none"}, "none: no such model folder"),
        ("kd", {"teacher_name": "@/gpt2_teacher"}, "both must be of one kind"),
        ("ft", {"model_name": "@/t5_student_prune7"}, "decoder layer 7: the model has 1"),
        ("ft", {"checkpoint_path": "@/t5_teacher"}, "t5_teacher: not for .*t5_student"),
        ("ft", {"checkpoint_path": "@/gpt2_student"}, "t5_student"),
        ("kd", {"teacher_state_dict_path": "@/t5_student"}, "t5_teacher"),
        # experiments
        ("kd", {"experiment_config_key": "logit_kd"}, "unknown experiment 'logit_kd'; nearest: 'logits_kd'"),
        ("kd", {"experiment_config_path": "@/none.yaml"}, "none.yaml: cannot be read"),
        ("stored", {"teacher_name": "@/t5_teacher"}, "unknown flag '--teacher_name'"),
        ("stored", {}, "split 'train' has no column 'tokens'; prepare the data with prepare_datasets_main.py"),
        ("stored", {"experiment_config_key": "noisy_kd"}, "dropout, which needs the teacher's model"),
        ("stored", {"student_name": "@/none", "experiment_config_key": "finetuning"}, "none: no such model folder"),
        # merging
        ("prepare", {"original_dataset_path": "@/data.json", "generation_dataset_path": "@/generated.json",
                     "n_augmentations_per_example": 3}, "3 is more than any input has: at most 2"),
        ("prepare", {"original_dataset_path": "@/data.json"}, "no mode takes"),
        ("prepare", {"original_dataset_path": "@/data.json", "generation_dataset_path": "@/data.json"},
         "column 'generated' is missing"),
        # an API's log-probabilities
        ("prepare", {"logits_dataset_path": "@/a.jsonl", "student_name": "@/t5_student"}, "a.jsonl: No such file"),
        ("prepare", {"logits_dataset_path": "@/data.json", "student_name": "@/none"}, "none: no such model folder"),
        ("prepare", {"logits_dataset_path": "@/data.json", "student_name": "@/t5_student"},
         "data.json: 7 of 7 answers failed, more than --max_failed_share 0.1: 7 no prediction"),
        ("prepare", {"logits_dataset_path": "@/data.json", "generation_dataset_path": "@/data.json"}, "no mode takes"),
        ("student", {"from_model": "@/none", "dataset_path": None}, "none: no such model folder"),
        # an API's file
        ("simulate", {"form": "json"}, "--form: 'json' is not one of published, chat, jsonl; nearest: 'jsonl'"),
        ("simulate", {"generation_type": "greedy", "n_completions": 2}, "--n_completions 2: greedy writes"),
        ("simulate", {"split_for_generation": "trian"}, "has no split 'trian'; nearest: 'train'"),
        ("simulate", {"model_name": "@/none"}, "none: no such model folder"),
        # studies and reports
        ("study", {"plan": None}, "--plan: required, but not given"),
        ("study", {"plan": "@/none.yaml"}, "none.yaml: cannot be read: No such file"),
        ("study", {"plan": "@/data.json"}, "data.json: unknown key 'train'; nearest"),
        ("study", {"jobs": 0}, "--jobs: must be at least 1"),
        ("compare", {}, "neither it nor a folder below holds a run"),
        ("compare", {"score": "bleu"}, "neither it nor a folder below holds a run"),
        ("report", {"output_file": "@/out.txt"}, "--output_file .*out.txt: must end in .html"),
        ("report", {"output_file": "@/data.json/out.html"}, "cannot be written: .*data.json is a file"),
        ("report", {"picture": "@/out.png"}, "--picture .*out.png: must end in .svg"),
        # profiles
        ("profile", {"model_name": None}, "--model_name: required, but not given"),
        ("profile", {"model_name": "@/none"}, "none: no such model folder"),
        ("profile", {"dec_layers_to_keep": 1}, "t5_student_prune1: decoder layer 1: the model has 1 layers"),
        ("profile", {"model_name": "@/gpt2_student", "enc_layers_to_keep": 0}, "encoder layers 0: the model has no"),
        ("profile", {"model_name": "@/t5_student_prune0", "dec_layers_to_keep": 0}, "leave out --dec_layers_to_keep"),
        ("profile", {"model_name": "@/gpt2_student", "input_length": (64, 100)},
         "--input_length plus --target_length: 132 tokens, but .*gpt2_student has positions for 128"),
        ("profile", {"paired_lengths": True, "input_length": (4, 8)}, "2 input lengths do not pair with 1 target"),
        ("profile", {"output_file_path": "@/out.txt"}, "out.txt: must end in .csv or .json"),
        ("profile", {"output_file_path": "@/data.json"}, "data.json: holds no profile: Expected `array`"),
        ("profile", {"output_file_path": "@/data.json/out.csv"}, "data.json: is a file, not a folder"),
        ("profile", {"device": "gpu"}, "--device gpu: is neither cpu, cuda, nor the number of a GPU"),
        ("profile", {"device": "cuda:99"}, "--device cuda:99: torch finds .* GPUs here"),
        ("profile", {"batch_size": (1, 0)}, "--batch_size: must be at least 1, not 0"),
    ],
)  # fmt: skip
def test_a_wrong_command(place, capsys, script, flags, said):
    line = refused(script, flags_of(script, place, **flags), place, capsys)
    assert says(line, said)


@pytest.mark.parametrize("script", ["ft", "kd"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "data.json: not JSON"),
        ("", "data.json: not JSON"),
        ("[]", "data.json: expected {split"),
        ('"text"', "data.json: expected {split"),
        ("\ufeff{}", "data.json: expected {split"),
        (json.dumps({**GOOD, "train": {"text": ["a"], "target": []}}), "columns must be equally long"),
        (json.dumps({"dev": PAIR, "test": PAIR}), "no training split"),
        (json.dumps({"training": PAIR, "ft": PAIR}), "no training split"),
        (json.dumps({**GOOD, "train": {"text": ["a"]}}), "split 'train': column 'target' is missing"),
        (json.dumps({**GOOD, "dev": {"target": ["a"]}}), "split 'dev': column 'text' is missing"),
        (json.dumps({**GOOD, "train": {"text": [], "target": []}}), "split 'train': no rows"),
        (json.dumps({**GOOD, "test": {"text": [], "target": []}}), "split 'test': no rows"),
        (json.dumps({**GOOD, "train_0": PAIR, "train_2": PAIR}), "must be numbered without gaps"),
        (json.dumps({**GOOD, "train_1": PAIR}), "must be numbered without gaps"),
        (json.dumps({**GOOD, "train_0": PAIR, "train_01": PAIR}), "must be numbered without gaps"),
        (json.dumps({**GOOD, "train": {"text": [None], "target": ["a"]}}), "column 'text', row 0: expected text"),
        (json.dumps({**GOOD, "train": {"text": ["a", "b"], "target": ["a", 3]}}), "column 'target', row 1: expected"),
        (json.dumps({**GOOD, "validation": PAIR}), "two splits mean 'dev'"),
    ],
)
def test_wrong_data(place, capsys, script, text, said):
    (place / "data.json").write_text(text)
    assert said in refused(script, flags_of(script, place), place, capsys)


def test_data_that_are_not_text(place, capsys):
    (place / "data.json").write_bytes(b'{"train": {"text": ["\xff"], "target": ["a"]}}')
    assert "data.json: not JSON" in refused("ft", flags_of("ft", place), place, capsys)


def test_closing_fine_tuning_without_its_split(place, capsys):
    (place / "data.json").write_text(json.dumps({"train": PAIR}))
    line = refused("kd", flags_of("kd", place, ft_steps_at_end=1), place, capsys)
    assert "--ft_steps_at_end 1 trains on the split 'ft'" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3\n", "c.yaml: unknown key 'epoch'; nearest: 'epochs'"),
        ("epochs: three\n", "c.yaml: epochs: 'three' is not an integer"),
        ("epochs: 3\nepochs: 4\n", "key 'epochs' is given twice"),
        ("do_train: yes\n", "c.yaml: do_train: 'yes' is neither True nor False"),
        ("epochs: !!python/object/apply:os.system ['touch executed']\n", "c.yaml:"),
    ],
)
def test_wrong_config_file(place, capsys, monkeypatch, text, said):
    monkeypatch.chdir(place)
    (place / "c.yaml").write_text(text)
    assert said in refused("ft", flags_of("ft", place, config="@/c.yaml", epochs=None), place, capsys)


LAYERS = "l: {student_dec_ca_layer: -1}\ns: {keep_last: True}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine: {name: m, layer: l, scheduling: s, losses: [logit]}\nlogits: {logits_weight: 1}\n",
         "e.yaml: mine.losses: unknown entry 'logit'; nearest: 'logits'"),
        ("mine: {name: m, layer: l, scheduling: s, losses: [a]}\na: {logit_weight: 1}\n",
         "e.yaml: a: unknown key 'logit_weight'; nearest: 'logits_weight'"),
        ("mine: {name: m, layer: l, sheduling: s, losses: [a]}\na: {logits_weight: 1}\n", "e.yaml: mine: unknown key"),
        ("mine: {name: m, layer: x, scheduling: s, losses: [a]}\na: {logits_weight: 1}\n",
         "e.yaml: mine.layer: unknown entry 'x'; nearest: 'l'"),
        ("mine: {name: m, layer: l, scheduling: s, losses: [a]}\na: {logits_weight: 0}\n", "e.yaml: a: all weights"),
        ("mine: {name: m, layer: l, scheduling: s, losses: [a]}\na: {logits_weight: -1}\n", "e.yaml: a.logits_weight"),
        ("mine: {name: m, layer: l, scheduling: s, losses: [a]}\na: {logits_weight: 1, dropout: 1}\n",
         "e.yaml: a.dropout: '1' is neither True nor False"),
    ],
)  # fmt: skip
def test_wrong_experiment(place, capsys, text, said):
    (place / "e.yaml").write_text(text + LAYERS)
    flags = {"experiment_config_path": "@/e.yaml", "experiment_config_key": "mine"}
    assert said in refused("kd", flags_of("kd", place, **flags), place, capsys)


def forbid_weights(monkeypatch) -> None:
    """Let a test fail that reads any weights."""

    def read_weights(*_arguments: object, **_flags: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(setup, "load_model", read_weights)
    monkeypatch.setattr(generator, "load_model", read_weights)
    monkeypatch.setattr(weights, "read_state_dict", read_weights)


@pytest.mark.parametrize(
    ("layer", "loss", "said"),
    [
        ("student_dec_sa_layer: 1", "attention_relation", "student_dec_sa_layer 1: the student's decoder has 1 layers"),
        ("teacher_enc_sa_layer: -2", "attention_relation", "teacher_enc_sa_layer -2: the teacher's encoder has 1"),
        ("teacher_dec_ca_layer: 3", "attention_relation", "teacher_dec_ca_layer 3"),
        ("student_enc_hidden_layer: 2", "hidden", "student_enc_hidden_layer 2: the student's encoder has 1 layers"),
        ("teacher_dec_hidden_layer: -3", "hidden", "teacher_dec_hidden_layer -3"),
    ],
)
def test_a_layer_that_a_model_has_not(place, capsys, monkeypatch, layer, loss, said):
    forbid_weights(monkeypatch)
    text = "mine: {name: m, layer: l, scheduling: s, losses: [a]}\ns: {keep_last: True}\n"
    (place / "e.yaml").write_text(f"{text}l: {{{layer}}}\na: {{{loss}_weight: 1}}\n")
    flags = {"experiment_config_path": "@/e.yaml", "experiment_config_key": "mine"}
    assert said in refused("kd", flags_of("kd", place, **flags), place, capsys)


def test_heads_that_cannot_be_regrouped(place, capsys, monkeypatch):
    """The student's queries have 16 dimensions, the teacher has 3 heads."""
    forbid_weights(monkeypatch)
    config = read(place / "t5_teacher" / "config.json")
    (place / "t5_teacher" / "config.json").write_text(json.dumps(config | {"num_heads": 3}))
    line = refused("kd", flags_of("kd", place, experiment_config_key="attention_kd"), place, capsys)
    assert "queries of dec_sa have 16 dimensions, which cannot be regrouped to the teacher's 3 heads" in line


# ------------------------------------------------------------------------------------------------------------- weights


def corrupt(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"\xff" * 64 + data[64:])


@pytest.mark.parametrize("script", ["ft", "gen", "kd"])
def test_corrupt_weights(place, capsys, script):
    corrupt(place / "t5_student" / "model.safetensors")
    assert "t5_student: weights cannot be read" in refused(script, flags_of(script, place), place, capsys)


def test_corrupt_weights_of_the_teacher(place, capsys):
    corrupt(place / "t5_teacher" / "model.safetensors")
    assert "t5_teacher: weights cannot be read" in refused("kd", flags_of("kd", place), place, capsys)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_a_checkpoint_that_is_none(place, capsys, content):
    (place / "w.pt").write_bytes(content)
    assert "w.pt" in refused("ft", flags_of("ft", place, checkpoint_path="@/w.pt"), place, capsys)


def test_nothing_in_a_checkpoint_is_executed(place, capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (place / "executed",))

    torch.save({"weight": Evil()}, place / "w.pt")
    assert "w.pt" in refused("ft", flags_of("ft", place, checkpoint_path="@/w.pt"), place, capsys)


@pytest.mark.parametrize("damaged", ["optimizer.pt", "run_state.json", "model.safetensors"])
def test_a_damaged_state_of_another_run(place, capsys, damaged):
    ft_main.main(flags_of("ft", place, output_dir="@/former", epochs=1, keep_checkpoint_after_test=True))
    (folder,) = (path for path in (place / "former").glob("epoch*") if not path.name.endswith("__last"))
    corrupt(folder / damaged)
    line = refused("ft", flags_of("ft", place, checkpoint_path=str(folder)), place, capsys)
    assert damaged in line


# ------------------------------------------------------------------------------------------------- before any weights


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("ft", {"metric_for_best_model": "rouge"}),
        ("ft", {"checkpoint_path": "@/none.pt"}),
        ("ft", {"do_train": False, "dataset_path": "@/no_test.json"}),
        ("ft", {"task_prompt": "modern: " * 30}),
        ("gen", {"task_prompt": "modern: " * 30}),
        ("gen", {"split_for_generation": "trian"}),
        ("simulate", {"checkpoint_path": "@/none.pt"}),
        ("kd", {"experiment_config_key": "logit_kd"}),
        ("kd", {"teacher_name": "@/gpt2_teacher"}),
        ("kd", {"teacher_state_dict_path": "@/none.pt"}),
        ("kd", {"ft_steps_at_end": 1, "dataset_path": "@/no_test.json"}),
    ],
)
def test_refused_before_weights_are_read(place, capsys, monkeypatch, script, flags):
    (place / "no_test.json").write_text(json.dumps({"train": PAIR}))
    forbid_weights(monkeypatch)
    refused(script, flags_of(script, place, **flags), place, capsys)


# ----------------------------------------------------------------------------------------------- nothing is overwritten


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 2}, "--epochs was 1, is 2"),
        ({"dataset_path": "@/none.json"}, "none.json"),
        ({"resume": False}, "holds this run already"),
        ({"overwrite": True, "model_name": "@/out/model"}, "would remove --model_name"),
        ({"overwrite": True, "metric_for_best_model": "rouge"}, "is no score"),
        ({"overwrite": True, "model_name": "@/none"}, "no such model folder"),
    ],
)
def test_a_refused_command_on_the_folder_of_a_run(place, capsys, change, said):
    ft_main.main(flags_of("ft", place, epochs=1))
    assert said in refused("ft", flags_of("ft", place, **{"epochs": 1, **change}), place, capsys)


def test_a_model_in_the_output_folder_is_not_taken_for_a_run(place, capsys):
    shutil.copytree(place / "t5_student", place / "out" / "model")
    line = refused("ft", flags_of("ft", place), place, capsys)
    assert "holds 'model', but no run.json" in line


def test_a_run_of_another_script_in_the_folder(place, capsys):
    gen_main.main(flags_of("gen", place))
    assert "holds a run of gen_main.py" in refused("ft", flags_of("ft", place), place, capsys)


def test_prepare_does_not_replace_what_it_reads(place, capsys):
    flags = {"dataset_name": "", "output_dir": "@", "file_name": "data.json"}
    command = argv({"dataset_path": place / "data.json", **flags})
    line = refused("prepare", [word.replace("@", str(place)) for word in command], place, capsys)
    assert "is read to make this file" in line


@pytest.mark.parametrize("changed", ["text", "target"])
def test_data_that_change_under_a_run(place, capsys, changed):
    ft_main.main(flags_of("ft", place, epochs=1))
    data = read(place / "data.json")
    data["train"][changed][0] += "!"
    (place / "data.json").write_text(json.dumps(data))
    line = refused("ft", flags_of("ft", place, epochs=1), place, capsys)
    assert "what --dataset_path stands for has changed" in line


def test_every_script_has_a_case():
    """A new script at the top of the repository needs its wrong commands here."""
    scripts = {path.stem for path in Path(ft_main.__file__).parent.glob("*_main.py")}
    named: dict[str, Callable] = {main.__module__: main for main in MAINS.values()}
    assert scripts == named.keys()
