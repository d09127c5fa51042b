"""--dry_run True: the report equals the run, nothing is written, and the same errors are found."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import slow
from tiny_runs import TINY, argv, ft_flags, gen_flags, kd_flags, names, read, rows, tree, weights

import ft_main
from src.config.cli import parse, run_script
from src.config.console import progress_bar
from src.config.errors import UserError
from src.config.experiments.schema import LossEntry
from src.config.flags.base import REPOSITORY
from src.config.flags.train import FineTuneArguments
from src.devices import memory as machine
from src.models.loading import is_encoder_decoder, load_config, load_tokenizer
from src.preflight import measure
from src.preflight.estimates import Memory, Needs, Work, disk_at_peak, work_in_epoch, work_of_phases
from src.preflight.sections import duration, memory_lines, plural, size, span, time_lines
from src.runs.description import data_fingerprint
from src.runs.folder import open_run
from src.storage.atomic import check_writable
from src.storage.locks import LOCK
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets
from src.training import checkpoints
from src.training.engine import Trainer
from src.training.phase import Phase
from src.training.state import RunState
from src.training.update import Updater
from tests.scripts.test_bad_input import MAINS, corrupt, flags_of, make_place, refused

DRY = ["--dry_run", "True"]

# ---------------------------------------------------------------------------------------------------------------- work


def config_of(**flags) -> FineTuneArguments:
    sizes = {"batch_size": 4, "max_gpu_batch_size": 2}
    return FineTuneArguments(output_dir="out", dataset_path="d.json", **{**sizes, **flags})


@pytest.mark.parametrize(
    ("every", "place", "left"),
    [
        (0.55, (0, 0), (3, 3)),  # 10 rows: 5 steps in windows of 2, 2 and 1; due every 2 steps and at the end
        (1.0, (0, 0), (3, 1)),
        (3.0, (0, 0), (3, 2)),  # step 3 lies inside a window: due at its end, 4
        (0.55, (2, 2), (2, 2)),
        (0.55, (2, 0), (2, 3)),  # stopped before the evaluation
        (0.55, (5, 4), (0, 1)),
        (0.55, (5, 5), (0, 0)),
    ],
)
def test_work_in_epoch(every, place, left):
    config = config_of(save_checkpoint_every_n_steps=every)
    assert work_in_epoch(config, 10, steps_done=place[0], evaluated=place[1]) == left


def data_of(**n_rows: int) -> TokenizedDatasets:
    return TokenizedDatasets({name: {"text": ["a"] * n} for name, n in n_rows.items()}, None)


PHASES = [Phase("distill", ("train_0", "train_1"), 3), Phase("fine-tune", ("ft",), 2, from_best=True)]


def test_work_of_phases():
    data = data_of(train_0=10, train_1=8, ft=3, dev=2, test=2)
    config = config_of(test_every_n_epochs=2)
    # train_0 has 3 updates and 3 evaluations, train_1 2 and 2, ft 1 and 1; tests after epochs 1 and 3 of 0 to 4
    assert work_of_phases(config, PHASES, data, RunState()) == [Work((3, 2, 3), 8, 1), Work((1, 1), 2, 1)]
    at = RunState(epoch=1, steps_done=2, evaluated=2)
    assert work_of_phases(config, PHASES, data, at) == [Work((1, 3), 4, 1), Work((1, 1), 2, 1)]
    # The last epoch is over, its test is there; the state of its last evaluation is continued.
    at = RunState(phase=1, epoch=3, phase_start=3, steps_done=2, evaluated=2)
    assert work_of_phases(config, PHASES, data, at) == [Work((0, 1), 1, 0)]


def test_work_without_dev_and_test():
    data = data_of(train_0=10, train_1=8, ft=3)
    works = work_of_phases(config_of(test_every_n_epochs=1), PHASES, data, RunState())
    assert works == [Work((3, 2, 3)), Work((1, 1))]


# ----------------------------------------------------------------------------------------------------- memory and disk


NEEDS = Needs(weights=100, gradients=100, optimizer=200, teacher=50)


CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_memory_lines():
    needs = Needs(weights=240_000_000, gradients=240_000_000, optimizer=480_000_000)
    assert memory_lines(Memory(needs, 2_860_000_000, available=16_000_000_000), config_of(), CPU) == [
        "about 2.86GB at the peak, of 16.0GB that this run can have (cpu)",
        "weights 240MB + gradients 240MB + optimizer 480MB + batches, program and data 1.90GB",
    ]
    assert memory_lines(Memory(needs, 2_860_000_000, available=2_000_000_000), config_of(), CPU)[0] == (
        "does not fit: about 2.86GB at the peak, and this run can have 2.00GB (cpu); try a smaller "
        "--max_gpu_batch_size, a smaller model, --gradient_checkpointing True, --optimizer adafactor"
    )


def test_memory_that_ran_out():
    memory = Memory(NEEDS, peak=700_000, available=9_000_000, ran_out=True)
    assert memory_lines(memory, config_of(), CUDA)[0] == (
        "does not fit: more than 700kB at the peak, and this run can have 9.00MB (cuda:0); try a smaller "
        "--max_gpu_batch_size, a smaller model, --gradient_checkpointing True, --optimizer adafactor, "
        "--mixed_precision bf16"
    )


@pytest.mark.parametrize(
    ("has_dev", "n_phases", "needed"),
    [(True, 1, 4 * 12), (True, 2, 5 * 12), (False, 1, 2 * 12 + 4), (False, 2, 3 * 12), (True, 0, 4)],
)
def test_disk_at_peak(has_dev, n_phases, needed):
    assert disk_at_peak(4, 8, has_dev=has_dev, n_phases=n_phases) == needed


@pytest.mark.parametrize(
    ("free", "line"),
    [(10**9, "checkpoints take up to {}; 1.00GB are free"), (10, "does not fit: {}; try another --output_dir")],
)
def test_the_disk(command, tmp_path, capsys, monkeypatch, free, line):
    monkeypatch.setattr(machine, "free_disk", lambda path: free)
    flags = command("ft", "t5")
    n = sum(tensor.numel() for tensor in weights(Path(flags[flags.index("--model_name") + 1])).values())
    needed = size(disk_at_peak(4 * n, 8 * n, has_dev=True, n_phases=1))
    what = needed if free > 10 else f"checkpoints take up to {needed}; 10.0B are free"
    assert dry_run("ft", flags, tmp_path, capsys)["disk"] == [line.format(what)]


@pytest.mark.parametrize("flags", [*slow({}), {"ft_steps_at_end": 2, "epochs": 4, "stop_training_after_n_epochs": 2}])
def test_a_run_takes_no_more_of_the_disk(tiny_models, rotation_path, tmp_path, monkeypatch, flags):
    """Measured wherever a checkpoint has just been written; what is not weights or optimizer is small."""
    taken = []
    save = checkpoints.save_checkpoint

    def measured(*args) -> None:
        save(*args)
        files = [file for file in out.rglob("*") if file.name in ("model.safetensors", "optimizer.pt")]
        taken.append(sum(file.stat().st_size for file in files))

    monkeypatch.setattr(checkpoints, "save_checkpoint", measured)
    out = tmp_path / "out"
    better = {"metric_for_best_model": "nll", "greater_is_better": False}
    MAINS["kd"](kd_flags(tiny_models["t5"], rotation_path, out, **better, **flags))
    n = sum(tensor.numel() for tensor in weights(out / "model").values())
    expected = disk_at_peak(4 * n, 8 * n, has_dev=True, n_phases=1 + bool(flags))
    assert 0.9 * expected < max(taken) < 1.3 * expected  # names and headers, where models are this small


def test_what_is_free_where_a_folder_will_be(tmp_path):
    assert machine.free_disk(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d").write_text("12345")
    (tmp_path / "e").write_text("123")
    assert machine.size_of([tmp_path / "c", tmp_path / "e"]) == 8


def test_the_peak_of_a_cpu_is_seen():
    """Memory that is there for a moment only."""
    code = (
        "import torch; from src.devices import memory\n"
        "device = torch.device('cpu'); before = memory.held(device)\n"
        "assert torch.ones(50_000_000).sum() == 50_000_000\n"
        "print(memory.peak(device) - before, memory.within_reach(device) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    more, free = map(int, done.stdout.split())
    assert 150_000_000 < more < 400_000_000
    assert free > 0


def test_the_memory_of_a_gpu(monkeypatch):
    """What others hold there is neither ours nor free; what torch has reserved is ours."""
    device = torch.device("cuda", 0)
    for name, value in {
        "mem_get_info": (30, 80), "memory_reserved": 20, "memory_allocated": 15, "max_memory_reserved": 45,
        "reset_peak_memory_stats": None, "synchronize": None, "get_device_name": "A GPU",
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert (machine.held(device), machine.within_reach(device)) == (15, 50)
    machine.reset_peak(device)
    machine.wait_for(device)
    assert machine.peak(device) == 45
    assert machine.name_of(device) == "A GPU (cuda:0)"


def test_what_lack_of_memory_looks_like():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert machine.is_out_of_memory(caught.value)
    assert machine.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not machine.is_out_of_memory(RuntimeError("size mismatch"))


# ------------------------------------------------------------------------------------------------------ time and words


def test_numbers_in_words():
    assert [duration(seconds) for seconds in (0.4, 99, 12_000, 190_000)] == [
        "0:00:00", "0:01:39", "3:20:00", "2 days, 4:46:40"
    ]  # fmt: skip
    assert [size(n) for n in (340_400, 999_400, 999_600, 2_449_000, 17e9, 1.2e12)] == [
        "340kB", "999kB", "1.00MB", "2.45MB", "17.0GB", "1.20TB"
    ]  # fmt: skip
    assert [span([7000, 7000]), span([7000, 6990, 6999])] == ["7,000", "6,990 to 7,000"]
    assert [plural(1, "epoch"), plural(1200, "epoch"), plural(2, "batch", "batches")] == [
        "1 epoch", "1,200 epochs", "2 batches"
    ]  # fmt: skip


def test_time_lines():
    assert time_lines([(36_000, "distill update", 0.3), (200, "dev evaluation", 6), (0, "test evaluation", 9)]) == [
        "about 3:20:00",
        "36,000 distill updates of 0.300 s: 3:00:00",
        "200 dev evaluations of 6.000 s: 0:20:00",
    ]


@pytest.mark.parametrize(
    ("seconds", "made"),  # of every step, and the steps that are made: the largest, then those nearest to the mean, 8
    [(0.01, [2, 0, 3, 1, 5, 4, 2]), (0.6, [2, 0, 3]), (31.0, [2, 0])],
)
def test_quick_steps_are_made_more_often(monkeypatch, seconds, made):
    steps = []
    monkeypatch.setattr(measure, "_seconds", lambda step, device: step() or seconds)
    times = measure._time_typical(steps.append, [8, 9, 16, 8, 3, 4], torch.device("cpu"))
    assert steps == made
    assert times == dict.fromkeys(made[1:], seconds)


def test_bars_leave_no_threads_behind():
    """tqdm watches the bars of each class by a thread of its own; a long run shows thousands of bars."""
    progress_bar(1, "first", "steps").close()
    before = threading.active_count()
    for _ in range(5):
        with progress_bar(1, "more", "steps") as bar:
            bar.update()
    assert threading.active_count() == before


def test_a_mean_update_of_a_phase(monkeypatch):
    """A third of each loss; of b's updates a quarter has labels of the student, of c's all."""
    losses = (
        LossEntry(name="a", forward_weight=1.0),
        LossEntry(name="b", logits_weight=1.0, generate_labels_weight=0.25),
        LossEntry(name="c", logits_weight=1.0, generate_labels_weight=1.0),
    )
    seconds = {("a", 0.0): 3.0, ("b", 0.0): 12.0, ("b", 1.0): 48.0, ("c", 1.0): 60.0}
    monkeypatch.setattr(
        measure,
        "_time_update",
        lambda trainer, phase, split: seconds[phase.losses[0].name, phase.losses[0].generate_labels_weight],
    )
    with progress_bar(3, "steps", "steps") as bar:
        phase = Phase("distill", ("train",), 1, losses=losses)
        assert measure._time_phase(None, phase, None, bar) == pytest.approx((3 + 0.75 * 12 + 0.25 * 48 + 60) / 3)
        assert bar.n == 3


# -------------------------------------------------------------------------------------------------------------- scripts


def stored_columns(model: str, columns: dict[str, list[str]]) -> dict:
    """The split with log-probabilities of an API that knows no token but the target's."""
    kind = is_encoder_decoder(load_config(model))
    labels = Preprocessor(load_tokenizer(model), kind, 64, 64).encode_labels(columns["target"]).tokens
    tokens = [[[int(token)] for token in labels[row]] for row in range(len(labels))]
    return {**columns, "tokens": tokens, "logits": [[[0.0] for _ in row] for row in tokens]}


