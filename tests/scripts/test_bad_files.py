"""Hundreds of broken and hostile inputs: every script gives a one-line error with the place, and writes nothing.

A row of a table is (what is wrong, the input, the error message); `.*` in a message stands for any text. In flags, @
stands for the folder of the test, which holds `data.json`, a `student` and a `teacher` (T5), and `gpt2`.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import re
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from string import whitespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_runs import ONLY_TRAINING, TINY, argv, read, says, snapshot

from src import create_student
from src.api.logprobs import read_tokens
from src.api.responses import ApiFile
from src.config.cli import run_script
from src.config.errors import UserError
from src.config.experiments.load import load_experiments
from src.config.scripts import scripts_with
from src.data import columnar_files, schema
from src.data.formats import read_datasets
from src.decoding import generator
from src.models import weights
from src.training import setup

MAINS = {  # of the scripts that read a dataset
    script.removesuffix("_main.py"): import_module(script.removesuffix(".py")).main
    for script in scripts_with("dataset_path")
}
STORED, PREPARE, STUDENT, SIMULATE = "kd_dataset_with_logits", "prepare_datasets", "create_student", "simulate_api"
TRAINING, WRITING, MAKING = ("ft", "kd", STORED), ("gen", SIMULATE), (PREPARE, STUDENT)
PAIR = {"text": ["A cat.", "A dog."], "target": ["A dog.", "A cat."]}
GOOD = {"train": PAIR, "dev": PAIR, "test": PAIR, "ft": PAIR, "unlabeled": {"text": ["A bird."]}}
PYTHON = re.compile(
    r"Traceback|[A-Z]\w+Error\b|NoneType|has no attribute|object at 0x|<class|not (subscriptable|iterable)"
)


def base_flags(script: str) -> dict[str, Any]:
    """A good command."""
    paths = {"dataset_path": "@/data.json", "output_dir": "@/out"}
    written = {name: value for name, value in TINY.items() if name not in ONLY_TRAINING}
    return {
        "ft": {**TINY, **paths, "model_name": "@/student"},
        "kd": {**TINY, **paths, "student_name": "@/student", "teacher_name": "@/teacher",
               "experiment_config_key": "logits_kd"},
        STORED: {**TINY, **paths, "student_name": "@/student", "experiment_config_key": "logits_kd"},
        "gen": {**written, **paths, "model_name": "@/student"},
        SIMULATE: {**written, **paths, "model_name": "@/student"},
        PREPARE: {**paths, "dataset_name": ""},
        STUDENT: {**paths, "vocab_size": 60, "d_model": 8, "n_heads": 2},
    }[script]  # fmt: skip


class Place:
    """A test's folder, and the scripts run in it."""

    def __init__(self, folder: Path, models: dict[str, dict[str, str]], capsys: pytest.CaptureFixture) -> None:
        self.folder, self._capsys = folder, capsys
        self.write("data.json", json.dumps(GOOD))
        for name, model in (("student", models["t5"]["student"]), ("teacher", models["t5"]["teacher"])):
            (folder / name).symlink_to(model)
        (folder / "gpt2").symlink_to(models["gpt2"]["student"])

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def own_model(self, name: str = "model", of: str = "student") -> Path:
        """A copy of a model's folder, to be broken."""
        return Path(shutil.copytree((self.folder / of).resolve(), self.folder / name))

    def command(self, script: str, flags: dict[str, Any]) -> list[str]:
        words = argv(base_flags(script) | flags)
        return [word.replace("@", str(self.folder)) for word in words]

    def refuse(self, script: str, **flags: Any) -> str:
        """The one line in which a command is refused, without the folder's name; nothing else may have happened."""
        before, entries = snapshot(self.folder), sorted(self.folder.rglob("*"))
        command = self.command(script, flags)
        self._capsys.readouterr()
        assert run_script(MAINS[script], command) == 2
        printed = self._capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert line.startswith(f"{script}_main.py: error: ")
        line = line.partition("error: ")[2].replace(f"{self.folder}/", "")
        assert len(line) < 1_000
        assert not PYTHON.search(line), line
        assert snapshot(self.folder) == before
        assert sorted(self.folder.rglob("*")) == entries
        return line

    def run(self, script: str, **flags: Any) -> Any:
        return MAINS[script](self.command(script, flags))


@pytest.fixture
def place(tmp_path, dropout_models, capsys) -> Place:
    return Place(tmp_path, dropout_models, capsys)


@pytest.fixture
def no_weights(monkeypatch) -> None:
    """Reading weights fails a test."""

    def read_weights(*_arguments: object, **_flags: object) -> None:
        raise AssertionError("weights were read")

    for module in (setup, generator, create_student):
        monkeypatch.setattr(module, "load_model", read_weights)
    monkeypatch.setattr(weights, "read_state_dict", read_weights)


def table(rows: list[tuple]) -> pytest.MarkDecorator:
    """A test for every row, called what the row's first cell says."""
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names), "two rows have one name"
    return pytest.mark.parametrize("row", [row[1:] for row in rows], ids=names)


# --------------------------------------------------------------------------------------------------------------- flags

HUGE = "1" + "0" * 400
LONG = f"'{'9' * 40}' … '{'9' * 20}'"  # of a word of 5,000
FLAGS = [
    ("misspelt", "ft", {"batchsize": 3}, "unknown flag '--batchsize'; nearest: '--batch_size'"),
    ("of another script", "gen", {"epochs": 3}, "unknown flag '--epochs'"),
    ("abbreviated", "ft", {"learning": 1}, "unknown flag '--learning'; nearest: '--learning_rate'"),
    ("remote code", "ft", {"trust_remote_code": True}, "unknown flag '--trust_remote_code'"),
    ("two values for one", "ft", {"seed": (1, 2)}, "unexpected '2'"),
    ("epochs zero", "ft", {"epochs": 0}, "--epochs: must be at least 1, not 0"),
    ("epochs negative", "kd", {"epochs": -3}, "--epochs: must be at least 1, not -3"),
    ("epochs in words", "ft", {"epochs": "two"}, "--epochs: 'two' is not an integer"),
    ("epochs in hexadecimal", "ft", {"epochs": "0x10"}, "--epochs: '0x10' is not an integer"),
    ("epochs empty", "ft", {"epochs": ""}, "--epochs: '' is not an integer"),
    ("epochs None", "ft", {"epochs": "None"}, "--epochs: needs a value, not None"),
    ("epochs beyond floats", "ft", {"epochs": HUGE}, "--epochs: .* is too large"),
    ("batch beyond 64 bits", "gen", {"batch_size": 2**64}, "--batch_size: .* is too large"),
    ("length beyond 64 bits", "ft", {"max_labels_length": 2**63}, "--max_labels_length: .* is too large"),
    ("rate zero", "ft", {"learning_rate": 0}, "--learning_rate: must be greater than 0"),
    ("rate negative", "ft", {"learning_rate": "-1e-3"}, "--learning_rate: expected one argument"),
    ("rate not a number", "ft", {"learning_rate": "nan"}, "--learning_rate: 'nan' is not a finite number"),
    ("rate infinite", "ft", {"learning_rate": "inf"}, "--learning_rate: 'inf' is not a finite number"),
    ("rate beyond floats", "ft", {"learning_rate": "1e999"}, "--learning_rate: '1e999' is not a finite number"),
    ("epsilon zero", "ft", {"optimizer_eps": 0}, "--optimizer_eps: must be greater than 0"),
    ("decay negative", "ft", {"weight_decay": -1}, "--weight_decay: must be at least 0"),
    ("batch that is no multiple", "ft", {"batch_size": 5, "max_gpu_batch_size": 2}, "--batch_size 5 is not a multiple"),
    ("batch zero", "gen", {"batch_size": 0}, "--batch_size: must be at least 1"),
    ("no beams", "gen", {"num_beams": 0}, "--num_beams: must be at least 1"),
    ("more targets than beams", "gen", {"num_return_sequences": 5}, "--num_return_sequences.*at most --num_beams 1"),
    ("no targets", "gen", {"num_return_sequences": 0}, "--num_return_sequences: must be at least 1"),
    ("decoding that is none", "gen", {"generation_type": "greedy"}, "--generation_type: 'greedy' is not one of"),
    ("engine that is none", "gen", {"generation_engine": "vllm"}, "--generation_engine: 'vllm' is not one of hf"),
    ("engine without that decoding", "gen", {"generation_engine": "ctranslate2",
     "generation_type": "diverse_beam_search", "num_beams": 2}, "ctranslate2: does not support diverse_beam"),
    ("split that is not there", "gen", {"split_for_generation": "trian"}, "--split_for_generation: .*nearest: 'train'"),
    ("splits empty", "gen", {"split_for_generation": ""}, "--split_for_generation: needs at least one value"),
    ("split that leaves the folder", SIMULATE, {"split_for_generation": "../train"}, "has no split '../train'"),
    ("input length zero", "ft", {"max_input_length": 0}, "--max_input_length: must be at least 1"),
    ("prompt that fills the input", "ft", {"task_prompt": "modern: " * 30}, "--max_input_length 32: --task_prompt"),
    ("prompt of 10,000 words", "gen", {"task_prompt": "a " * 9_000}, "--max_input_length 32: --task_prompt"),
    ("seed beyond 32 bits", "gen", {"seed": 2**32}, "--seed: "),
    ("choice long", "ft", {"mixed_precision": "9" * 5000}, f"--mixed_precision: {LONG} is not one of"),
    ("boolean 1", "ft", {"debug": 1}, "--debug: '1' is neither True nor False"),
    ("boolean empty", "ft", {"resume": ""}, "--resume: '' is neither True nor False"),
    ("boolean in code", "ft", {"overwrite": "not False"}, "--overwrite: 'not False' is neither True nor False"),
    ("metric that is none", "ft", {"metrics": "blue"}, "--metrics: 'blue' is not one of"),
    ("metrics as Python", "ft", {"metrics": "['wer','rouge']"}, "--metrics: .*is not one of"),
    ("metric for best that is none", "ft", {"metric_for_best_model": "rouge"},
     "--metric_for_best_model: 'rouge' is no"),
    ("metric for best empty", "ft", {"metric_for_best_model": ""}, "--metric_for_best_model: '' is no score"),
    ("metric of the test alone", "ft", {"metric_for_best_model": "bertscore_f1"}, "exists only in the final test"),
    ("rhythm zero", "ft", {"save_checkpoint_every_n_steps": 0}, "--save_checkpoint_every_n_steps: must be greater"),
    ("rhythm not whole", "ft", {"save_checkpoint_every_n_steps": 2.5},
     "--save_checkpoint_every_n_steps: 2.5 is neither"),
    ("patience zero", "kd", {"n_patience_epochs": 0}, "--n_patience_epochs: must be at least 1"),
    ("closing epochs negative", "kd", {"ft_steps_at_end": -1}, "--ft_steps_at_end: must be at least 0"),
    ("teacher's format that is none", "kd", {"teacher_dtype": "int8"}, "--teacher_dtype: 'int8' is not one of"),
    ("a teacher for stored ones", STORED, {"teacher_name": "@/teacher"}, "unknown flag '--teacher_name'"),
    ("experiment that is none", "kd", {"experiment_config_key": "logit_kd"}, "unknown experiment 'logit_kd'; nearest"),
    ("experiment empty", "kd", {"experiment_config_key": ""}, "--experiment_config_key: must not be empty"),
    ("a loss for an experiment", "kd", {"experiment_config_key": "logits"}, "unknown experiment 'logits'"),
    ("experiments' file in a folder's place", "kd", {"experiment_config_path": "@"}, "cannot be read: Is a directory"),
    ("no data flag", "ft", {"dataset_path": None}, "--dataset_path: required, but not given"),
    ("no output flag", "gen", {"output_dir": None}, "--output_dir: required, but not given"),
    ("data flag empty", "ft", {"dataset_path": ""}, "--dataset_path: must not be empty"),
    ("output flag empty", STUDENT, {"output_dir": ""}, "--output_dir: must not be empty"),
    ("output is a file", "ft", {"output_dir": "@/data.json"}, "data.json: is a file, not a folder"),
    ("output below a file", "ft", {"output_dir": "@/data.json/out"}, "data.json/out.*Not a directory"),
    ("output of gen is a file", "gen", {"output_dir": "@/data.json"}, "data.json: is a file, not a folder"),
    ("student's output is a file", STUDENT, {"output_dir": "@/data.json"}, "data.json: is a file, not a folder"),
    ("student's output below a file", STUDENT, {"output_dir": "@/data.json/out"}, "data.json/out.*Not a directory"),
    ("prepared file below a file", PREPARE, {"output_dir": "@/data.json"}, "data.json/dataset.json: cannot be written"),
    ("output with a name of 300 letters", "ft", {"output_dir": "@/" + "o" * 300},
     "run.json: File name too long"),
    ("data with a name of 300 letters", "ft", {"dataset_path": "@/" + "d" * 300}, "ddd: File name too long"),
    ("prepared file of 300 letters", PREPARE, {"file_name": "f" * 300}, "fff.*: File name too long"),
    ("model of 300 letters", "ft", {"model_name": "@/" + "m" * 300}, "mmm: File name too long"),
    ("output with NUL", "ft", {"output_dir": "@/a\0b"}, "--output_dir: .*NUL"),
    ("data with NUL", "gen", {"dataset_path": "@/a\0b"}, "--dataset_path: .*NUL"),
    ("prompt with NUL", "ft", {"task_prompt": "a\0b"}, "--task_prompt: .*NUL"),
    ("prompt with half a character", "ft", {"task_prompt": "a\ud800"}, "--task_prompt: .*is not text in UTF-8"),
    ("output of half a character", "ft", {"output_dir": "@/\udcff"}, "--output_dir: .*is not text in UTF-8"),
    ("prepared file leaves the folder", PREPARE, {"file_name": "../x.json"}, "--file_name ../x.json: .*--output_dir"),
    ("prepared file from the root", PREPARE, {"file_name": "/x.json"}, "--file_name /x.json: .*--output_dir"),
    ("prepared file without a name", PREPARE, {"file_name": ""}, "--file_name : must be the name of a file"),
    ("prepared file is the folder", PREPARE, {"file_name": "."}, "--file_name .: "),
    ("prepared file is the input", PREPARE, {"output_dir": "@", "file_name": "data.json"},
     "data.json: is read to make"),
    ("prepared file is a folder", PREPARE, {"output_dir": "@", "file_name": "student"}, "student: cannot be written"),
    ("corpus that is none", PREPARE, {"dataset_name": "cnn"}, "--dataset_name: 'cnn' is not one of"),
    ("no corpus and no data", PREPARE, {"dataset_path": None}, '--dataset_name "" needs a --dataset_path'),
    ("raw files of the demo", PREPARE, {"dataset_name": "demo"}, "--dataset_path .*'demo' has no raw files"),
    ("unlabeled rows without the split", PREPARE, {"unlabeled_size": 3}, "--unlabeled_size 3 needs --unlabeled_split"),
    ("train size zero", PREPARE, {"train_size": 0}, "--train_size: must be at least 1"),
    ("ft split that is none", PREPARE, {"add_ft_split": "half"}, "--add_ft_split: 'half' is not one of"),
    ("half of a mode", PREPARE, {"dataset_path": None, "original_dataset_path": "@/data.json"}, "no mode takes"),
    ("two modes", PREPARE, {"logits_dataset_path": "@/data.json"}, "--dataset_path with --logits_dataset_path: no"),
    ("no word begins with nothing", PREPARE, {"teacher_new_word_char": ""}, "--teacher_new_word_char: must not be"),
    ("alignment that is none", PREPARE, {"alignment": "fuzzy"}, "--alignment: 'fuzzy' is not one of edit, exact"),
    ("targets negative", PREPARE, {"n_augmentations_per_example": -1}, "--n_augmentations_per_example: must be at"),
    ("words zero", PREPARE, {"max_input_length": 0}, "--max_input_length: must be at least 1"),
    ("no row is short enough", PREPARE, {"filter_by_length": True, "max_input_length": 1},
     "no row has at most 1 words"),
    ("family that is none", STUDENT, {"family": "bert"}, "--family: 'bert' is not one of t5"),
    ("width that heads do not divide", STUDENT, {"d_model": 9}, "--d_model 9 is not a multiple of --n_heads 2"),
    ("width zero", STUDENT, {"d_model": 0}, "--d_model: must be at least 1"),
    ("dropout above 1", STUDENT, {"dropout": 1.5}, "--dropout: must be at most 1"),
    ("vocabulary too small to be one", STUDENT, {"vocab_size": 9}, "--vocab_size: must be at least 10"),
    ("vocabulary smaller than the letters", STUDENT, {"vocab_size": 10}, "--vocab_size 10: the characters"),
    ("neither tokenizer nor data", STUDENT, {"dataset_path": None}, "needs either --tokenizer or --dataset_path"),
    ("layers of nothing", STUDENT, {"keep_encoder_layers": 0}, "--keep_encoder_layers: needs --from_model"),
    ("layers twice", STUDENT, {"from_model": "@/student", "keep_decoder_layers": 0, "n_decoder_layers": 1},
     "--keep_decoder_layers and --n_decoder_layers: give one of them"),
    ("data of a copied model", STUDENT, {"from_model": "@/student"}, "is for a new model; leave it out with"),
    ("more layers than there are", STUDENT, {"from_model": "@/student", "dataset_path": None, "vocab_size": None,
     "d_model": None, "n_heads": None, "n_decoder_layers": 4}, "--n_decoder_layers 4: .*has 1 decoder layers"),
    ("an encoder that is none", STUDENT, {"family": "gpt2", "n_encoder_layers": 1}, "a gpt2 model has no encoder"),
    ("layer letters", "ft", {"model_name": "@/student_prune0_x"}, "student_prune0_x"),
    ("layer too far", "ft", {"model_name": "@/student_prune7"}, "student_prune7.*decoder layer 7: the model has 1"),
    ("layer twice", "ft", {"model_name": "@/student_prune0_0"}, "decoder layer"),
    ("no layers about a colon", "ft", {"model_name": "@/student_prune:"}, "':' is not a list of layers"),
    ("form that is none", SIMULATE, {"form": "xml"}, "--form: 'xml' is not one of published, chat, jsonl"),
    ("greedy several times", SIMULATE, {"generation_type": "greedy", "n_completions": 2}, "--n_completions 2: greedy"),
    ("no log-probabilities", SIMULATE, {"top_logprobs": 0}, "--top_logprobs: must be at least 1"),
]  # fmt: skip


