"""Damage every file that a script reads: the script refuses it in one line that names it, or the damage is harmless.

A file is truncated, gets other bytes, or another value somewhere (JSON, YAML, header of weights). Runs are forked.
`python -m tests.scripts.test_fuzz --trials 1000` also lists what is accepted; a person has to read that list.
"""

import argparse
import json
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

import ft_main
import prepare_datasets_main
from datasets import Dataset
from src.models.folders import write_model_folder
from src.models.new_models import build_from_scratch
from src.models.new_tokenizers import train_tokenizer
from tests.conftest import ALL_LETTERS, VOCAB_SIZE, tiny_sentences, tiny_sizes
from tests.faults import Case, Ended, Kill, Whole, differences, make_cases, outcome, run, run_whole
from tests.tiny_runs import TINY, argv, snapshot

MEMORY = 4 * 2**30  # bytes of addresses that a run may take
MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
PYTHON = re.compile(
    r"Traceback|[A-Z]\w+(Error|Exception)\b|NoneType|has no attribute|object at 0x|<class|not (subscriptable|iterable)"
)


# ---------------------------------------------------------------------------------------------------------- what is run


@dataclass(frozen=True)
class Target:
    """A script's command and the files that it reads. stopped: the folder of a run, which the command goes on with."""

    case: Case
    files: tuple[Path, ...]
    stopped: Path | None = None


def make_targets(root: Path) -> dict[str, Target]:
    """Every script on files below `root`, and three runs that were stopped."""
    cases = make_cases(root)
    _write_others(root)
    student, teacher, t5 = ([root / role / name for name in MODEL] for role in ("student", "teacher", "t5"))
    original, rotation = root / "original.json", root / "rotation.json"

    def prepare(path: str) -> Case:
        flags = {"dataset_name": "", "dataset_path": root / path}
        return Case("prepare", prepare_datasets_main.main, lambda out: argv({**flags, "output_dir": out}))

    flags = {**TINY, "epochs": 1, "dataset_path": original, "model_name": root / "t5"}
    fine_tune = Case("ft-t5", ft_main.main, lambda out: argv({**flags, "output_dir": out}))
    saved = root / "saved"
    targets = {
        "create-student": Target(cases["create-student"], (original,)),
        "generations": Target(cases["prepare-generations"], (original, root / "generated.json")),
        "logits": Target(cases["prepare-logits"], (root / "api" / "api_completions.jsonl", *student[:4])),
        "jsonl": Target(prepare("rows.jsonl"), (root / "rows.jsonl",)),
        "csv": Target(prepare("rows.csv"), (root / "rows.csv",)),
        "parquet": Target(prepare("rows.parquet"), (root / "rows.parquet",)),
        "arrow": Target(prepare("arrow"), (root / "arrow" / "train.arrow",)),
        "saved": Target(prepare("saved"), tuple(sorted(saved.iterdir()))),
        "ft": Target(cases["ft"], (rotation, *student)),
        "ft-t5": Target(fine_tune, tuple(t5)),
        "gen": Target(cases["gen-beam"], (rotation, *teacher)),
        "simulate": Target(cases["simulate"], (original, *teacher)),
        "kd": Target(cases["kd"], (root / "students.yaml", *teacher)),
        "kd-with-logits": Target(cases["kd-with-logits"], tuple(sorted((root / "stored.arrow").iterdir()))),
    }
    at = {
        "ft": Kill(call=1, at=r"rename .*/state/\.2_", moment="after", signal=signal.SIGTERM),
        "kd": Kill(call=1, at=r"rename .*/state/\.5_", moment="after", signal=signal.SIGTERM),
        "gen-sampling": Kill(call=3, at=r"fsync .*partial", signal=signal.SIGTERM),
    }
    for name, kill in at.items():
        out = root / f"stopped-{name}" / "out"
        out.parent.mkdir()
        if run(cases[name], out, root / "log", kill).status != 143:
            raise RuntimeError(f"{name}: not stopped")
        files = tuple(sorted(file for file in out.rglob("*") if file.is_file() and file.stat().st_size))
        targets[f"stopped {name}"] = Target(cases[name], files, out)
    return targets