@pytest.fixture
def command(tiny_models, rotation_path, tmp_path):
    """The command line of a script for a family; everything lies in tmp_path, and is small."""

    def make(script: str, family: str, **flags) -> list[str]:
        models, data, out = tiny_models[family], tmp_path / "data.json", tmp_path / "out"
        datasets = read(Path(rotation_path))
        if script == "stored":
            for name in ("train_0", "train_1", "train_2"):
                datasets[name] = stored_columns(models["student"], datasets[name])
        data.write_text(json.dumps(datasets), encoding="utf-8")
        closing = {"epochs": 4, "stop_training_after_n_epochs": 3, "ft_steps_at_end": 2}
        if script == "ft":
            return ft_flags(models["student"], data, out, **{"epochs": 3, "test_every_n_epochs": 2, **flags})
        if script == "kd":
            return kd_flags(models, data, out, **{**closing, **flags})
        if script == "stored":
            named = {"student_name": models["student"], "experiment_config_key": "logits_kd"}
            return argv({**TINY, **named, "dataset_path": data, "output_dir": out, **closing, **flags})
        if script == "simulate":
            return gen_flags(models["student"], data, out, n_completions=2, **flags)
        flags = {"generation_type": "sampling", "num_return_sequences": 3, **flags}
        return gen_flags(models["student"], data, out, **flags)

    return make