@table(FLAGS)
def test_flags(place, no_weights, row):
    script, flags, said = row
    assert says(place.refuse(script, **flags), said)


# ----------------------------------------------------------------------------------------------------- config FILE.yaml

CONFIGS = [
    ("empty", "", "c.yaml: must consist of `key: value` lines"),
    ("only a comment", "# epochs: 3\n", "c.yaml: must consist of"),
    ("a word", "epochs", "c.yaml: must consist of"),
    ("a list", "- epochs: 3\n", "c.yaml: must consist of"),
    ("key in dashes", "--epochs: 3\n", "c.yaml: unknown key '--epochs'; nearest: 'epochs'"),
    ("remote code", "trust_remote_code: true\n", "c.yaml: unknown key 'trust_remote_code'"),
    ("integer in words", "epochs: three\n", "c.yaml: epochs: 'three' is not an integer"),
    ("integer as a list", "epochs: [3]\n", "c.yaml: epochs: needs one value, not a list"),
    ("integer as a mapping", "epochs: {n: 3}\n", "c.yaml: epochs: needs one value, not a mapping"),
    ("integer missing", "epochs:\n", "c.yaml: epochs: needs a value, not None"),
    ("integer null", "epochs: ~\n", "c.yaml: epochs: needs a value, not None"),
    ("integer too large", f"epochs: {HUGE}\n", "c.yaml: epochs: .* is too large"),
    ("out of bounds", "epochs: 0\n", "c.yaml: epochs: must be at least 1, not 0"),
    ("not finite", "learning_rate: .inf\n", "c.yaml: learning_rate: '.inf' is not a number"),
    ("boolean yes", "do_train: yes\n", "c.yaml: do_train: 'yes' is neither True nor False"),
    ("boolean on", "do_train: on\n", "c.yaml: do_train: 'on' is neither"),
    ("list of lists", "metrics: [[wer]]\n", "c.yaml: metrics: needs a list of single values"),
    ("list empty", "metrics: []\n", "c.yaml: metrics: needs at least one value"),
    ("choice that is none", "mixed_precision: half\n", "c.yaml: mixed_precision: 'half' is not one of"),
    ("key twice", "epochs: 3\nepochs: 4\n", "c.yaml: line 2: key 'epochs' is given twice"),
    ("a list for a key", "? [epochs]\n: 3\n", "c.yaml: line 1: a key must be a text"),
    ("null for a key", "~: 3\n", "c.yaml: line 1: a key must be a text"),
    ("no blank behind the colon", "epochs:3\n", "c.yaml: must consist of"),
    ("tag that calls", "task_prompt: !!python/object/apply:os.system ['touch executed']\n", "c.yaml: line 1: tag"),
    ("nested 5,000 deep", "metrics: " + "[" * 5_000 + "]" * 5_000, "c.yaml: .*nested too deeply"),
    ("list in itself", "metrics: &a [*a]\n", "c.yaml: metrics: needs a list of single values"),
    ("a billion laughs", "a: &a [x,x]\nb: &b [*a,*a]\nepochs: [*b,*b]\n", "c.yaml: unknown key 'a'"),
    ("NUL", "task_prompt: a\0b\n", "c.yaml: .*special characters are not allowed"),
    ("NUL escaped", 'output_dir: "@/a\\0b"\n', "c.yaml: output_dir: .*NUL"),
    ("half a character escaped", 'task_prompt: "\\ud800"\n', "c.yaml: task_prompt: .*is not text in UTF-8"),
    ("not UTF-8", b"task_prompt: \xff\n", "c.yaml: is not UTF-8 text"),
    ("UTF-16", "epochs: 3\n".encode("utf-16"), "c.yaml: is not UTF-8 text"),
    ("JSON's end missing", '{"epochs": 3', "c.yaml: line 1: "),
    ("a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "c.yaml: is not UTF-8 text"),
]  # fmt: skip


@table(CONFIGS)
def test_config_file(place, no_weights, monkeypatch, row):
    content, said = row
    monkeypatch.chdir(place.folder)  # where a tag would leave its mark
    place.write("c.yaml", content)
    flags = {name: None for name in ("epochs", "learning_rate", "metrics") if name in TINY}
    assert says(place.refuse("ft", config="@/c.yaml", **flags), said)


@pytest.mark.parametrize("script", MAINS)
def test_no_config_file(place, no_weights, script):
    assert "none.yaml: cannot be read: No such file" in place.refuse(script, config="@/none.yaml")
    assert "student: cannot be read: Is a directory" in place.refuse(script, config="@/student")


# ---------------------------------------------------------------------------------------------------- experiments' YAML

REST = "l: {student_dec_ca_layer: -1}\ns: {keep_last: True}\nc: {change_every_n_epochs: 1}\n"
MINE = "mine: {name: m, layer: l, scheduling: s, losses: [a]}\n"
EXPERIMENTS = [
    ("empty", "", "e.yaml: unknown experiment 'mine'; the file has none"),
    ("a list for an entry", "mine: [a]\n", "e.yaml: mine: must hold the keys of"),
    ("a word for an entry", "mine: logits\n", "e.yaml: mine: must hold the keys of"),
    ("nothing for an entry", "mine:\n", "e.yaml: mine: must hold the keys of"),
    ("no losses", "mine: {name: m, layer: l, scheduling: s}\n", "e.yaml: mine: losses missing"),
    ("no layer", "mine: {name: m, scheduling: s, losses: [a]}\na: {logits_weight: 1}\n", "e.yaml: mine: layer missing"),
    ("no name", "mine: {layer: l, scheduling: s, losses: [a]}\na: {logits_weight: 1}\n", "e.yaml: mine: name missing"),
    ("losses empty", "mine: {name: m, layer: l, scheduling: s, losses: []}\n", "e.yaml: mine.losses: must be a list"),
    ("losses a word", "mine: {name: m, layer: l, scheduling: s, losses: a}\na: {logits_weight: 1}\n",
     "e.yaml: mine.losses: must be a list of loss entries"),
    ("losses null", "mine: {name: m, layer: l, scheduling: s, losses: ~}\n", "e.yaml: mine.losses: must be a list"),
    ("a list among losses", "mine: {name: m, layer: l, scheduling: s, losses: [[a]]}\na: {logits_weight: 1}\n",
     "e.yaml: mine.losses: needs one value, not a list"),
    ("a null among losses", "mine: {name: m, layer: l, scheduling: s, losses: [~]}\na: {logits_weight: 1}\n",
     "e.yaml: mine.losses: needs a value, not None"),
    ("a schedule for a loss", "mine: {name: m, layer: l, scheduling: s, losses: [s]}\n",
     "e.yaml: mine.losses: 's' (schedule) is not a loss"),
    ("itself for a loss", "mine: {name: m, layer: l, scheduling: s, losses: [mine]}\n",
     "e.yaml: mine.losses: 'mine' (experiment) is not a loss"),
    ("name a list", "mine: {name: [m], layer: l, scheduling: s, losses: [a]}\na: {logits_weight: 1}\n",
     "e.yaml: mine.name: needs one value, not a list"),
    ("misspelt key of an experiment", "mine: {name: m, layer: l, sheduling: s, losses: [a]}\na: {logits_weight: 1}\n",
     "e.yaml: mine: unknown key 'sheduling'"),
    ("second loss never reached", "mine: {name: m, layer: l, scheduling: s, losses: [a, b]}\na: {logits_weight: 1}\n"
     "b: {forward_weight: 1}\n", "e.yaml: mine.scheduling: 's' never changes the loss"),
    ("keys of two kinds", MINE + "a: {logits_weight: 1, keep_last: True}\n", "e.yaml: a: unknown key 'keep_last'"),
    ("weights all 0", MINE + "a: {logits_weight: 0}\n", "e.yaml: a: all weights are 0"),
    ("no weight", MINE + "a: {temperature: 2}\n", "e.yaml: a: all weights are 0"),
    ("weight infinite", MINE + "a: {logits_weight: inf}\n", "e.yaml: a.logits_weight: 'inf' is not a finite number"),
    ("weight null", MINE + "a: {logits_weight: }\n", "e.yaml: a.logits_weight: needs a value, not None"),
    ("weight a list", MINE + "a: {logits_weight: [1]}\n", "e.yaml: a.logits_weight: needs one value, not a list"),
    ("temperature 0", MINE + "a: {logits_weight: 1, temperature: 0}\n", "e.yaml: a.temperature: must not be 0"),
    ("nucleus above 1", MINE + "a: {logits_weight: 1, temperature: -2}\n",
     "e.yaml: a.temperature: must be at least -1"),
    ("share above 1", MINE + "a: {logits_weight: 1, generate_labels_weight: 2}\n",
     "a.generate_labels_weight: must be at"),
    ("share negative", MINE + "a: {logits_weight: 1, generate_labels_weight: -0.1}\n",
     "a.generate_labels_weight: must"),
    ("dropout a number", MINE + "a: {logits_weight: 1, dropout: 0.1}\n",
     "e.yaml: a.dropout: '0.1' is neither True nor"),
    ("missing mass unknown", MINE + "a: {logits_weight: 1, missing_mass: keep}\n",
     "e.yaml: a.missing_mass: 'keep' is not"),
    ("missing mass of a live teacher", MINE + "a: {logits_weight: 1, missing_mass: zero}\n",
     "'a' sets missing_mass, which applies only to stored"),
    ("missing mass at a temperature", MINE + "a: {logits_weight: 1, missing_mass: zero, temperature: 2}\n",
     "e.yaml: a.missing_mass: 'zero' needs temperature 1"),
    ("layer in words", MINE + "a: {logits_weight: 1}\nk: {student_enc_sa_layer: last}\n",
     "e.yaml: k.student_enc_sa_layer: 'last' is not an integer"),
    ("layer not whole", MINE + "a: {logits_weight: 1}\nk: {student_enc_sa_layer: 0.5}\n",
     "e.yaml: k.student_enc_sa_layer: '0.5' is not an integer"),
    ("layer that the student has not", "mine: {name: m, layer: k, scheduling: s, losses: [a]}\na: {hidden_weight: 1}\n"
     "k: {student_dec_hidden_layer: 5}\n", "student_dec_hidden_layer 5: the student's decoder has 1 layers"),
    ("two rhythms", MINE + "a: {logits_weight: 1}\nk: {change_every_n_epochs: 1, change_no_improvements_for: 1}\n",
     "e.yaml: k: change_every_n_epochs and change_no_improvements_for contradict each other"),
    ("rhythm 0", MINE + "a: {logits_weight: 1}\nk: {change_every_n_epochs: 0}\n",
     "e.yaml: k.change_every_n_epochs: must"),
    ("rhythm of a misspelt number", MINE + "a: {logits_weight: 1}\nk: {change_every_n_epochs: patience}\n",
     "e.yaml: k.change_every_n_epochs: 'patience' is not an integer"),
    ("random without a rhythm", MINE + "a: {logits_weight: 1}\nk: {random_sample: True}\n",
     "e.yaml: k.random_sample: needs"),
    ("an entry twice", MINE + "a: {logits_weight: 1}\na: {logits_weight: 2}\n",
     "e.yaml: line 3: key 'a' is given twice"),
    ("a tag that calls", MINE + "a: {logits_weight: !!python/object/apply:os.system ['touch executed']}\n",
     "e.yaml: line 2: tag"),
]  # fmt: skip


@table(EXPERIMENTS)
def test_experiments(place, no_weights, monkeypatch, row):
    content, said = row
    monkeypatch.chdir(place.folder)
    place.write("e.yaml", content + REST)
    flags = {"experiment_config_path": "@/e.yaml", "experiment_config_key": "mine"}
    assert says(place.refuse("kd", **flags), said)


# --------------------------------------------------------------------------------------------------------- dataset JSON


def data(**splits: Any) -> str:
    """A good dataset with some splits otherwise."""
    return json.dumps({**GOOD, **splits})


NO_JSON = [
    ("empty", b"", "data.json: not JSON"),
    ("cut in a text", data().encode()[:100], "data.json: not JSON: line 1"),
    ("NaN", b'{"train": NaN}', "data.json: not JSON"),
    ("Infinity", b'{"train": Infinity}', "data.json: not JSON"),
    ("NUL in a text", b'{"train": {"text": ["a\0b"]}}', "data.json: not JSON"),
    ("not UTF-8", b'{"train": {"text": ["\xff"]}}', "data.json: not JSON"),
    ("half a character in UTF-8", b'{"train": {"text": ["\xed\xa0\x80"]}}', "data.json: not JSON"),
    ("half a character escaped", b'{"train": {"text": ["\\ud800"], "target": ["a"]}}', "data.json: not JSON"),
    ("the second half escaped", b'{"train": {"text": ["\\udc00x"], "target": ["a"]}}', "data.json: not JSON"),
    ("UTF-16", data().encode("utf-16"), "data.json: not JSON"),
    ("a list", b"[]", "data.json: expected {split"),
    ("a text", b'"train"', "data.json: expected {split.*found text"),
    ("null", b"null", "data.json: expected {split.*found null"),
    ("a split of null", data(train=None).encode(),
     "data.json: split 'train': expected an object of columns, found null"),
    ("a split of rows", data(train=[PAIR]).encode(), "split 'train': expected an object of columns, found a list"),
    ("a split of nothing", data(dev={}).encode(), "split 'dev': expected an object of columns, found an empty object"),
    ("a text for a column", data(train={"text": "a"}).encode(), "split 'train', column 'text': expected a list"),
    ("an object for a column", data(train={"text": {"0": "a"}}).encode(), "'train', column 'text': expected a list"),
    ("unequal columns", data(test={"text": ["a"], "target": []}).encode(), "'test': columns must be equally long"),
    ("dev twice", data(validation=PAIR).encode(), "data.json: two splits mean 'dev'"),
]  # fmt: skip


@table(NO_JSON)
def test_dataset_that_nobody_can_read(place, no_weights, monkeypatch, row):
    content, said = row
    monkeypatch.chdir(place.folder)
    place.write("data.json", content)
    for script in MAINS:
        assert says(place.refuse(script), said)


def column(values: list, name: str = "text") -> str:
    return data(train={**{"text": ["a"] * len(values), "target": ["a"] * len(values)}, name: values})


BAD_DATA = [
    ("no training split", json.dumps({"dev": PAIR, "test": PAIR}), "data.json: no training split"),
    ("training split misnamed", json.dumps({"Train": PAIR}), "data.json: no training split"),
    ("training split with a newline", json.dumps({"train\n": PAIR}), "data.json: no training split"),
    ("no target in dev", data(dev={"text": ["a"]}), "data.json: split 'dev': column 'target' is missing"),
    ("no target in another split", data(extra={"text": ["a"]}), "data.json: split 'extra': column 'target' is missing"),
    ("column in capitals", data(train={"Text": ["a"], "target": ["a"]}), "'train': column 'text' is missing"),
    ("no rows", data(train={"text": [], "target": []}), "data.json: split 'train': no rows"),
    ("no rows in dev", data(dev={"text": [], "target": []}), "data.json: split 'dev': no rows"),
    ("no rows in unlabeled", data(unlabeled={"text": []}), "data.json: split 'unlabeled': no rows"),
    ("text null", column(["a", None]), "split 'train', column 'text', row 1: expected text, found null"),
    ("text a fraction", column([0.5]), "column 'text', row 0: expected text, found a number"),
    ("target null", column([None], "target"), "split 'train', column 'target', row 0: expected text, found null"),
    ("target a list of answers", column([["a", 3]], "target"), "column 'target', row 0: .* found a number in a list"),
    ("target an empty list", column([[]], "target"), "column 'target', row 0: .* found an empty list"),
    ("rotation from 1", data(train_1=PAIR), "split 'train_1' where 'train_0' should be"),
    ("rotation twice", data(train_0=PAIR, train_00=PAIR), "must be numbered without gaps"),
    ("rotation in other digits", data(**{"train_\u0661": PAIR}), "data.json: split.*must be numbered without gaps"),
]  # fmt: skip


@table(BAD_DATA)
def test_dataset_to_train_on(place, no_weights, row):
    content, said = row
    place.write("data.json", content)
    for script in (*TRAINING, *MAKING):
        assert says(place.refuse(script), said)


# ----------------------------------------------------------------------------------- JSON Lines, CSV, Parquet and Arrow

LINES = [
    ("empty", b"", "rows.jsonl: split 'train': expected an object of columns"),
    ("blank lines", b"\n\n \n", "rows.jsonl: split 'train': expected an object of columns"),
    ("no JSON", b"text,target\na,b\n", "rows.jsonl: line 1: not JSON"),
    ("second line cut", b'{"text": "a", "target": "b"}\n{"text": "c"', "rows.jsonl: line 2: not JSON"),
    ("a comma behind a line", b'{"text": "a", "target": "b"},\n', "rows.jsonl: line 1: not JSON"),
    ("a list of rows", b'[{"text": "a", "target": "b"}]\n', "rows.jsonl: line 1: expected an object.*found a list"),
    ("a text", b'"a"\n', "rows.jsonl: line 1: expected an object with named columns, found text"),
    ("null", b"null\n", "rows.jsonl: line 1: expected an object with named columns, found null"),
    ("an object of splits", data().encode(), "rows.jsonl: split 'train': column 'text' is missing"),
    ("a row without target", b'{"text": "a", "target": "b"}\n{"text": "c"}\n',
     "rows.jsonl: split 'train', column 'target', row 1: expected text, found null"),
    ("rows without columns", b"{}\n{}\n", "rows.jsonl: split 'train': expected an object of columns"),
    ("no target at all", b'{"text": "a"}\n', "rows.jsonl: split 'train': column 'target' is missing"),
    ("a number for a text", b'{"text": "a", "target": "b"}\n{"text": 3, "target": "b"}\n',
     "column 'text', row 1: expected"),
    ("not UTF-8", b'{"text": "\xe9", "target": "b"}\n', "rows.jsonl: line 1: not JSON"),
    ("half a character", b'{"text": "\\ud83d", "target": "b"}\n', "rows.jsonl: line 1: not JSON"),
    ("NaN", b'{"text": "a", "target": NaN}\n', "rows.jsonl: line 1: not JSON"),
    ("an object over lines", b'{"text": "a",\n"target": "b"}\n', "rows.jsonl: line 1: not JSON"),
    ("UTF-16", '{"text": "a", "target": "b"}\n'.encode("utf-16"), "rows.jsonl: line 1: not JSON"),
    ("nested 100,000 deep", b"[" * 100_000, "rows.jsonl: line 1: not JSON"),
    ("NULs that a crash left", b'{"text": "a", "target": "b"}\n' + bytes(100), "rows.jsonl: line 2: not JSON"),
]  # fmt: skip
CSVS = [
    ("empty", b"", "rows.csv: split 'train': expected an object of columns"),
    ("only a header", b"text,target\n", "rows.csv: split 'train'"),
    ("no header", b"a cat,a dog\na dog,a cat\n", "rows.csv: split 'train': column 'text' is missing"),
    ("semicolons", b"text;target\na;b\n", "rows.csv: split 'train': column 'text' is missing; it has ['text;target']"),
    ("a value too many", b"text,target\na,b,c\n", "rows.csv: line 2: columns"),
    ("a value too few", b"text,target\na\n",
     "rows.csv: split 'train', column 'target', row 0: expected text, found null"),
    ("a column twice", b"text,target,text\na,b,c\n", "rows.csv: .*'text' is there twice"),
    ("quote open", b'text,target\n"a,b\n', "rows.csv: not a CSV file in UTF-8"),
    ("text behind a quote", b'text,target\n"a"x,b\n', "rows.csv: not a CSV file in UTF-8"),
    ("not UTF-8", b"text,target\ncaf\xe9,b\n", "rows.csv: not a CSV file in UTF-8"),
    ("UTF-16", "text,target\na,b\n".encode("utf-16"), "rows.csv: not a CSV file in UTF-8"),
    ("lone carriage returns", b"text,target\ra\x0bb,c,d\r", "rows.csv: line 2"),
    ("a spreadsheet", b"PK\x03\x04\x14\x00\x06\x00\xff\xfe" + bytes(50), "rows.csv: not a CSV file in UTF-8"),
]  # fmt: skip


def parquet(columns: dict[str, Any] | pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), sink, **options)
    return sink.getvalue()


