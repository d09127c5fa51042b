"""`python -m tests.faults --kills 100`: kill every script at random, resume it, compare with an uninterrupted run.

Runs are real processes on tiny models, forked from one that has loaded the libraries. Half of the kills come after a
random time. The others come before or after a random disk call of Python, or lose the last bytes written before an
fsync. The exit status is 1 if any run ends with other results, or leaves extra files behind.
"""

import argparse
import builtins
import functools
import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: its threads do not survive a fork

import create_student_main
import ft_main
import gen_main
import kd_dataset_with_logits_main
import kd_main
import prepare_datasets_main
import simulate_api_main
from src import (  # noqa: F401  (loaded before forks)
    create_student,
    generate_accelerator,
    prepare_datasets,
    train_models_accelerator,
)
from src.config.cli import run_script
from src.models.folders import write_model_folder
from src.models.new_models import build_from_scratch
from src.models.new_tokenizers import train_tokenizer
from tests.conftest import VOCAB_SIZE, tiny_sentences, tiny_sizes
from tests.tiny_runs import TINY, argv, ft_flags, gen_flags, kd_flags

LIMIT = 120.0  # seconds after which a run counts as hanging
MOMENTS = ("before", "after", "torn")
LOST = 3  # bytes of a file that a kill at an fsync loses
COMPARED = ("script", "status", "scores", "flags", "data")  # of run.json: what two equal runs agree in
NEVER = -1  # a call that never comes

Main = Callable[[Sequence[str] | None], object]


# ------------------------------------------------------------------------------------------------------------- scripts


@dataclass(frozen=True)
class Case:
    """A script, and its command line for an output folder."""

    name: str
    main: Main
    flags: Callable[[Path], list[str]]


def make_cases(root: Path) -> dict[str, Case]:
    """Every script on tiny models and data, which are written below `root`."""
    models, datasets = _models(root), _write_datasets(root)
    train = {"test_every_n_epochs": 2, "keep_checkpoint_after_test": True, "metrics": "chrf"}
    train |= {"metric_for_best_model": "nll", "greater_is_better": False}  # which is the best changes often
    train |= {"save_state_every_n_minutes": 1e-6}  # a state after every update
    two_phases = {"epochs": 3, "stop_training_after_n_epochs": 2, "ft_steps_at_end": 1, **train}
    two_phases |= {"experiment_config_path": root / "students.yaml", "experiment_config_key": "students"}
    stored = {"student_name": models["student"], "dataset_path": root / "stored.arrow"}
    stored |= {"experiment_config_key": "logits_kd", "epochs": 3, "stop_training_after_n_epochs": 2}
    write = {"split_for_generation": ("train_0", "unlabeled"), "num_return_sequences": 2, "batch_size": 2}
    merge = {"original_dataset_path": datasets["original"], "generation_dataset_path": datasets["generated"]}
    demo = {"dataset_name": "demo", "train_size": 40, "val_size": 8, "val_ppl_size": 4, "test_size": 6}
    align = {"logits_dataset_path": root / "api" / "api_completions.jsonl", "student_name": models["student"]}
    build = {"family": "t5", "dataset_path": datasets["original"], "vocab_size": 80, "d_model": 8, "n_heads": 2}
    simulated = {"n_completions": 2, "top_logprobs": 3, "form": "jsonl", "batch_size": 2}
    cases = [
        Case(
            "create-student",
            create_student_main.main,
            lambda out: argv({**build, "overwrite": True, "output_dir": out}),
        ),
        Case("prepare-original", prepare_datasets_main.main, lambda out: argv({**demo, "output_dir": out})),
        Case("prepare-generations", prepare_datasets_main.main, lambda out: argv({**merge, "output_dir": out})),
        Case(
            "prepare-logits",
            prepare_datasets_main.main,
            lambda out: argv({**align, "file_name": "stored.arrow", "output_dir": out}),
        ),
        Case("ft", ft_main.main, lambda out: ft_flags(models["student"], datasets["rotation"], out, **train)),
        Case(
            "gen-sampling",
            gen_main.main,
            lambda out: gen_flags(models["teacher"], datasets["rotation"], out, generation_type="sampling", **write),
        ),
        Case(
            "gen-beam",
            gen_main.main,
            lambda out: gen_flags(
                models["teacher"], datasets["rotation"], out, **{**write, "num_beams": 3}, generation_engine="hf"
            ),
        ),
        Case("kd", kd_main.main, lambda out: kd_flags(models, datasets["rotation"], out, **two_phases)),
        Case(
            "kd-with-logits",
            kd_dataset_with_logits_main.main,
            lambda out: argv({**TINY, **train, **stored, "output_dir": out}),
        ),
        Case(
            "simulate",
            simulate_api_main.main,
            lambda out: gen_flags(models["teacher"], datasets["original"], out, **simulated),
        ),
    ]
    made = {case.name: case for case in cases}
    _make_stored(root, made["simulate"], made["prepare-logits"])
    return made