def dry_run(script: str, command: Sequence[str], root: Path, capsys) -> dict[str, list[str]]:
    """The sections of the report; the disk is as it was."""
    before = tree(root)
    capsys.readouterr()
    assert run_script(MAINS[script], [*command, *DRY]) == 0
    assert tree(root) == before
    printed = capsys.readouterr().out
    return sections_of(printed.partition("\n\n")[2])


def sections_of(printed: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in printed.splitlines():
        name = line[: line.index(" ")]
        if name:
            sections[name] = last = []
        last.append(line[len(name) :].strip())
    return sections


def number(pattern: str, lines: Sequence[str]) -> int:
    """The number that stands for `#` in the one line that has the rest of the pattern."""
    found = [match[1] for line in lines if (match := re.search(pattern.replace("#", r"([\d,]+)"), line))]
    assert len(found) == 1, (pattern, lines)
    return int(found[0].replace(",", ""))


@pytest.mark.parametrize(
    ("script", "family"),
    [
        ("kd", "t5"),
        ("stored", "gpt2"),
        *slow(("ft", "t5"), ("ft", "gpt2"), ("kd", "gpt2"), ("stored", "t5")),
    ],
)
def test_the_numbers_of_the_report_are_those_of_the_run(command, tmp_path, capsys, monkeypatch, script, family):
    flags = command(script, family)
    sections = dry_run(script, flags, tmp_path, capsys)
    assert list(sections) == ["run", "models", "data", "work", "disk", "memory", "time"]
    updates = []
    update = Updater.update
    monkeypatch.setattr(Updater, "update", lambda self, *given: updates.append(1) or update(self, *given))
    assert run_script(MAINS[script], flags) == 0
    scores = rows(tmp_path / "out")
    evaluated = [row["split"] for row in scores]
    assert number("# of dev", sections["work"]) == evaluated.count("dev")
    assert number("# of test", sections["work"]) == evaluated.count("test")
    phases = ["fine-tune"] if script == "ft" else [r"distill \(logits_kd\)", "fine-tune"]
    in_all = [number(f"^{phase}: .*, # in all", sections["work"]) for phase in phases]
    assert in_all == ([8] if script == "ft" else [8, 4])  # 3 + 3 + 2, and 2 + 2
    assert sum(in_all) == len(updates)
    epochs = [number(f"^{phase}: # epoch", sections["work"]) for phase in phases]
    assert sum(epochs) == len({row["epoch"] for row in scores if row["split"] == "dev"}) == (3 if script == "ft" else 5)
    for phase, n in zip(phases, in_all, strict=True):
        assert number(f"^# {phase} updates of ", sections["time"]) == n
    assert number("^# dev evaluations of ", sections["time"]) == evaluated.count("dev")
    losses = rows(tmp_path / "out", "train_losses.csv")
    assert float(losses[-1]["learning_rate"]) == 0 if script == "ft" else float(losses[-1]["learning_rate"]) >= 0
    nominal = 8 if script == "ft" else 11 + 4  # of 3 epochs; of 4, and of 2 of the closing phase
    assert number("falls to 0 at update #", sections["work"]) == nominal


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_lengths_by_hand(command, tmp_path, capsys, family, tiny_tokenizers):
    """Of targets of at most 8 tokens, EOS included, and inputs of at most 9."""
    flags = command("ft", family, max_input_length=9)
    table = dry_run("ft", flags, tmp_path, capsys)["data"]
    tokenizer, eos = tiny_tokenizers[family], 1 if family == "t5" else 0
    for split, columns in read(tmp_path / "data.json").items():
        if not split.startswith(("train_0", "dev", "test")):
            continue
        inputs = [len(tokenizer(text)["input_ids"]) for text in columns["text"]]
        before = "" if family == "t5" else " "
        targets = [
            len(tokenizer(before + text, add_special_tokens=False)["input_ids"]) + 1 for text in columns["target"]
        ]
        shares = [
            sum(length > limit for length in lengths) / len(lengths) for lengths, limit in ((inputs, 9), (targets, 8))
        ]
        (line,) = (line for line in table if line.startswith(f"{split} "))
        cells = line.replace(" %", "%").split()
        assert eos in (0, 1)
        assert cells == [
            split, *[str(len(inputs))] * 2,
            f"{sum(inputs) / len(inputs):.1f}", str(max(inputs)), f"{100 * shares[0]:.0f}%",
            f"{sum(targets) / len(targets):.1f}", str(max(targets)), f"{100 * shares[1]:.0f}%", "0",
        ]  # fmt: skip
    assert "not looked at: 2 splits of 8 to 9 rows" in table
    assert "not used: ft, unlabeled" in table
    flags = command("ft", family, max_input_length=9, max_labels_length=1)
    table = dry_run("ft", flags, tmp_path, capsys)["data"]
    assert [line.split()[-1] for line in table[1:5]] == ["10", "4", "3", "4"]


@pytest.mark.parametrize("family", ["t5", *slow("gpt2")])
@pytest.mark.parametrize("script", ["gen", "simulate"])
def test_the_numbers_of_writing(command, tmp_path, capsys, script, family):
    """41 inputs but ft and dev_ppl (gen) or dev_ppl alone; three targets each, or two of what is trained on."""
    flags = command(script, family)
    sections = dry_run(script, flags, tmp_path, capsys)
    assert list(sections) == ["run", "model", "data", "work", "memory", "time"]
    assert run_script(MAINS[script], flags) == 0
    if script == "gen":
        made = read(tmp_path / "out" / "generated_datasets.json")
        n_targets = sum(len(columns["generated"]) for columns in made.values())
    else:
        made = read(tmp_path / "out" / "api_completions.json")
        n_targets = sum(len(columns["prediction"]) for columns in made.values())
    assert number("^# targets, ", sections["work"]) == n_targets == (120 if script == "gen" else 78)
    assert number("^# targets of ", sections["time"]) == n_targets
    assert number(" # batches of up to 4 inputs", sections["work"]) == (12 if script == "gen" else 14)
    assert [line.split()[0] for line in sections["data"][1:-1] if not line.startswith("not ")] == list(made)


def test_models_are_described(fresh_accelerator, command, tmp_path, capsys, tiny_models):
    sections = dry_run("kd", command("kd", "t5", teacher_dtype="bf16", mixed_precision="bf16"), tmp_path, capsys)
    student, teacher, tokenizer, device = sections["models"]
    folder = tiny_models["t5"]["student"]
    n = sum(tensor.numel() for tensor in weights(Path(folder)).values()) / 1e6
    assert student == f"{folder}: t5, {n:.2f} M parameters, vocabulary of 96, float32"
    assert re.fullmatch(r"teacher .*: t5, [\d.]+ M parameters, vocabulary of 96, bfloat16", teacher)
    assert tokenizer == "tokenizer of 96 tokens"
    assert device == "on cpu, 1 thread, forward passes in bf16"


@pytest.mark.parametrize(
    ("key", "shares"),  # of the updates whose labels the student writes
    [
        ("logits_kd_student_gens", {1.0}),
        ("logits_kd_student_gens_co_teaching", {0.0, 1.0}),
        ("attention_kd_student_gens", {0.0, 1.0}),
        ("noisy_kd", {0.0}),
        ("finetuning", {0.0}),
    ],
)
@pytest.mark.parametrize("family", ["gpt2", *slow("t5")])
def test_experiments(command, tmp_path, capsys, monkeypatch, key, shares, family):
    """Where the student writes half of the labels, updates with and without are timed."""
    written = []
    relabel = Updater._student_targets
    monkeypatch.setattr(
        Updater,
        "_student_targets",
        lambda self, entry, *given: written.append(entry) or relabel(self, entry, *given),
    )
    flags = command("kd", family, experiment_config_key=key, ft_steps_at_end=None)
    sections = dry_run("kd", flags, tmp_path, capsys)
    assert {entry.generate_labels_weight for entry in written} == shares
    assert any(line.startswith("teacher ") for line in sections["models"]) is (key != "finetuning")


@pytest.mark.parametrize("script", ["ft", "kd", "stored"])
def test_only_a_test(command, tmp_path, capsys, script):
    """--do_train False: nothing to learn, no teacher to load."""
    sections = dry_run(script, command(script, "t5", do_train=False), tmp_path, capsys)
    assert sections["work"] == ["evaluations: 1 of test"]
    assert not any("teacher" in line for line in sections["models"])
    assert not any("gradients" in line for line in sections["memory"])
    assert number("^# test evaluation of", sections["time"]) == 1
    assert [line.split()[0] for line in sections["data"][1:2]] == ["test"]


@pytest.mark.slow
def test_nothing_is_written_anywhere(command, tmp_path):
    """In a process of its own: neither at home, nor in a cache, a temporary folder or where it was started."""
    for name in ("home", "tmp", "cache", "here"):
        (tmp_path / name).mkdir()
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "cache" / "hub"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    flags = command("kd", "t5")
    before = elsewhere_than_in(tmp_path / "tmp")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "kd_main.py"), *flags, *DRY],
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert elsewhere_than_in(tmp_path / "tmp") == before
    assert names(tmp_path / "tmp") == set()  # Python itself tries out whether it can be written
    assert "run " in done.stdout
    lines = [line for line in done.stderr.splitlines() if "from kernels-community" not in line]  # bitsandbytes
    assert lines == []