def _write_others(root: Path) -> None:
    """A T5 model, and a dataset in every form."""
    tokenizer = train_tokenizer([*tiny_sentences(200, seed=0), ALL_LETTERS], VOCAB_SIZE, family="t5")
    model = build_from_scratch("t5", tiny_sizes(tokenizer, d_model=16, n_layers=1), seed=0)
    write_model_folder(root / "t5", model, tokenizer, "A test's.\n")
    texts = tiny_sentences(6, seed=3)
    rows = pa.table({"text": texts, "target": texts[::-1]})
    lines = [json.dumps(row) + "\n" for row in rows.to_pylist()]
    (root / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    cells = [f'"{a}",{b}\r\n' for a, b in zip(texts, texts[::-1], strict=True)]
    (root / "rows.csv").write_text("text,target\r\n" + "".join(cells), encoding="utf-8", newline="")
    pyarrow.parquet.write_table(rows, root / "rows.parquet")
    (root / "arrow").mkdir()
    with pa.ipc.new_file(str(root / "arrow" / "train.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    Dataset.from_dict(rows.to_pydict()).save_to_disk(str(root / "saved"))


# ------------------------------------------------------------------------------------------------------ what is spoilt

WRONG: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 10**6, 2**70, 0.5, -1e308, "", "x", "a\0b", "\ud800", "../x", "9" * 5000,
    [], [None], [[]], {}, {"a": 1}, {"": None},
)  # fmt: skip


def spoilt(file: Path, content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Without end: what was done to the file, and its content then."""
    while True:
        kinds = [_cut, _other_bytes]
        kinds += {".json": [_other_value] * 4, ".yaml": [_other_value] * 4, ".jsonl": [_other_line] * 2}.get(
            file.suffix, []
        )
        kinds += [_other_header] * 2 if file.suffix == ".safetensors" else []
        how, changed = rng.choice(kinds)(content, rng)
        if changed != content:
            yield how, changed


def _cut(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    at = rng.randrange(20)
    return f"cut at {at}/20", content[: len(content) * at // 20]


def _other_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    changed = bytearray(content)
    start, length = rng.randrange(len(content)), rng.choice([1, 1, 1, 4, 16])
    end = min(len(content), start + length)
    kind = rng.choice(["flipped", "zeros", "random", "gone", "twice"])
    if kind == "flipped":
        changed[start] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        changed[start:end] = bytes(end - start)
    elif kind == "random":
        changed[start:end] = rng.randbytes(end - start)
    elif kind == "gone":
        del changed[start:end]
    else:
        changed[start:start] = changed[start:end]
    return f"bytes {start} to {end} {kind}", bytes(changed)


def _other_value(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    how, value = _with_other_value(json.loads(content), rng)
    return how, json.dumps(value).encode()


def _other_line(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    if rng.random() < 0.3:
        kind = rng.choice(["gone", "twice", "first"])
        changed = {"gone": [], "twice": [lines[number]] * 2, "first": []}[kind]
        first = [lines[number]] if kind == "first" else []
        return f"line {number} {kind}", b"".join([*first, *lines[:number], *changed, *lines[number + 1 :]])
    how, lines[number] = _other_value(lines[number], rng)
    return f"line {number}: {how}", b"".join([*lines[:number], lines[number] + b"\n", *lines[number + 1 :]])


def _other_header(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    (length,) = struct.unpack_from("<Q", content)
    if rng.random() < 0.1:
        return "another length", struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, 2**63])) + content[8:]
    how, header = _other_value(content[8 : 8 + length], rng)
    return how, struct.pack("<Q", len(header)) + header + content[8 + length :]


def _with_other_value(document: Any, rng: random.Random) -> tuple[str, Any]:
    """A document with another value, or without one, at one of its places; short ways to it are likelier."""
    place: list[Any] = []
    inner = document
    while isinstance(inner, dict | list) and inner and (not place or rng.random() < 0.8):
        place.append(rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner))))
        inner = inner[place[-1]]
    if not place or rng.random() < 0.02:
        value = rng.choice(WRONG)
        return f"all is {value!r:.40}", value
    outer = document
    for key in place[:-1]:
        outer = outer[key]
    if rng.random() < 0.2:
        del outer[place[-1]]
        return f"{place} gone", document
    outer[place[-1]] = value = rng.choice(WRONG)
    return f"{place} is {value!r:.40}", document


# --------------------------------------------------------------------------------------------------------------- judged


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def judge(ended: Ended, file: Path, root: Path) -> str | None:
    """What is wrong with the end of a run on a spoilt file; None if it is well."""
    if ended.place == "hangs":
        return "hangs"
    if ended.status not in (0, 2):
        return f"status {ended.status}: {(ended.errors.splitlines() or ['nothing said'])[-1]:.300}"
    if "Traceback" in ended.errors or "Exception ignored" in ended.errors:
        return f"a traceback: {ended.errors:.300}"
    if ended.status == 0:
        return None
    lines = [line for line in ended.errors.splitlines() if "_main.py: error: " in line]
    if len(lines) != 1:
        return f"{len(lines)} lines: {ended.errors:.300}"
    said = lines[0].partition("error: ")[2]
    if len(said) > 1_000 or PYTHON.search(said):
        return f"not for a user: {said:.300}"
    if said.startswith("non-finite ") and file.suffix == ".safetensors":  # weights that are finite, and no others
        return None
    names = {file.name, file.stem, file.parent.name, *({"tokenizer"} if file.name.startswith("tokenizer") else ())}
    return None if any(name in said for name in names) else f"does not name it: {said:.300}"


@dataclass(frozen=True)
class Trial:
    """One spoilt file: what was done, how the run ended, what is wrong (None: nothing)."""

    file: str
    how: str
    ended: Ended
    wrong: str | None
    note: str = ""


def try_target(target: Target, root: Path, rng: random.Random, n_trials: int, whole: Whole | None) -> Iterator[Trial]:
    """whole: the undisturbed run that a stopped one should end as."""
    pristine = root / "pristine"
    shutil.rmtree(pristine, ignore_errors=True)
    if target.stopped is not None:
        shutil.copytree(target.stopped, pristine)
    for _ in range(n_trials):
        file = rng.choice(target.files)
        content = file.read_bytes()
        how, changed = next(spoilt(file, content, rng))
        out = target.stopped or root / "trial" / "out"
        out.parent.mkdir(exist_ok=True)
        file.write_bytes(changed)
        before = snapshot(out.parent)
        ended = run(target.case, out, root / "log", before=limit_memory)
        wrong, note = judge(ended, file, root), ""
        # What weights compute is known when they do.
        is_known_early = not any(word in ended.errors for word in ("computes NaN", "error: non-finite "))
        if wrong is None and ended.status == 2 and is_known_early and snapshot(out.parent) != before:
            wrong = f"{differences(before, snapshot(out.parent))[:3]} after: {ended.errors:.200}"
        if ended.status == 0 and whole is not None:
            note = "; ".join(differences(whole.outcome, outcome(out))[:3]) or "the same"
        shutil.rmtree(out.parent)
        if target.stopped is None:
            file.write_bytes(content)
        else:
            shutil.copytree(pristine, target.stopped)
        yield Trial(str(file.relative_to(root)), how, ended, wrong, note)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def targets(root) -> dict[str, Target]:
    return make_targets(root)


NAMES = (
    "create-student", "generations", "logits", "jsonl", "csv", "parquet", "arrow", "saved", "ft", "ft-t5", "gen",
    "simulate", "kd", "kd-with-logits", "stopped ft", "stopped kd", "stopped gen-sampling",
)  # fmt: skip


def check(targets: dict[str, Target], root: Path, name: str, seed: str, n_trials: int) -> None:
    trials = list(try_target(targets[name], root, random.Random(f"{seed} {name}"), n_trials, None))
    assert [(each.file, each.how, each.wrong) for each in trials if each.wrong] == []
    assert len(trials) == n_trials


def test_every_target_has_its_test(targets):
    assert set(targets) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_file(targets, root, name):
    check(targets, root, name, "fast", 2)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("name", NAMES)
def test_many_spoilt_files(targets, root, name):
    check(targets, root, name, "slow", 150)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scripts.test_fuzz", description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of each target [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--targets", nargs="*", metavar="NAME", help="[all]")
    given = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    targets = make_targets(root)
    n_wrong = 0
    for name in given.targets or targets:
        target = targets[name]
        whole = None if target.stopped is None else run_whole(target.case, root)
        for trial in try_target(target, root, random.Random(f"{given.seed} {name}"), given.trials, whole):
            said = trial.wrong or (trial.ended.errors.strip()[:200] if trial.ended.status else f"accepted {trial.note}")
            mark = "WRONG" if trial.wrong else "     "
            print(f"{mark} {name:<16} {trial.file:<50} {trial.how:<60} {said}", flush=True)
            n_wrong += trial.wrong is not None
    print(f"{n_wrong} wrong")
    shutil.rmtree(root)
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