def arrow(columns: dict[str, Any] | pa.Table, compression: str | None = None, new: Callable = pa.ipc.new_file) -> bytes:
    """An Arrow file, or with `new_stream` a stream."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = io.BytesIO()
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()


arrow_stream = partial(arrow, new=pa.ipc.new_stream)


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def test_indices_beyond_a_dictionary_are_no_arrow_data(tmp_path):
    """As bytes lost from a Parquet file can make them."""
    words = pa.DictionaryArray.from_arrays(pa.array([0, 9], pa.int32()), pa.array(["a"]), safe=False)
    (tmp_path / "train.arrow").write_bytes(arrow({"text": words}))
    with pytest.raises(UserError, match="train.arrow: not an Arrow file"):
        read_datasets(tmp_path)


PARQUET = parquet(PAIR)
PARQUETS = [
    ("empty", b"", "rows.parquet: not a Parquet file"),
    ("text", b"text,target\na,b\n", "rows.parquet: not a Parquet file"),
    ("only magic", b"PAR1", "rows.parquet: not a Parquet file"),
    ("magic twice", b"PAR1PAR1", "rows.parquet: not a Parquet file"),
    ("wrong magic", PARQUET[:-4] + b"PAR2", "rows.parquet: not a Parquet file"),
    ("no footer", PARQUET[:-30], "rows.parquet: not a Parquet file"),
    ("first half", PARQUET[: len(PARQUET) // 2], "rows.parquet: not a Parquet file"),
    ("footer beyond the file", PARQUET[:-8] + struct.pack("<I", 10**9) + b"PAR1", "rows.parquet: not a Parquet file"),
    ("footer of no length", PARQUET[:-8] + struct.pack("<I", 0) + b"PAR1", "rows.parquet: not a Parquet file"),
    ("pages overwritten", PARQUET[:4] + b"\xff" * 60 + PARQUET[64:], "rows.parquet: not a Parquet file"),
    ("encrypted footer", PARQUET[:-4] + b"PARE", "rows.parquet: not a Parquet file"),
    ("no rows", parquet({"text": pa.array([], pa.string()), "target": pa.array([], pa.string())}),
     "split 'train': no rows"),
    ("no columns", parquet({}), "rows.parquet: split 'train': expected an object of columns"),
    ("no text", parquet({"target": ["a"]}), "rows.parquet: split 'train': column 'text' is missing"),
    ("nulls", parquet({"text": ["a", None], "target": ["a", "b"]}), "column 'text', row 1: expected text, found null"),
    ("numbers", parquet({"text": [1, 2], "target": ["a", "b"]}), "column 'text', row 0: expected text, found a number"),
    ("lists", parquet({"text": [["a"]], "target": ["b"]}), "column 'text', row 0: expected text, found a list"),
    ("structs", parquet({"text": [{"a": "b"}], "target": ["b"]}),
     "column 'text', row 0: expected text, found an object"),
    ("bytes", parquet({"text": [b"a"], "target": ["b"]}), "column 'text', row 0: expected text, found bytes"),
    ("a column twice", parquet(pa.table([pa.array(["a"])] * 3, names=["text", "target", "text"])),
     "rows.parquet: .*'text' is there twice"),
    ("text not in UTF-8",
     replaced(parquet({"text": ["aXXb"], "target": ["c"]}, use_dictionary=False, compression="NONE"),
     b"XX", b"\xff\xfe"), "rows.parquet: "),
]  # fmt: skip
ARROWS = [
    ("empty", b"", "train.arrow: not an Arrow file"),
    ("cut", arrow(PAIR)[:-30], "train.arrow: not an Arrow file"),
    ("first half", arrow(PAIR)[:100], "train.arrow: not an Arrow file"),
    ("a Parquet file", PARQUET, "train.arrow: not an Arrow file"),
    ("numbers", arrow({"text": [1], "target": ["a"]}), "column 'text', row 0: expected text, found a number"),
    ("nested texts", arrow({"text": [[["a"]]], "target": ["a"]}), "column 'text'"),
    ("no rows", arrow({"text": pa.array([], pa.string()), "target": pa.array([], pa.string())}),
     "split 'train': no rows"),
    ("a column twice", arrow(pa.table([pa.array(["a"])] * 3, names=["text", "target", "text"])),
     "train.arrow: .*'text' is there twice"),
    ("text not in UTF-8", replaced(arrow({"text": ["abcde"], "target": ["fghij"]}), b"abcde", b"ab\xff\xfee"),
     "train.arrow: "),
]  # fmt: skip


@table([(f"{suffix}: {name}", suffix, *rest) for suffix, rows in
        ((".jsonl", LINES), (".csv", CSVS), (".parquet", PARQUETS)) for name, *rest in rows ])  # fmt: skip
def test_file_of_rows(place, no_weights, row):
    suffix, content, said = row
    place.write(f"rows{suffix}", content)
    for script in ("ft", PREPARE):
        assert says(place.refuse(script, dataset_path=f"@/rows{suffix}"), said)


@table(ARROWS)
def test_arrow_folder(place, no_weights, row):
    content, said = row
    place.write("data/train.arrow", content)
    assert says(place.refuse("ft", dataset_path="@/data"), said)


MEGABYTE = "a" * 2**20


def of_one(value: Any, count: int, kind: pa.DataType) -> pa.DictionaryArray:
    """An array of `count` times the same value."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value], kind))