def elsewhere_than_in(folder: Path) -> dict[str, tuple]:
    return {name: stat for name, stat in tree(folder.parent).items() if name != folder.name}


# ------------------------------------------------------------------------------------------------------- what it says


def test_of_a_run_that_is_finished(command, tmp_path, capsys):
    flags = command("ft", "t5", epochs=1)
    ft_main.main(flags)
    ft_main.main(flags)
    capsys.readouterr()
    ft_main.main(flags)
    last, before = capsys.readouterr().out, tree(tmp_path)
    assert last.startswith("\nscores of the best checkpoint")
    ft_main.main([*flags, *DRY])
    assert tree(tmp_path) == before
    assert capsys.readouterr().out.endswith(last)  # the command would only print its scores
    sections = dry_run("ft", [*flags, "--overwrite", "True"], tmp_path, capsys)
    assert sections["run"] == [f"{tmp_path / 'out'}: a new run; --overwrite True removes the former one"]
    assert "are this folder's already" in sections["disk"][0]
    assert run_script(ft_main.main, [*flags, "--learning_rate", "0.5", *DRY]) == 2
    assert "--learning_rate was 0.01, is 0.5" in capsys.readouterr().err


def test_of_texts_that_are_written(command, tmp_path, capsys):
    flags = command("gen", "t5")
    MAINS["gen"](flags)
    before = tree(tmp_path)
    capsys.readouterr()
    MAINS["gen"]([*flags, *DRY])
    assert f"written already: {tmp_path / 'out' / 'generated_datasets.json'}" in capsys.readouterr().out
    assert tree(tmp_path) == before