def _models(root: Path) -> dict[str, str]:
    """A GPT-2 teacher and student with dropout, and one tokenizer."""
    letters = "summarize: modern: the quick brown fox, who jumps over (3) lazy dogs? It does!"
    tokenizer = train_tokenizer([*tiny_sentences(200, seed=0), letters], VOCAB_SIZE, family="gpt2")
    folders = {}
    for seed, (role, d_model) in enumerate((("teacher", 32), ("student", 16))):
        sizes = replace(tiny_sizes(tokenizer, d_model=d_model, n_layers=1), dropout=0.1)
        model = build_from_scratch("gpt2", sizes, seed=seed)
        folders[role] = str(write_model_folder(root / role, model, tokenizer, "A test's.\n"))
    return folders


def _write_datasets(root: Path) -> dict[str, Path]:
    """`original` with `train`, `rotation` with three training splits, and two pseudo-targets of `original`'s inputs;
    and an experiment in which the student writes labels."""
    texts = iter(dict.fromkeys(tiny_sentences(400, seed=2)))

    def columns(n_rows: int) -> dict[str, list[str]]:
        rows = [next(texts) for _ in range(n_rows)]
        return {"text": rows, "target": list(rows)}

    original = {"train": columns(8), "dev": columns(4), "test": columns(4), "unlabeled": columns(4)}
    del original["unlabeled"]["target"]
    sizes = {"train_0": 8, "train_1": 7, "train_2": 6, "ft": 6, "dev": 4, "dev_ppl": 3, "test": 4, "unlabeled": 6}
    generated = {
        split: {"generated": [f"{text} {i}" for text in values["text"] for i in range(2)]}
        for split, values in original.items()
    }
    rotation = {split: columns(n_rows) for split, n_rows in sizes.items()}
    paths = {}
    for name, value in {"original": original, "rotation": rotation, "generated": generated}.items():
        paths[name] = root / f"{name}.json"
        paths[name].write_text(json.dumps(value), encoding="utf-8")
    experiment = {
        "students": {"name": "students", "layer": "last", "scheduling": "one", "losses": ["logits"]},
        "last": {"student_dec_sa_layer": -1},
        "one": {"keep_last": True},
        "logits": {"logits_weight": 1.0, "generate_labels_weight": 0.5},
    }
    (root / "students.yaml").write_text(json.dumps(experiment), encoding="utf-8")
    return paths


def _make_stored(root: Path, simulate: Case, prepare: Case) -> None:
    """An API's file by the teacher, and what prepare makes of it for kd-with-logits."""
    for case, out in ((simulate, root / "api"), (prepare, root)):
        ended = run(case, out, root / "log")
        if ended.status != 0:
            raise RuntimeError(f"{case.name}: {ended.errors}")