def in_lists(values: pa.Array) -> pa.ListArray:
    """One row, a list of all values."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


PLAIN = {"use_dictionary": False, "write_statistics": False}
BOMBS = [
    ("a million rows of one word", {"text": of_one("a", 1_000_000, pa.string())}, {}),
    ("a million nulls", {"text": pa.nulls(1_000_000)}, {}),
    ("a row of a million nulls", {"text": ["a"], "x": in_lists(pa.nulls(1_000_000, pa.int32()))}, {}),
    ("a row of a million zeros", {"text": ["a"], "x": in_lists(pa.array([0] * 1_000_000, pa.int8()))}, {}),
    ("a row of a million empty lists", {"text": ["a"], "x": in_lists(pa.array([[]] * 1_000_000, pa.list_(pa.int8())))},
     {}),
]  # fmt: skip


@table(BOMBS)
def test_parquet_bomb(place, no_weights, monkeypatch, row):
    """Refused by the sizes that the file declares, or after some rows; the limit is a gigabyte, here a megabyte."""
    columns, options = row
    monkeypatch.setattr(columnar_files, "LARGE", 2**20)
    content = parquet(columns, compression="zstd", **options)
    place.write("rows.parquet", content)
    assert len(content) < 8_000
    line = place.refuse("ft", dataset_path="@/rows.parquet")
    assert says(line, f"rows.parquet: {len(content):,} bytes would take .*in memory")


EXPANDS = "bytes would take .*in memory"
ARROW_BOMBS = [
    ("sixteen megabytes of one letter, zstd", {"text": ["a" * 2**24]}, "zstd"),
    ("a dictionary of a long word, zstd", {"text": pa.array(["a" * 2**24]).dictionary_encode()}, "zstd"),
    ("a million nulls", {"text": pa.nulls(1_000_000)}, None),
]  # fmt: skip


@table(ARROW_BOMBS)
def test_arrow_bomb(place, no_weights, monkeypatch, row):
    """As an Arrow file, and as one of the files of a folder that `datasets` saved."""
    columns, compression = row
    monkeypatch.setattr(columnar_files, "LARGE", 2**20)
    monkeypatch.setattr(columnar_files, "MAX_EXPANSION", 100)
    content = arrow(columns, compression)
    place.write("d/train.arrow", content)
    assert says(place.refuse("ft", dataset_path="@/d"), f"d/train.arrow: .*{EXPANDS}")
    place.write("saved/data.arrow", arrow_stream(columns, compression))
    place.write("saved/dataset_info.json", "{}")
    place.write("saved/state.json", '{"_data_files": [{"filename": "data.arrow"}]}')
    assert says(place.refuse("ft", dataset_path="@/saved"), f"saved/data.arrow: .*{EXPANDS}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pa.string(), pytest.param(pa.large_binary(), marks=pytest.mark.slow)], ids=str)
def test_a_long_text_that_is_there_often_takes_its_room_once(tmp_path, kind):
    """600 times one text of a megabyte, in a file of some kilobytes: 0.6 GB if each had its own. Whatever the file says
    of its type: a writer makes a dictionary by itself."""
    value = MEGABYTE.encode() if "binary" in str(kind) else MEGABYTE
    (tmp_path / "rows.parquet").write_bytes(parquet({"x": pa.array([value] * 600, kind)}, compression="zstd"))
    assert (tmp_path / "rows.parquet").stat().st_size < 50_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = columnar_files.read_parquet(tmp_path / "rows.parquet")["x"]  # bytes are left out of datasets
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB: a batch of rows at a time
    assert found == [value] * 600 and len(set(map(id, found))) == 1


def test_an_arrow_dictionary_of_a_long_text_takes_its_room_once(tmp_path):
    rows = of_one(MEGABYTE, 300, pa.string())
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.arrow").write_bytes(arrow({"text": rows, "target": rows}))
    texts = read_datasets(tmp_path / "d")["train"]["text"]
    assert len(texts) == 300 and len(texts[0]) == 2**20 and len(set(map(id, texts))) == 1


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("encoding", [None, "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_what_other_writers_do_is_read(tmp_path, compression, encoding):
    """Compressed buffers, encodings of texts, views, and columns of every shape, with nulls, in several groups."""
    texts = [f"The cat {i}." if i % 7 else "The cat." for i in range(3_000)]
    words: list = [None if i % 5 == 0 else ["a", f"b{i % 3}", None][: i % 4] for i in range(3_000)]
    columns = {
        "text": texts,
        "target": texts[::-1],
        "words": words,
        "struct": [None if i % 3 == 0 else {"a": f"c{i % 2}", "n": i} for i in range(3_000)],
        "pairs": pa.array([None if i % 4 == 0 else [("k", f"v{i % 2}")] for i in range(3_000)],
                          pa.map_(pa.string(), pa.string())),
        "two": pa.array([[f"x{i % 2}", "y"] for i in range(3_000)], pa.list_(pa.string(), 2)),
    }  # fmt: skip
    expected = json.loads(json.dumps(pa.table(columns).to_pydict()))  # pairs are lists
    options = {"use_dictionary": False, "column_encoding": {"text": encoding}} if encoding else {}
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet(columns, compression=compression or "NONE", row_group_size=1_000, **options))
    assert read_datasets(path)["train"] == expected
    (tmp_path / "d").mkdir()
    plain = {name: columns[name] for name in ("text", "target", "words", "struct", "pairs")}
    plain["view"] = pa.array(texts, pa.string_view())
    plain["encoded"] = pa.array(texts).dictionary_encode()
    (tmp_path / "d" / "train.arrow").write_bytes(arrow(plain, compression))
    found = read_datasets(tmp_path / "d")["train"]
    assert found == {name: expected.get(name, texts) for name in plain}


@pytest.mark.parametrize("name", ["data.json.gz", "data.jsonl.gz", "data.csv.zst", "data.json.bz2", "data.parquet.xz"])
def test_compressed_files_are_refused(place, no_weights, name):
    """Alone, and as a split of a folder, where it would be missing without a word."""
    content = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": lambda data: ZSTD + data}
    packed = content[name.rpartition(".")[2]](json.dumps(GOOD).encode())
    place.write(name, packed)
    assert says(place.refuse("ft", dataset_path=f"@/{name}"), f"{name}: is compressed; unpack it first")
    place.write("d/train.jsonl", ROW)
    place.write(f"d/{name.replace('data', 'dev')}", packed)
    said = f"d/{name.replace('data', 'dev')}: is compressed; unpack it first"
    assert says(place.refuse("ft", dataset_path="@/d"), said)


def test_a_compressed_file_under_another_name(place, no_weights):
    place.write("data.json", gzip.compress(json.dumps(GOOD).encode()))
    assert says(place.refuse("ft"), "data.json: is compressed; unpack it first")
    place.write("d/train.jsonl", gzip.compress(ROW.encode()))
    assert says(place.refuse("ft", dataset_path="@/d"), "d/train.jsonl: is compressed; unpack it first")


ROW = '{"text": "a", "target": "b"}\n'
ZSTD = b"\x28\xb5\x2f\xfd"

# ---------------------------------------------------------------------------------------------------- folders and names


def tree(**content: str | bytes) -> Callable[[Place], None]:
    """Files below `d`, by name."""

    def write(place: Place) -> None:
        (place.folder / "d").mkdir()
        for name, text in content.items():
            place.write(f"d/{name}", text)

    return write


SAVED = {
    "_data_files": [{"filename": "data.arrow"}], "_fingerprint": "a", "_format_columns": None, "_format_kwargs": {},
    "_format_type": None, "_output_all_columns": False, "_split": None,
}  # fmt: skip


def loop(place: Place) -> None:
    (place.folder / "d").symlink_to("d")


def loop_inside(place: Place) -> None:
    (place.folder / "d").mkdir()
    (place.folder / "d" / "train.jsonl").symlink_to("train.jsonl")


def dangling(place: Place) -> None:
    (place.folder / "d").mkdir()
    (place.folder / "d" / "train.jsonl").symlink_to("nowhere")


def a_folder_in_its_place(place: Place) -> None:
    (place.folder / "d" / "train.jsonl").mkdir(parents=True)


FOLDERS = [
    ("nothing there, Parquet", lambda place: None, "@/d.parquet", "d.parquet: .*No such file or directory"),
    ("below a file", lambda place: None, "@/data.json/train.json", "data.json/train.json: Not a directory"),
    ("empty folder", tree(), "@/d", "d: no split found; expected train"),
    ("a folder named as a file", tree(**{"train.jsonl/a.txt": "a"}), "@/d/train.jsonl", "train.jsonl: no split found"),
    ("a folder in a split's place", a_folder_in_its_place, "@/d", "d: no split found"),
    ("a link to itself", loop, "@/d", "d: Too many levels of symbolic links"),
    ("a split that links to itself", loop_inside, "@/d", "d/train.jsonl: Too many levels of symbolic links"),
    ("a split that links nowhere", dangling, "@/d", "d/train.jsonl: No such file or directory"),
    ("a split twice", tree(**{"train.jsonl": ROW, "train.csv": "text,target\na,b\n"}), "@/d",
     "split 'train' is there twice"),
    ("dev twice", tree(**{"train.jsonl": ROW, "dev.jsonl": ROW, "val.jsonl": ROW}), "@/d", "d: two splits mean 'dev'"),
    ("no train", tree(**{"dev.jsonl": ROW}), "@/d", "d: no training split"),
    ("one file broken", tree(**{"train.jsonl": ROW, "dev.jsonl": "{"}), "@/d", "d/dev.jsonl: line 1: not JSON"),
    ("one file empty", tree(**{"train.jsonl": ROW, "dev.csv": ""}), "@/d",
     "split 'dev': expected an object of columns"),
    ("parts that differ", tree(**{"train/0.jsonl": ROW, "train/1.jsonl": '{"text": "a"}\n'}), "@/d",
     "train/1.jsonl: columns"),
    ("a number in a split's JSON", tree(**{"train.json": "3"}), "@/d", "d/train.json: row 0: expected an object"),
    ("texts in a split's JSON", tree(**{"train.json": '["a"]'}), "@/d", "d/train.json: row 0: expected an object"),
    ("a split's JSON unequal", tree(**{"train.json": '{"text": ["a"], "target": []}'}), "@/d",
     "columns must be equally"),
    ("a saved dataset without its files", tree(**{"dataset_dict.json": '{"splits": ["train"]}'}), "@/d",
     "d: not a folder saved"),
    ("a saved dataset whose list is broken", tree(**{"dataset_dict.json": "{"}), "@/d",
     "d/dataset_dict.json: not JSON"),
    ("a saved dataset whose list is deep", tree(**{"dataset_dict.json": "[" * 100_000}), "@/d",
     "d/dataset_dict.json: not JSON"),
    ("a saved dataset whose list lists nothing", tree(**{"dataset_dict.json": "[]"}), "@/d", "d: not a folder saved"),
    ("a saved dataset that leaves its folder", tree(**{"dataset_dict.json": '{"splits": ["../../train"]}'}), "@/d",
     "d: not a folder saved"),
    ("a saved split without its files", tree(**{"state.json": "{}"}), "@/d", "d: not a folder saved"),
    ("a saved split whose state is broken", tree(**{"state.json": "[", "dataset_info.json": "{}"}), "@/d",
     "d/state.json: not JSON"),
    ("a saved split whose state is a list", tree(**{"state.json": "[]", "dataset_info.json": "{}"}), "@/d",
     "d: not a folder saved by `datasets`: its .json files"),
    ("a saved split with its rows elsewhere", tree(**{"dataset_info.json": "{}",
     "state.json": '{"_data_files": [{"filename": "../data.arrow"}]}'}), "@/d",
     "d/state.json: '../data.arrow' is not the name"),
    ("a saved split whose rows are none", tree(**{"dataset_info.json": "{}", "data.arrow": "rows",
     "state.json": '{"_data_files": [{"filename": "data.arrow"}]}'}), "@/d", "d: not a folder saved"),
    ("a saved split whose texts are none", tree(**{"dataset_info.json": "{}",
     "data.arrow": replaced(arrow_stream({"text": ["a cat"], "target": ["b"]}), b"a cat", b"a \xff\xffat"),
     "state.json": json.dumps(SAVED)}), "@/d", "d: not a folder saved"),
    ("a hub name without a name", lambda place: None, "hf:", "hf:"),
    ("a hub name that climbs", lambda place: None, "hf:../../etc", "hf:../../etc: "),
    ("a hub name with a blank", lambda place: None, "hf:a b", "hf:a b: "),
    ("a hub name offline", lambda place: None, "hf:nobody/nothing", "hf:nobody/nothing: "),
    ("an address", lambda place: None, "https://example.org/data.json", "data.json: No such file or directory"),
]  # fmt: skip


@table(FOLDERS)
def test_folder(place, no_weights, row):
    make, path, said = row
    make(place)
    for script in ("ft", STUDENT):
        assert says(place.refuse(script, dataset_path=path), said)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("script", MAINS)
def test_unreadable_file(place, no_weights, script):
    path = place.write("secret.json", json.dumps(GOOD))
    path.chmod(0)
    assert "secret.json: Permission denied" in place.refuse(script, dataset_path="@/secret.json")


# ------------------------------------------------------------------------------------------------- merging, raw corpora

GENERATIONS = [
    ("no pseudo-targets", json.dumps({"train": PAIR}), "g.json: split 'train': column 'generated' is missing"),
    ("of no row", json.dumps({"train": {"generated": []}}), "g.json: split 'train': no rows"),
    ("null", json.dumps({"train": {"generated": ["a", None]}}),
     "g.json: split 'train', column 'generated', row 1: expected"),
    ("lists", json.dumps({"train": {"generated": [["a"], ["b"]]}}), "g.json: split 'train', column 'generated', row 0"),
    ("of another split", json.dumps({"extra": {"generated": ["a", "b"]}}),
     "g.json: no pseudo-targets of ['train', 'unl"),
    ("not shared equally", json.dumps({"train": {"generated": ["a", "b", "c"]}}),
     "g.json: split 'train': 3 pseudo-targets"),
    ("fewer than rows", json.dumps({"train": {"generated": ["a"]}}), "g.json: split 'train': 1 pseudo-targets"),
    ("of another text", json.dumps({"train": {"text": ["x"], "generated": ["a"]}}),
     "g.json: split 'train', row 0: its text"),
    ("text null", json.dumps({"train": {"text": [None], "generated": ["a"]}}),
     "g.json: split 'train', column 'text', row 0"),
    ("unequal", json.dumps({"train": {"text": ["A cat."], "generated": ["a", "b"]}}), "g.json: .*must be equally long"),
    ("no JSON", "{", "g.json: not JSON"),
    ("rows", '[{"generated": "a"}]', "g.json: expected {split"),
]  # fmt: skip


@table(GENERATIONS)
def test_merging(place, no_weights, row):
    content, said = row
    place.write("g.json", content)
    flags = {"dataset_path": None, "original_dataset_path": "@/data.json", "generation_dataset_path": "@/g.json"}
    assert says(place.refuse(PREPARE, **flags), said)


RAW = [
    ("shakespeare", json.dumps({"train": PAIR}), "raw.json: split 'train': no column original, modern"),
    ("shakespeare", json.dumps({"poems": PAIR}), "raw.json: no train, dev or test"),
    ("shakespeare", json.dumps({"train": {"original": ["a"], "modern": [3]}}), "column 'modern', row 0: expected text"),
    ("shakespeare", json.dumps({"train": {"original": ["a"], "modern": ["b"]}}), "raw.json: 0 rows .*are too few"),
    ("xsum", json.dumps({"train": PAIR}), "raw.json: split 'train': no column document, summary"),
    ("xsum", json.dumps({"dev": PAIR}), "raw.json: no split 'train'"),
    ("art", json.dumps({"train": PAIR}), "raw.json: split 'train': no column observation_1, observation_2"),
    ("bisect", json.dumps({"train": PAIR}), "raw.json: split 'train': no column source"),
    ("squad", json.dumps({"train": PAIR}), "raw.json: split 'train': no column context, question, answers"),
    ("squad", json.dumps({"train": {"context": ["a"], "question": ["b"], "answers": ["c"]}}),
     "row 0: 'answers' must be"),
    ("squad", json.dumps({"train": {"context": ["a"], "question": ["b"], "answers": [{"text": []}]}}),
     "row 0: 'answers'"),
    ("squad", json.dumps({"train": {"context": ["a"], "question": ["b"], "answers": [{"text": 5}]}}),
     "row 0: 'answers'"),
    ("squad", json.dumps({"train": {"context": ["a"], "question": ["b"], "answers": [{"text": [5]}]}}),
     "row 0: 'answers'"),
    ("squad", json.dumps({"train": {"context": ["a"], "question": ["b"], "answers": ["{'text': exit()}"]}}),
     "row 0: 'ans"),
]  # fmt: skip


@pytest.mark.parametrize(("corpus", "content", "said"), RAW)
def test_raw_corpus(place, no_weights, corpus, content, said):
    place.write("raw.json", content)
    assert says(place.refuse(PREPARE, dataset_name=corpus, dataset_path="@/raw.json"), said)


# ------------------------------------------------------------------------------------------------- an API's completions


def line(**fields: Any) -> str:
    """A row of completions as JSON Lines have it, some fields otherwise (... leaves one out)."""
    choice = {"text": "The cat", "logprobs": {"tokens": ["The", " cat"], "token_logprobs": [-0.1, -0.2]}}
    fields = {"text": "A cat.", "target": "A dog.", "response": {"choices": [choice]}} | fields
    return json.dumps({name: value for name, value in fields.items() if value is not ...}) + "\n"


def answer(logprobs: Any, text: Any = "The cat", **fields: Any) -> str:
    return line(response={"choices": [{"text": text, "logprobs": logprobs, **fields}]})


def chat(*tokens: Any) -> str:
    return line(response={"choices": [{"message": {"content": "The cat"}, "logprobs": {"content": list(tokens)}}]})


def known(**fields: Any) -> dict[str, Any]:
    return {"token": "The cat", "logprob": -0.1, **fields}


TWO = ["The", " cat"]
API = [
    ("no lines", "", "api.jsonl: no completions of"),
    ("no JSON", "{'text': 'a'}\n", "api.jsonl: line 1: not JSON"),
    ("text null", line(text=None), "api.jsonl: line 1: Expected `str`, got `null` - at `$.text`"),
    ("no reference in test", line(split="test", target=...),
     "api.jsonl: line 1: 'target' is missing or null"),
    ("split a list", line(split=["train"]), "api.jsonl: line 1: split ['train'] is none of"),
    ("split null", line(split=None), "api.jsonl: line 1: split None is none of"),
    ("split a number", line(split=0), "api.jsonl: line 1: split 0 is none of"),
    ("response null", line(response=None),
     "api.jsonl: 1 of 1 answers failed, more than --max_failed_share 0.1: 1 no response (line 1)"),
    ("an error of many words", line(response={"error": {"code": "x\n" * 999}}),
     "1 of 1 answers failed.*1 error (line 1)"),
    ("response a text", line(response="The cat"), "api.jsonl: line 1: its 'response' has no 'choices'"),
    ("response code", line(response="__import__('os').system('touch executed')"), "api.jsonl: line 1: its 'response'"),
    ("body null", line(response={"body": None}), "1 of 1 answers failed.*1 no response (line 1)"),
    ("choice null", line(response={"choices": [None]}),
     "api.jsonl: line 1: Expected `object`, got `null` - at `$.response.choices[0]`"),
    ("second choice empty", line(response={"choices": [{"text": ""}, {}]}),
     "api.jsonl: line 1, choice 1: expected a choice"),
    ("message a text", line(response={"choices": [{"message": "The cat"}]}),
     "api.jsonl: line 1: expected a choice with"),
    ("log-probabilities empty", answer({}), "1 of 1 answers failed.*1 no log-probabilities (line 1)"),
    ("tokens null", answer({"tokens": [None]}), "line 1: Expected `str`, got `null` - at `$.*.tokens[0]`"),
    ("tokens of another text", answer({"tokens": ["A", " dog"]}),
     "api.jsonl: line 1: its tokens do not spell its text"),
    ("tokens too few", answer({"tokens": ["The"]}), "api.jsonl: line 1: its tokens do not spell its text"),
    ("tokens too many", answer({"tokens": [*TWO, " sat"]}), "api.jsonl: line 1: its tokens do not spell its text"),
    ("numbers too few", answer({"tokens": TWO, "token_logprobs": [-0.1]}),
     "line 1: 2 tokens need as many log-probabilities, found 1"),
    ("most likely ones too few", answer({"tokens": TWO, "top_logprobs": [{}]}),
     "line 1: 2 tokens need as many log-probabilities, found 1"),
    ("a likely one above 0", answer({"tokens": TWO, "top_logprobs": [{}, {"x": 7}]}),
     "line 1: Expected `float` <= 0.001 - at `$.*.top_logprobs[1][...]`"),
    ("chat: a token null", chat(None),
     "line 1: Expected `object`, got `null` - at `$.response.choices[0].logprobs.content[0]`"),
    ("chat: a likely one null", chat(known(top_logprobs=[None])),
     "got `null` - at `$.response.choices[0].logprobs.content[0].top_logprobs[0]`"),
    ("dev without a prediction", line() + line(split="dev", response=...),
     "api.jsonl: 1 of 2 answers failed, more than --max_failed_share 0.1: 1 no prediction (line 2)"),
    ("only test", line(split="test"), "api.jsonl: no completions of"),
]  # fmt: skip


@table(API)
def test_api_lines(place, no_weights, monkeypatch, row):
    content, said = row
    monkeypatch.chdir(place.folder)
    place.write("api.jsonl", content)
    flags = {"dataset_path": None, "logits_dataset_path": "@/api.jsonl", "student_name": "@/student"}
    for file_name in ("out.json", "out.arrow"):
        assert says(place.refuse(PREPARE, file_name=file_name, **flags), said)


def published(**columns: Any) -> str:
    """A row of the published form."""
    columns = {"text": ["a"], "prediction": ["b"], "tokens": [["b"]], "logprobs": [[{"b": -1.0}]]} | columns
    return json.dumps({"train": {name: values for name, values in columns.items() if values is not ...}})


API_JSON = [
    ("no prediction", published(prediction=...), "api.json: 1 of 1 answers failed, more than --max_failed_share 0.1"),
    ("prediction null", published(prediction=[None]),
     "api.json: 1 of 1 answers failed, more than --max_failed_share 0.1"),
    ("prediction a number", published(prediction=[3]),
     "api.json: split 'train', row 0: Expected `str | null`, got `int` - at `$.prediction`"),
    ("no text", published(text=...), "api.json: split 'train': column 'text' is missing"),
    ("text null", published(text=[None]), "api.json: split 'train', row 0: Expected `str`, got `null` - at `$.text`"),
    ("no tokens", published(tokens=...),
     "api.json: split 'train', row 0: 0 tokens need as many log-probabilities, found 1"),
    ("tokens a text that calls", published(tokens=["__import__('os').system('touch executed')"]),
     "row 0: Expected `array | null`, got `str` - at `$.tokens`"),
    ("log-probabilities a text", published(logprobs=["[{'b': -1.0}]"]),
     "row 0: Expected `object | array | null`, got `str` - at `$.logprobs`"),
    ("columns unequal", published(tokens=[]), "api.json: split 'train': columns must be equally long"),
    ("a split of ours", published().replace('"train"', '"train_0"'), "api.json: split 'train_0' is none of"),
    ("no split", "{}", "api.json: expected {split"),
]  # fmt: skip


@table(API_JSON)
def test_api_json(place, no_weights, monkeypatch, row):
    content, said = row
    monkeypatch.chdir(place.folder)
    place.write("api.json", content)
    flags = {"dataset_path": None, "logits_dataset_path": "@/api.json", "student_name": "@/student"}
    assert says(place.refuse(PREPARE, **flags), said)


# ------------------------------------------------------------------------------------------- stored log-probabilities


def stored(**columns: Any) -> str:
    """A row that the student's tokenizer makes of as many labels as tokens are stored."""
    return data(train={"text": ["a"], "target": ["a cat"], **columns})