def test_of_a_new_run(command, tmp_path, capsys):
    flags = command("ft", "t5")
    assert dry_run("ft", flags, tmp_path, capsys)["run"] == [f"{tmp_path / 'out'}: a new run"]
    (tmp_path / "out").mkdir()
    assert dry_run("ft", flags, tmp_path, capsys)["run"] == [f"{tmp_path / 'out'}: a new run"]


def test_of_a_run_that_goes_on_from_another(command, tmp_path, capsys):
    former = tmp_path / "former"
    ft_main.main(command("ft", "t5", output_dir=former, epochs=1, keep_checkpoint_after_test=True))
    (folder,) = (path for path in former.glob("epoch*") if not path.name.endswith("__last"))
    state = read(folder / "run_state.json")["run"]
    sections = dry_run("ft", command("ft", "t5", checkpoint_path=folder), tmp_path, capsys)
    assert sections["run"] == [
        f"{tmp_path / 'out'}: continues from {folder}, epoch {state['epoch']}, step {state['steps_done']}"
    ]


def test_patience_and_warm_up(command, tmp_path, capsys):
    flags = command("ft", "t5", batch_size=1, max_gpu_batch_size=1, epochs=12, n_patience_epochs=3)
    work = dry_run("ft", flags, tmp_path, capsys)["work"]
    # 4 × (10 + 9 + 8) = 108 updates
    assert "learning rate: warm-up over 8 updates, falls to 0 at update 108" in work
    assert "less where 3 epochs bring no better score on dev" in work