# ---------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Kill:
    """Where a run gets a signal: after `seconds`, or at its call number `call` (from 0) that changes the disk.

    at: a pattern; only calls whose name and path match it are counted. moment: before the call, after it, or ("torn")
    before an fsync with the last bytes lost.
    """

    seconds: float | None = None
    call: int = NEVER
    at: str = ""
    moment: str = MOMENTS[0]
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit status (negative: the signal that killed it), what it printed, where it was killed, how
    many calls changed the disk, and its seconds."""

    status: int
    printed: str
    errors: str
    place: str
    calls: int
    seconds: float


def run(
    case: Case,
    out: Path,
    log: Path,
    kill: Kill | None = None,
    before: Callable[[], object] = lambda: None,
) -> Ended:
    """Run a script in a process of its own until it ends, or is killed. `before` is called in it first."""
    kill = kill or Kill()
    log.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_in_child(case, out, log, kill, before)
    limit = LIMIT if kill.seconds is None else kill.seconds
    found, code = os.waitpid(child, os.WNOHANG)
    sent = False
    while not found:
        time.sleep(0.002)
        elapsed = time.monotonic() - started
        if elapsed > (LIMIT if sent else limit):
            os.kill(child, signal.SIGKILL if elapsed > LIMIT else kill.signal)
            sent = True
        found, code = os.waitpid(child, os.WNOHANG)
    seconds = time.monotonic() - started
    status = os.waitstatus_to_exitcode(code)
    place, _, calls = (log / "place").read_text(encoding="utf-8").rpartition("\n")
    if sent:
        place = "hangs" if seconds > LIMIT else f"signal {kill.signal} after {seconds:.2f} s"
    printed, errors = ((log / name).read_text(encoding="utf-8") for name in ("out", "err"))
    return Ended(status, printed, errors, place, int(calls or 0), seconds)


def _run_in_child(case: Case, out: Path, log: Path, kill: Kill, before: Callable[[], object]) -> None:
    """Never returns."""
    status = 1
    try:
        places = [os.open(log / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY) for name in ("out", "err", "place")]
        os.dup2(places[0], 1)
        os.dup2(places[1], 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        calls = watch_calls(out.parent, kill, places[2])
        before()
        try:
            status = run_script(case.main, case.flags(out))
        except SystemExit as ended:
            status = int(ended.code or 0)
        os.write(places[2], f"\n{next(calls)}".encode())
    except BaseException:  # noqa: BLE001  (a traceback is what is looked for)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def watch_calls(root: Path, kill: Kill, note: int) -> "itertools.count[int]":
    """Count this process' calls that change files below `root`, and get the signal at the n-th; where, is written to
    `note`."""
    counted, moment = itertools.count(), kill.moment

    def die(call: str) -> None:
        os.write(note, f"{moment} {call}\n".encode())
        os.kill(os.getpid(), kill.signal)

    def watch(module: Any, name: str, is_change: Callable[..., bool] = lambda *_, **__: True) -> None:
        function = getattr(module, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            what = _path_of(args[0], kwargs.get("dir_fd")) if args else ""
            if not is_change(*args, **kwargs) or not what.startswith(f"{root}/"):
                return function(*args, **kwargs)
            call = f"{name} {what.removeprefix(f'{root}/')}"
            is_here = re.search(kill.at, call) is not None and next(counted) == kill.call
            if is_here and moment == "torn" and name == "fsync":
                _lose_the_end(args[0])
            if is_here and moment != "after":
                die(call)
            result = function(*args, **kwargs)
            if is_here and moment == "after":
                die(call)
            return result

        setattr(module, name, watched)

    for name in ("rename", "replace", "fsync", "unlink", "remove", "mkdir", "rmdir", "truncate"):
        watch(os, name)
    for module in (io, builtins):
        watch(module, "open", _is_for_writing)
    return counted


def _is_for_writing(_file: object, mode: str = "r", *_: object, **__: object) -> bool:
    return any(letter in mode for letter in "wax+")


def _path_of(file: object, folder: int | None) -> str:
    """The path that a call is given as a name, or as an open file."""
    if isinstance(file, int):
        return str(Path(f"/proc/self/fd/{file}").readlink())
    if not isinstance(file, str | os.PathLike):
        return ""
    return str(file if folder is None else Path(f"/proc/self/fd/{folder}").readlink() / file)


def _lose_the_end(descriptor: int) -> None:
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode):
        os.truncate(f"/proc/self/fd/{descriptor}", max(0, found.st_size - LOST))


# ---------------------------------------------------------------------------------------------------------- comparison


def outcome(out: Path) -> dict[str, Any]:
    """{path: what is there} of all that a run left, hidden files and empty folders too, in its folder and beside it;
    without that folder's path, and of run.json only what equal runs agree in."""
    return {str(entry.relative_to(out.parent)): _content(entry, out) for entry in sorted(out.parent.rglob("*"))}