STORED_ROWS = [
    ("none", data(), "split 'train' has no column 'tokens'; prepare the data"),
    ("no log-probabilities", stored(tokens=[[[1]]]), "data.json: split 'train' has no column 'logits'"),
    ("tokens null", stored(tokens=[None], logits=[None]),
     "split 'train': 'tokens' and 'logits' must be lists of lists"),
    ("tokens as Python", stored(tokens=["[[1]]"], logits=["[[0.0]]"]), "split 'train': 'tokens' and 'logits' must be"),
    ("tokens beyond 32 bits", stored(tokens=[[[2**40]]], logits=[[[0.0]]]),
     "split 'train': 'tokens' and 'logits' must"),
    ("log-probabilities above 0", stored(tokens=[[[1]]], logits=[[[2.0]]]), "row 0: token 1 with log-probability 2"),
    ("log-probabilities null", stored(tokens=[[[1]]], logits=[[[None]]]), "row 0: token 1 with log-probability nan"),
    ("log-probabilities beyond floats", stored(tokens=[[[1]]], logits=[[[-1e300]]]), "row 0: token 1 with log-prob"),
    ("log-probabilities of another shape", stored(tokens=[[[1]]], logits=[[[0.0, 0.0]]]), "differ in shape"),
    ("positions of another tokenizer", stored(tokens=[[[1]]], logits=[[[0.0]]]),
     "row 0: 'tokens' has 1 positions, but"),
]  # fmt: skip