def test_of_long_splits_some_rows_are_looked_at(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("src.preflight.measure.ROWS", 4)
    monkeypatch.setattr("src.preflight.sections.ROWS", 4)
    data = dry_run("ft", command("ft", "t5"), tmp_path, capsys)["data"]
    (line,) = (line for line in data if line.startswith("train_0 "))
    assert line.split()[1:3] == ["10", "4"]  # rows 0, 3, 6, 9
    (line,) = (line for line in data if line.startswith("test "))
    assert line.split()[1] == line.split()[2]


def test_a_glimpse_is_of_rows_all_over_the_split(tiny_tokenizers):
    made = Preprocessor(tiny_tokenizers["t5"], True, 32, 8)
    words = ["a", "cat", "dog", "bird", "red", "blue", "old"]
    data = TokenizedDatasets({"train": {"text": words, "target": words[::-1]}}, made)
    some = data.glimpse("train", 3)
    chosen = [0, 3, 6]
    assert [some.inputs[i].tolist() for i in some.input_of_row] == [
        tiny_tokenizers["t5"](words[i])["input_ids"] for i in chosen
    ]
    assert len(data.glimpse("train", 7)) == len(data.split("train")) == 7
    assert len(data.glimpse("train", 3)) == 7  # it is there now


@pytest.mark.parametrize("compiles", [False, True])
def test_nothing_is_compiled(command, tmp_path, capsys, monkeypatch, compiles):
    """It would take minutes, and write files."""

    def backend(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("src.models.compiled.BACKEND", backend)
    time = dry_run("ft", command("ft", "t5", compile=compiles), tmp_path, capsys)["time"]
    assert ("timed without --compile True, whose steps are faster" in time) is compiles


@pytest.mark.parametrize("script", ["ft", "gen"])
def test_memory_that_runs_out_in_a_step(command, tmp_path, capsys, monkeypatch, script):
    def runs_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Trainer, "try_update", runs_out)
    monkeypatch.setattr("src.decoding.generator.TargetGenerator.generate", runs_out)
    sections = dry_run(script, command(script, "t5"), tmp_path, capsys)
    smaller = "--max_gpu_batch_size" if script == "ft" else "--batch_size"
    assert sections["memory"][0].startswith("does not fit: more than ")
    assert f"; try a smaller {smaller}, a smaller model" in sections["memory"][0]
    assert sections["time"] == ["not known: there is not enough memory for a step"]


def test_memory_that_is_known_to_be_too_small(command, tmp_path, capsys, monkeypatch):
    """No step is tried: on a CPU the system would end the process."""
    monkeypatch.setattr(machine, "within_reach", lambda device: 1000)
    monkeypatch.setattr(Trainer, "try_update", None)
    sections = dry_run("kd", command("kd", "t5"), tmp_path, capsys)
    assert sections["memory"][0].startswith("does not fit: more than ")
    assert "--teacher_dtype bf16" in sections["memory"][0]


def test_another_error_of_a_step_is_no_lack_of_memory(command, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(Trainer, "try_update", fails)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ft_main.main([*command("ft", "t5"), *DRY])


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def place(tmp_path, dropout_models) -> Path:
    return make_place(tmp_path, dropout_models)


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("ft", {"batchsize": 3}),
        ("kd", {"do_train": "maybe"}),
        ("ft", {"metric_for_best_model": "rouge"}),
        ("ft", {"output_dir": "@/data.json"}),
        ("gen", {"output_dir": "@/data.json/out"}),
        ("ft", {"task_prompt": "modern: " * 30}),
        ("kd", {"dataset_path": "@/none.json"}),
        ("gen", {"split_for_generation": "trian"}),
        ("simulate", {"model_name": "@/none"}),
        ("gen", {"checkpoint_path": "@/none.pt"}),
        ("kd", {"teacher_name": "@/gpt2_teacher"}),
        ("kd", {"experiment_config_key": "logit_kd"}),
        ("stored", {}),
        ("ft", {"checkpoint_path": "@/t5_teacher"}),  # found when the weights are read
        ("kd", {"teacher_state_dict_path": "@/t5_student"}),
        ("ft", {"mixed_precision": "fp8"}),
    ],
)
def test_a_wrong_command_is_refused_alike(place, capsys, script, flags):
    command = flags_of(script, place, **flags)
    assert refused(script, [*command, *DRY], place, capsys) == refused(script, command, place, capsys)