def _content(entry: Path, out: Path) -> Any:
    if entry.is_dir():
        return "folder"
    data = entry.read_bytes().replace(str(out).encode(), b"OUT")
    if entry.name == "run.json":
        return {name: value for name, value in json.loads(data).items() if name in COMPARED}
    return hashlib.sha256(data).hexdigest()


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is missing, left over, or other than it should be."""
    return [
        *(f"{name} is missing" for name in expected.keys() - found.keys()),
        *(f"{name} is left" for name in found.keys() - expected.keys()),
        *(f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]),
    ]


# -------------------------------------------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: what it left, its seconds and its calls that change the disk."""

    outcome: dict[str, Any]
    seconds: float
    calls: int


def run_whole(case: Case, root: Path) -> Whole:
    """Raises RuntimeError if the run fails, or does not end with 0 and the same results when it is repeated."""
    out, log = root / f"{case.name}-whole" / "out", root / "log"
    out.parent.mkdir()
    ended = run(case, out, log)
    found = outcome(out)
    again = run(case, out, log)
    if ended.status or again.status or outcome(out) != found:
        raise RuntimeError(f"{case.name}: {ended.errors}{again.errors}{differences(found, outcome(out))}")
    return Whole(found, ended.seconds, ended.calls)


def draw_kill(rng: random.Random, whole: Whole) -> Kill:
    if rng.random() < 0.5:
        return Kill(seconds=rng.uniform(0, whole.seconds))
    return Kill(call=rng.randrange(whole.calls), moment=rng.choice(MOMENTS))


def try_kills(case: Case, whole: Whole, kills: Sequence[Kill], root: Path) -> tuple[list[str], list[str]]:
    """Kill a run, kill its continuation … and let it end: where it was killed, and what is wrong afterwards.

    A run that ends before its kill comes is the last.
    """
    folder = Path(tempfile.mkdtemp(prefix=case.name, dir=root))
    out, log = folder / "out", root / "log"
    places = []
    for kill in [*kills, None]:
        ended = run(case, out, log, kill)
        if ended.status != -signal.SIGKILL or kill is None:
            break
        places.append(ended.place)
    if ended.status != 0:
        return places, [f"status {ended.status}: {(ended.errors.splitlines() or [ended.place])[-1]} (see {folder})"]
    wrong = differences(whole.outcome, outcome(out))
    if not wrong:
        shutil.rmtree(folder)
    return places, [f"{each} (see {folder})" for each in wrong]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--scripts", nargs="*", metavar="NAME", help="of those that are printed; [all]")
    given = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    cases = make_cases(root)
    unknown = set(given.scripts or ()) - cases.keys()
    if unknown:
        parser.error(f"--scripts {' '.join(sorted(unknown))}: not of {' '.join(cases)}")
    chosen = [cases[name] for name in given.scripts or cases]
    wholes = {case.name: run_whole(case, root) for case in chosen}
    for name, whole in wholes.items():
        print(f"{name:<20} whole: {whole.seconds:.2f} s, {whole.calls} calls, {len(whole.outcome)} files", flush=True)
    n_kills, n_wrong = 0, 0
    rng = random.Random(given.seed)
    for case in itertools.cycle(chosen):
        if n_kills >= given.kills:
            break
        whole = wholes[case.name]
        places, wrong = try_kills(case, whole, [draw_kill(rng, whole) for _ in range(rng.randint(1, 3))], root)
        for place in places:
            print(f"{case.name:<20} {place:<70} {'; '.join(wrong) or 'ok'}", flush=True)
        if wrong and not places:
            print(f"{case.name:<20} {'not killed':<70} {'; '.join(wrong)}", flush=True)
        n_kills, n_wrong = n_kills + len(places), n_wrong + bool(wrong)
    print(f"{n_kills} kills, {n_wrong} runs with differences{f'; they are in {root}' if n_wrong else ''}")
    if not n_wrong:
        shutil.rmtree(root)
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