@table(STORED_ROWS)
def test_stored_rows(place, no_weights, row):
    content, said = row
    place.write("data.json", content)
    assert says(place.refuse(STORED), said)


@table([
    ("numbers of another kind", pa.list_(pa.list_(pa.string())), [[["a"]]], "must be lists of lists of numbers"),
    ("one list", pa.list_(pa.int32()), [[1]], "data: split 'train_0': .*must be lists of lists of numbers"),
    ("nulls among numbers", pa.list_(pa.list_(pa.int32())), [[[None]]], "must be lists of lists of numbers"),
    ("a null for a position", pa.list_(pa.list_(pa.int32())), [[None]], "must be lists of lists of numbers"),
    ("three lists", pa.list_(pa.list_(pa.list_(pa.int32()))), [[[[1]]]], "must be lists of lists of numbers"),
    ("truth values", pa.list_(pa.list_(pa.bool_())), [[[True]]], "must be lists of lists of numbers"),
])  # fmt: skip
def test_stored_rows_in_arrow(place, no_weights, row):
    kind, values, said = row
    rows = {"text": ["a"], "target": ["a cat"], "tokens": pa.array(values, kind), "logits": pa.array(values, kind)}
    place.write("data/train_0.arrow", arrow(rows))
    assert says(place.refuse(STORED, dataset_path="@/data"), said)


# ---------------------------------------------------------------------------------------------- weights and checkpoints


WITH_WEIGHTS = (
    ("ft", "checkpoint_path"),
    ("gen", "checkpoint_path"),
    (SIMULATE, "checkpoint_path"),
    ("kd", "student_state_dict_path"),
    ("kd", "teacher_state_dict_path"),
    (STORED, "student_state_dict_path"),
)


class Touches:
    """A pickle of it, loaded, makes a file `executed`."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("executed"),)


def saved(value: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **options)
    return sink.getvalue()


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(**fields: Any) -> dict[str, Any]:
    return {"shared.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | fields}


def deflated(archive: bytes) -> bytes:
    """The same parts, compressed: four megabytes in some kilobytes, which torch would read."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as parts, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in parts.infolist():
            packed.writestr(part.filename, parts.read(part), compress_type=zipfile.ZIP_DEFLATED)
    return sink.getvalue()