@pytest.mark.parametrize("script", ["ft", "gen", "kd"])
def test_corrupt_weights_are_refused_alike(place, capsys, script):
    corrupt(place / "t5_student" / "model.safetensors")
    command = flags_of(script, place)
    assert refused(script, [*command, *DRY], place, capsys) == refused(script, command, place, capsys)


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "eval_scores.csv").write_text("split,epoch\n"),
        lambda out: (out / "train_losses.csv").unlink(),
        lambda out: (out / "eval_generations.jsonl").write_text("{}\n{\n{}\n"),
        lambda out: corrupt(next(out.glob("state/*")) / "optimizer.pt"),
        lambda out: [shutil.rmtree(folder) for folder in out.glob("epoch*")],
        lambda out: (out / "run.json").write_text("{"),
    ],
)
def test_a_damaged_run_is_refused_alike(place, capsys, monkeypatch, damage):
    command = flags_of("ft", place, epochs=3)
    with monkeypatch.context() as patch:
        save, saved = Trainer.save_state, []

        def killed(self: Trainer) -> None:
            save(self)
            saved.append(1)
            if len(saved) == 3:
                raise KeyboardInterrupt

        patch.setattr(Trainer, "save_state", killed)
        assert run_script(ft_main.main, command) == 130
    damage(place / "out")
    assert refused("ft", [*command, *DRY], place, capsys) == refused("ft", command, place, capsys)