WEIGHTS = [
    ("empty", "w.pt", b"", "w.pt: weights cannot be read"),
    ("an empty ZIP file", "w.pt", b"PK\x05\x06" + bytes(18), "w.pt: weights cannot be read"),
    ("cut", "w.pt", saved({"a": torch.zeros(100)})[:-50], "w.pt: weights cannot be read"),
    ("first half", "w.pt", saved({"a": torch.zeros(1000)})[:2000], "w.pt: weights cannot be read"),
    ("a pickle that calls", "w.pt", pickle.dumps(Touches()), "w.pt: weights cannot be read"),
    ("a checkpoint that calls", "w.pt", saved({"a": Touches()}), "w.pt: weights cannot be read"),
    ("an old checkpoint that calls", "w.pt", saved({"a": Touches()}, _use_new_zipfile_serialization=False),
     "w.pt: weights"),
    ("a .bin that calls", "w.bin", saved({"a": Touches()}), "w.bin: weights cannot be read"),
    ("a whole model", "w.pt", saved(torch.nn.Linear(1, 1)), "w.pt: weights cannot be read"),
    ("a tensor", "w.pt", saved(torch.zeros(1)), "w.pt: holds a Tensor, not a state dict"),
    ("a list", "w.pt", saved([torch.zeros(1)]), "w.pt: holds a list, not a state dict"),
    ("nothing", "w.pt", saved(None), "w.pt: holds a "),
    ("an empty dict", "w.pt", saved({}), "w.pt: holds a dict, not a state dict"),
    ("a checkpoint of another tool", "w.pt", saved({"model": {"a": torch.zeros(1)}, "epoch": 3}),
     "w.pt: 'model' is a dict"),
    ("a number among tensors", "w.pt", saved({"a": torch.zeros(1), "b": 1}), "w.pt: 'b' is a int, not a tensor"),
    ("numbers for names", "w.pt", saved({0: torch.zeros(1)}), "w.pt"),
    ("names of nothing", "w.pt", saved({"x": torch.zeros(1)}), "w.pt: not for .*is missing"),
    ("a body that is missing", "w.safetensors", safetensors(tensor()), "w.safetensors: weights cannot be read"),
    ("a type that is none", "w.safetensors", safetensors(tensor(dtype="F33"), bytes(4)),
     "w.safetensors: weights cannot be"),
    ("a shape beyond the data", "w.safetensors", safetensors(tensor(shape=[10**12]), bytes(4)),
     "w.safetensors: weights"),
    ("a shape beyond 64 bits", "w.safetensors", safetensors(tensor(shape=[2**40] * 3), bytes(4)),
     "w.safetensors: weights"),
    ("no tensors", "w.safetensors", safetensors({}), "w.safetensors: "),
    ("compressed inside", "w.pt", deflated(saved({"a": torch.zeros(10**6)})), "w.pt: .*its parts are compressed"),
    ("an index that is none", "model.safetensors.index.json", b"{", "index.json cannot be read"),
    ("an index that is a list", "model.safetensors.index.json", b"[]", "index.json must hold an object"),
    ("an index of nothing", "model.safetensors.index.json", b"{}", "index.json: .*'weight_map'"),
    ("an index with a list", "model.safetensors.index.json", b'{"weight_map": ["a"]}', "index.json: .*'weight_map'"),
    ("an index with numbers", "model.safetensors.index.json", b'{"weight_map": {"a": 1}}',
     "index.json: .*'weight_map'"),
    ("an index of what is not there", "model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}',
     "b.safetens"),
    ("an index of itself", "model.safetensors.index.json", b'{"weight_map": {"a": "model.safetensors.index.json"}}',
     "index.json: .*'weight_map'"),
    ("an index that climbs", "model.safetensors.index.json", b'{"weight_map": {"a": "../student/model.safetensors"}}',
     "index.json: .*'weight_map'"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of torch, about old formats
@table(WEIGHTS)
def test_weights(place, monkeypatch, row):
    name, content, said = row
    monkeypatch.chdir(place.folder)
    place.write(f"w/{name}", content)
    script, flag = WITH_WEIGHTS[len(content) % len(WITH_WEIGHTS)]
    key = {"experiment_config_key": "finetuning"} if script == STORED else {}
    assert says(place.refuse(script, **{flag: f"@/w/{name}"}, **key), said)


def test_weights_of_another_shape_and_halves_of_a_model(place):
    weights = load_file(place.folder / "student" / "model.safetensors")
    name = next(iter(sorted(weights)))
    save_file({**weights, name: torch.zeros(3)}, place.folder / "shape.safetensors")
    save_file({key: value for key, value in weights.items() if key != name}, place.folder / "half.safetensors")
    for wrong in ("nan", "inf"):
        save_file({**weights, name: weights[name] * float(wrong)}, place.folder / f"{wrong}.safetensors")
    said_of = {"shape": f"'{name}' is (3,), the", "half": f"'{name}' is missing"}
    for file, said in (said_of | dict.fromkeys(("nan", "inf"), f"'{name}' contains NaN or infinity")).items():
        assert says(place.refuse("ft", checkpoint_path=f"@/{file}.safetensors"), f"{file}.safetensors: .*{said}")


# -------------------------------------------------------------------------------------------------------- model folders


@pytest.mark.filterwarnings("ignore")  # of torch, about tensors without elements
@pytest.mark.parametrize("key", ["d_model", "d_ff", "d_kv"])
def test_a_model_of_no_size(place, key):
    """What its layers make of it is known when they are made."""
    in_json("config.json", **{key: 0})(place.own_model())
    assert says(place.refuse("ft", model_name="@/model"), "model: ")


@pytest.mark.parametrize("n_heads", [-1, -2])
def test_a_model_that_cannot_compute(place, dropout_models, n_heads):
    """Its layers can be made, and not run."""
    shutil.copytree(dropout_models["gpt2"]["student"], place.folder / "model")
    in_json("config.json", n_head=n_heads)(place.folder / "model")
    assert says(place.refuse("gen", model_name="@/model"), "model: a test forward pass failed: ")


def test_no_end_of_decoding(place):
    """An empty list says nothing: the config's own counts."""
    in_json("generation_config.json", eos_token_id=[])(place.own_model())
    place.run("gen", model_name="@/model")
    place.run("ft", model_name="@/model", output_dir="@/ft", epochs=1)
    made = (
        read(place.folder / "ft" / "model" / file)["eos_token_id"] for file in ("generation_config.json", "config.json")
    )
    assert len(set(made)) == 1


def test_padding_of_older_models(place):
    """−1 says that there is none."""
    in_json("generation_config.json", pad_token_id=-1)(place.own_model())
    place.run("ft", model_name="@/model", epochs=1)
    made = read(place.folder / "out" / "model" / "generation_config.json")
    assert made["pad_token_id"] == made["eos_token_id"]


def in_json(file: str, **values: Any) -> Callable[[Path], None]:
    """Other values in a JSON file of a model's folder; ... takes one out."""

    def change(folder: Path) -> None:
        content = (read(folder / file) if (folder / file).exists() else {}) | values
        (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))

    return change


def instead(file: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def a_folder(file: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return replace


CODE = "from pathlib import Path\nPath('executed').touch()\nclass Model:\n    pass\n"


def custom(file: str, **auto_map: str) -> Callable[[Path], None]:
    """Code beside the weights, and a config that names it."""

    def change(folder: Path) -> None:
        (folder / "code.py").write_text(CODE)
        in_json(file, auto_map=auto_map)(folder)

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


AUTO_CONFIG = custom("config.json", AutoConfig="code.Model", AutoModelForSeq2SeqLM="code.Model")
MODELS = [
    ("no config", without("config.json"), "model: holds no config.json"),
    ("config a folder", a_folder("config.json"), "model: holds no config.json"),
    ("config empty", instead("config.json", ""), "model: config.json"),
    ("config cut", instead("config.json", '{"model_type": "t5",'), "model: config.json"),
    ("config a list", instead("config.json", "[]"), "model: config.json"),
    ("config null", instead("config.json", "null"), "model: config.json"),
    ("config a text", instead("config.json", '"t5"'), "model: config.json"),
    ("config of nothing", instead("config.json", "{}"), "model: config.json"),
    ("config not UTF-8", instead("config.json", b'{"model_type": "t5\xff"}'), "model: config.json"),
    ("config nested 100,000 deep", instead("config.json", "[" * 100_000), "model: config.json"),
    ("no model type", in_json("config.json", model_type=..., architectures=...), "model: config.json"),
    ("model type unknown", in_json("config.json", model_type="t55"), "model: config.json"),
    ("model type a list", in_json("config.json", model_type=["t5"]), "model: config.json"),
    ("model type a number", in_json("config.json", model_type=5), "model: config.json"),
    ("model type null", in_json("config.json", model_type=None), "model: config.json"),
    ("a model that writes nothing", in_json("config.json", model_type="vit", is_encoder_decoder=False), "model"),
    ("a model of pictures", in_json("config.json", model_type="clip", is_encoder_decoder=False), "model"),
    ("layers in words", in_json("config.json", num_layers="many"), "model: config.json"),
    ("layers a list", in_json("config.json", num_decoder_layers=[1]), "model: config.json"),
    ("width a text", in_json("config.json", d_model="16"), "model: config.json"),
    ("vocabulary null", in_json("config.json", vocab_size=None), "model: config.json"),
    ("vocabulary negative", in_json("config.json", vocab_size=-5), "model: "),
    ("vocabulary smaller than the tokenizer's", in_json("config.json", vocab_size=10),
     "its tokenizer has .*vocab_size"),
    ("heads in words", in_json("config.json", num_heads="two"), "model: config.json"),
    ("its own class", AUTO_CONFIG, None),
    ("its own class and type", both(AUTO_CONFIG, in_json("config.json", model_type="mine")), "model: .*its own code"),
    ("its own class from elsewhere", both(custom("config.json", AutoConfig="a/b--code.Model"),
     in_json("config.json", model_type="mine")), "model: config.json names its own code"),
    ("layers negative", in_json("config.json", num_decoder_layers=-1), "config.json: num_decoder_layers is -1"),
    ("no weights", without("model.safetensors"), "model: no weights there"),
    ("weights a folder", a_folder("model.safetensors"), "model: no weights there"),
    ("no tokenizer", without("tokenizer.json", "tokenizer_config.json"), "model: holds no tokenizer"),
    ("tokenizer empty", instead("tokenizer.json", ""), "model: tokenizer"),
    ("tokenizer cut", lambda folder: os.truncate(folder / "tokenizer.json", 1000), "model: tokenizer"),
    ("tokenizer a list", instead("tokenizer.json", "[]"), "model: tokenizer"),
    ("tokenizer null", instead("tokenizer.json", "null"), "model: tokenizer"),
    ("tokenizer of nothing", instead("tokenizer.json", "{}"), "model: tokenizer"),
    ("tokenizer not UTF-8", instead("tokenizer.json", b"{\xff}"), "model: tokenizer"),
    ("tokenizer nested 100,000 deep", instead("tokenizer.json", "[" * 100_000), "model: tokenizer"),
    ("tokenizer without a model", in_json("tokenizer.json", model=...), "model: tokenizer"),
    ("tokenizer's model null", in_json("tokenizer.json", model=None), "model: tokenizer"),
    ("tokenizer's model unknown", in_json("tokenizer.json", model={"type": "Bigram", "vocab": {}}), "model: tokenizer"),
    ("tokenizer's words a text", in_json("tokenizer.json", model={"type": "Unigram", "vocab": "abc"}),
     "model: tokenizer"),
    ("tokenizer's words none", in_json("tokenizer.json", model={"type": "Unigram", "vocab": [], "unk_id": 2}),
     "model: "),
    ("tokenizer's splitter unknown", in_json("tokenizer.json", pre_tokenizer={"type": "Python"}), "model: tokenizer"),
    ("tokenizer's additions a text", in_json("tokenizer.json", added_tokens="</s>"), "model: tokenizer"),
    ("tokenizer's config cut", instead("tokenizer_config.json", "{"), "model: tokenizer"),
    ("tokenizer's config a list", instead("tokenizer_config.json", "[]"), "model: tokenizer"),
    ("tokenizer's config null", instead("tokenizer_config.json", "null"), "model: tokenizer"),
    ("tokenizer's class unknown", in_json("tokenizer_config.json", tokenizer_class="Mine"), None),
    ("tokenizer's class a list", in_json("tokenizer_config.json", tokenizer_class=["A"]), "model: tokenizer"),
    ("tokenizer's own class", custom("tokenizer_config.json", AutoTokenizer=["code.Model", None]), None),
    ("tokenizer without EOS", in_json("tokenizer_config.json", eos_token=None), "model: its tokenizer has no EOS"),
    ("unknown tokens are none", in_json("tokenizer_config.json", unk_token=""), "model: tokenizer .*unk_token ''"),
    ("half a character", instead("tokenizer_config.json", '{"backend": "\\ud800"}'), "model: tokenizer"),
    ("model type half a character", instead("config.json", '{"model_type": "\\ud800"}'), "model: config.json"),
    ("EOS a number", in_json("tokenizer_config.json", eos_token=1), "model: "),
    ("EOS a list", in_json("tokenizer_config.json", eos_token=["</s>"]), "model: "),
    ("decoding settings cut", instead("generation_config.json", "{"), "model: generation_config.json"),
    ("decoding settings a list", instead("generation_config.json", "[]"), "model: generation_config.json"),
    ("decoding settings null", instead("generation_config.json", "null"), "model: generation_config.json"),
    ("EOS of decoding a text", in_json("generation_config.json", eos_token_id="</s>"), "model: generation_config.json"),
    ("EOS of decoding beyond the vocabulary", in_json("generation_config.json", eos_token_id=10**6),
     "generation_config"),
    ("start of decoding negative", in_json("generation_config.json", decoder_start_token_id=-1),
     "generation_config.json"),
    ("tokens not to write a text", in_json("generation_config.json", suppress_tokens="all"), "generation_config.json"),
]  # fmt: skip


@pytest.mark.parametrize("row", [row[1:] for row in MODELS if row[2]], ids=[row[0] for row in MODELS if row[2]])
def test_model_folder(place, no_weights, monkeypatch, row):
    change, said = row
    monkeypatch.chdir(place.folder)
    change(place.own_model())
    assert says(place.refuse("ft", model_name="@/model"), said)
    assert says(place.refuse("kd", teacher_name="@/model"), said)


@table([row for row in MODELS if row[2] is None])
def test_code_beside_a_model_is_left_alone(place, monkeypatch, row):
    """The library knows how to open the model: it does, and the code is not run."""
    change, _ = row
    monkeypatch.chdir(place.folder)
    change(place.own_model())
    place.run("gen", model_name="@/model")
    assert not (place.folder / "executed").exists()


def test_nothing_asks_for_remote_code():
    """No flag, and no call, turns it on."""
    sources = [path for folder in ("src", ".") for path in Path(setup.__file__).parents[2].glob(f"{folder}/**/*.py"
               if folder == "src" else "*.py")]  # fmt: skip
    assert len(sources) > 40
    for path in sources:
        asked = re.findall(r"trust_remote_code\s*[=:]\s*(\w+)", path.read_text(encoding="utf-8"))
        assert set(asked) <= {"False"}, path


# --------------------------------------------------------------------------------------------------- odd, but all right

ODD = {
    "right to left": "\u202eשלום עולם\u202c مرحبا",
    "combining": "e\u0301\u0323" + "a" + "\u0300" * 500,
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f600",
    "NUL": "a\0b\0",
    "controls": "\x01\x07\x1b[31m\x7f",
    "line ends": "a\r\nb\rc\u2028d\x85e\n",
    "white space": " \t\u00a0\u3000 ",
    "nothing": "",
    "a byte order mark": "\ufeffa cat",
    "not a character": "\uffff\ufffe\U0010ffff",
    "markup of tokens": "</s> <pad> <unk> <s> <|endoftext|> <0x00>",
    "code": "__import__('os').system('touch executed') ${HOME} $(touch executed) {0.__class__}",
    "quotes": "\"\"\" ''' \\ \\u0041 %s %d {} {{}}",
    "one letter": "x" * 5_000,
}


def test_odd_texts_go_through_everything(place, monkeypatch):
    """Prepared, written for, merged, distilled: no text is lost or changed on the way."""
    monkeypatch.chdir(place.folder)
    texts = [*ODD.values(), *PAIR["text"]]
    rows = {"text": texts, "target": texts[::-1]}
    place.write("data.json", "\ufeff" + json.dumps({"train": rows, "dev": PAIR, "test": rows}))
    path = place.run(PREPARE, output_dir="@/prepared")
    assert read(path)["train"] == rows
    generated = read(place.run("gen", dataset_path=str(path), add_original_data=True, max_labels_length=2))
    assert generated["train"]["text"] == texts
    merged = place.run(PREPARE, dataset_path=None, original_dataset_path=str(path), output_dir="@/merged",
                       generation_dataset_path="@/out/generated_datasets.json")  # fmt: skip
    assert read(merged)["train_0"]["text"] == [*texts, *dict.fromkeys(texts)]
    place.run("kd", dataset_path=str(merged), output_dir="@/kd", epochs=1, max_labels_length=4, metrics="all")
    last = list(read(place.folder / "kd" / "eval_generations.json").values())[-1]
    assert last["references"] == texts[::-1]
    assert not (place.folder / "executed").exists()


def test_columns_that_are_no_json_go_through_everything(place, caplog):
    """A table's NaN and times have a form in JSON, its bytes are left out."""
    odd = {"score": [0.5, float("nan")], "when": pa.array([0, None], pa.timestamp("s")), "image": [b"a", b"b"]}
    for split in ("train", "dev", "test"):
        place.write(f"data/{split}.parquet", parquet(pa.table(PAIR | odd)))
    right = PAIR | {"score": [0.5, None], "when": ["1970-01-01T00:00:00", None]}
    assert read(place.run(PREPARE, dataset_path="@/data", output_dir="@/prepared"))["train"] == right
    made = read(place.run("gen", dataset_path="@/data", add_original_data=True, max_labels_length=2))
    assert {name: made["train"][name] for name in right} == right
    place.run("ft", dataset_path="@/data", output_dir="@/ft", epochs=1, max_labels_length=2)
    left_out = f"{place.folder}/data: column 'image' is left out: JSON has no form for bytes"
    assert [record.getMessage() for record in caplog.records].count(left_out) == 3


def test_odd_texts_in_an_api_s_file(place):
    """A token for each character; white space around a completion is not a part of it."""
    lines = []
    for text in ODD.values():
        tokens = [
            {"token": letter, "logprob": -0.5, "bytes": list(letter.encode())} for letter in text.strip(whitespace)
        ]
        message = {"choices": [{"message": {"content": text}, "logprobs": {"content": tokens}}]}
        lines.append(json.dumps({"text": text or "nothing", "response": message}))
    place.write("api.jsonl", "\r\n".join(lines))
    flags = {"dataset_path": None, "logits_dataset_path": "@/api.jsonl", "student_name": "@/student"}
    prepared = read(place.run(PREPARE, **flags))
    assert prepared["train_0"]["target"] == [text.strip(whitespace) for text in ODD.values()]


@pytest.mark.slow
def test_a_megabyte_of_text_is_cut(place):
    long = "The cat sees a dog. " * 50_000
    place.write("data.json", json.dumps({"train": {"text": [long, "a"], "target": [long, ""]}, "test": PAIR}))
    place.run("ft", epochs=1)
    assert (place.folder / "out" / "model" / "model.safetensors").is_file()


def test_twenty_thousand_rows_and_duplicates(place):
    place.write("rows.jsonl", b"\xef\xbb\xbf" + b'{"text": "a", "target": "b"}\r\n' * 20_000)
    prepared = read(place.run(PREPARE, dataset_path="@/rows.jsonl"))
    assert prepared["train"] == {"text": ["a"] * 20_000, "target": ["b"] * 20_000} == prepared["ft"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        # Of equal names the last counts.
        ('{"train": {"text": ["a"], "target": ["b"]}, "train": {"text": ["c"], "target": ["d"]}}', ["c"]),
        ('{"train": {"text": ["a\\u0000", "\\ud83d\\ude00"], "target": ["b", "c"]}}', ["a\0", "😀"]),
        ('{"train": {"text": ["a"], "target": ["b"], "n": [NaN]}}', None),
        ('{"train": {"text": ["a"], "target": ["b"], "n": [123456789012345678901234567890]}}', ["a"]),
        ('{"train": {"text": ["a"], "target": ["b"], "n": [1e308]}, "": {"text": ["a"], "target": ["b"]}}', ["a"]),
        ('{"train": {"text": ["a"], "target": ["b"]}, "../x": {"text": ["a"], "target": ["b"]}}', ["a"]),
        ('{"train": {"text": ["a"], "target": ["b"]}, "x\\ny": {"text": ["a"], "target": ["b"]}}', ["a"]),
    ],
)
def test_odd_json(place, content, found):
    """Names are only names: nothing is opened by them."""
    place.write("data.json", content)
    if found is None:
        assert says(place.refuse(PREPARE), "data.json: not JSON")
    else:
        assert read_datasets(place.folder / "data.json")["train"]["text"] == found


@pytest.mark.parametrize("how", ["dictionary", "large", "plain", "no compression", "several groups", "NUL in CSV"])
def test_odd_tables(tmp_path, how):
    texts, path = ["a", "a", "é\0"], tmp_path / ("rows.csv" if "CSV" in how else "rows.parquet")
    kind = pa.large_string() if how == "large" else pa.string()
    columns = {"text": pa.array(texts, kind), "target": pa.array(texts)}
    if how == "dictionary":
        columns["text"] = columns["text"].dictionary_encode()
    if how == "NUL in CSV":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([("text", "target"), *zip(texts, texts, strict=True)])
    else:
        options = {"no compression": {"compression": "NONE"}, "several groups": {"row_group_size": 1}}
        path.write_bytes(parquet(pa.table(columns), use_dictionary=how != "plain", **options.get(how, {})))
    assert read_datasets(path) == {"train": {"text": texts, "target": texts}}


# ------------------------------------------------------------------------------------------------------------ at random

FAST = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "target", "train", "dev"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def read_or_refuse(path: Path) -> None:
    """Whatever the file holds: it is read, or a UserError of one line names it."""
    try:
        datasets = read_datasets(path)
        schema.check_trainable(datasets, str(path))
    except UserError as error:
        assert path.name in str(error)
        assert not PYTHON.search(str(error).replace(str(path), "")), error


@FAST
@given(content=st.binary(max_size=300), suffix=st.sampled_from(SUFFIXES))
def test_random_bytes(tmp_path, content, suffix):
    path = tmp_path / f"d{suffix}"
    path.write_bytes(content)
    read_or_refuse(path)


@FAST
@given(value=VALUES, suffix=st.sampled_from([".json", ".jsonl"]))
def test_random_json(tmp_path, value, suffix):
    path = tmp_path / f"d{suffix}"
    path.write_text(json.dumps(value), encoding="utf-8")
    read_or_refuse(path)


@FAST
@given(response=VALUES, logprobs=VALUES, text=st.text(max_size=3))
def test_random_answers_of_an_api(tmp_path, response, logprobs, text):
    path = tmp_path / "api.jsonl"
    answers = (response, {"choices": [{"text": text, "logprobs": logprobs}]})
    for each in (*answers, {"choices": [{"message": {"content": text}, "logprobs": {"content": [logprobs]}}]}):
        path.write_text(json.dumps({"text": text, "response": each}), encoding="utf-8")
        try:
            for row in ApiFile(path).rows("read"):
                for completion in row.completions:
                    read_tokens(completion)
        except UserError as error:
            assert str(error).startswith(f"{path}: line 1")


@FAST
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | VALUES.map(json.dumps).map(str.encode))
def test_random_yaml(tmp_path, content):
    (tmp_path / "e.yaml").write_bytes(content)
    try:
        load_experiments(tmp_path / "e.yaml")
    except UserError as error:
        assert "e.yaml" in str(error)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".arrow", ".safetensors", ".pt"])
def test_cut_anywhere(tmp_path, suffix):
    """A file that a full disk or a broken download has cut: read as far as it is whole, or refused."""
    whole = {
        ".json": json.dumps(GOOD).encode(),
        ".jsonl": ROW.encode() * 5,
        ".csv": b'text,target\r\n"a,\nb",c\r\n' * 3,
        ".parquet": PARQUET,
        ".arrow": arrow(PAIR),
        ".safetensors": safetensors(tensor(), bytes(4)),
        ".pt": saved({"a": torch.zeros(3)}),
    }[suffix]
    path = tmp_path / f"train{suffix}"
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        if suffix in (".safetensors", ".pt"):
            with pytest.raises(UserError, match=re.escape(str(path))):
                weights.read_state_dict(path)
        else:
            read_or_refuse(tmp_path if suffix == ".arrow" else path)