def test_a_run_at_work_is_not_disturbed(command, tmp_path, capsys):
    """It has the folder; a dry run says so in one line and touches nothing, the lock neither."""
    flags = command("ft", "t5")
    config = parse(FineTuneArguments, flags)
    data = {"dataset_path": data_fingerprint(config.dataset_path, {})}
    run = open_run(config, data)
    with run.held():
        run.begin(anew=True)
        line = refused("ft", [*flags, *DRY], tmp_path, capsys)
        assert line == refused("ft", flags, tmp_path, capsys)
        assert f"{tmp_path / 'out'}: another run is at work there" in line
        before = tree(tmp_path)
        assert run_script(ft_main.main, [*flags, *DRY]) == 2
        assert tree(tmp_path) == before
        assert run.lock.is_acquired
        assert (tmp_path / "out" / LOCK).exists()
    assert run_script(ft_main.main, [*flags, *DRY]) == 0


def test_the_lock_of_a_killed_run_is_no_run(command, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).touch()
    dry_run("ft", command("ft", "t5"), tmp_path, capsys)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """Everybody may write everywhere who runs these tests as root: what the system says is made up."""
    check_writable(tmp_path / "a" / "b")
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(UserError, match=r"a/b: cannot be written: Permission denied$"):
        check_writable(tmp_path / "a" / "b")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]
