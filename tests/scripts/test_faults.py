"""Kills, signals, full and read-only disks, truncated files, a wrong clock: the same command gives the same results."""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import slow

from src.config.cli import run_script
from src.config.signals import Stopped, signals_deferred, sigterm_as_exception
from src.data import tables
from src.models import loading
from src.storage.atomic import atomic_folder, atomic_write, recover
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets
from src.training.state import read_state
from tests.faults import (
    Case,
    Ended,
    Kill,
    Whole,
    differences,
    draw_kill,
    make_cases,
    outcome,
    run,
    run_whole,
    try_kills,
)
from tests.tiny_runs import names

SIGTERM = [(signal.SIGTERM, 143), *slow((signal.SIGINT, 130))]  # SIGINT is handled as SIGTERM is


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def cases(root) -> dict[str, Case]:
    return make_cases(root)


@pytest.fixture(scope="module")
def whole(root, cases) -> Callable[[str], Whole]:
    """An undisturbed run of the script of this name."""
    made: dict[str, Whole] = {}

    def of(name: str) -> Whole:
        if name not in made:
            made[name] = run_whole(cases[name], root)
        return made[name]

    return of


def check_refused(ended: Ended, *said: str) -> None:
    """One line on stderr, which says all this, and exit status 2."""
    assert ended.status == 2, ended.errors
    assert len(ended.errors.splitlines()) == 1, ended.errors
    for each in said:
        assert each in ended.errors


# --------------------------------------------------------------------------------------------------------------- kills


@pytest.mark.slow
def test_random_kills(root, cases, whole):
    rng = random.Random(time.time_ns())
    n_kills = 0
    for case in cases.values():
        kills = [draw_kill(rng, whole(case.name)) for _ in range(rng.randint(1, 2))]
        places, wrong = try_kills(case, whole(case.name), kills, root)
        assert not wrong, (case.name, kills, places)
        n_kills += len(places)
    assert n_kills > 2


@pytest.mark.parametrize(
    ("name", "kill"),
    [
        ("prepare-logits", Kill(call=0, at=r"fsync .*train_1", moment="torn")),
        ("prepare-logits", Kill(call=0, at=r"rename ")),
        ("ft", Kill(call=1, at=r"replace .*run\.json", moment="after")),  # finished, but not tidied
        *slow(
            ("prepare-original", Kill(call=0, at=r"replace .*\.dataset\.json")),
            ("ft", Kill(call=0, at=r"fsync .*1_0\.\w+\.tmp/optimizer.pt", moment="torn")),  # the first state of all
            ("gen-sampling", Kill(call=2, at=r"fsync .*partial", moment="torn")),
        ),
    ],
)
def test_chosen_kills(root, cases, whole, name, kill):
    places, wrong = try_kills(cases[name], whole(name), [kill], root)
    assert len(places) == 1
    assert not wrong


def test_a_harness_that_finds_nothing_would_find_this(root, cases, whole):
    """Bytes that are lost after an fsync, which no program can make good."""
    expected = whole("gen-sampling")
    changed = {**expected.outcome, "out/generated_datasets.json": "other", "out/.half.tmp": "left"}
    _, wrong = try_kills(cases["gen-sampling"], Whole(changed, expected.seconds, expected.calls), [], root)
    assert [line.partition(" (see")[0] for line in wrong] == [
        "out/.half.tmp is missing",
        "out/generated_datasets.json differs",
    ]


def test_between_two_names_of_a_folder(tmp_path, cases, whole):
    """Killed when the former folder has lost its name and the new one has none: the former comes back."""
    case, out = cases["prepare-logits"], tmp_path / "run" / "out"
    out.parent.mkdir()
    assert run(case, out, tmp_path / "log").status == 0
    killed = run(case, out, tmp_path / "log", Kill(call=0, at=r"rename out/stored\.arrow$", moment="after"))
    assert killed.status == -signal.SIGKILL
    assert not (out / "stored.arrow").exists()
    recover(out / "stored.arrow")
    assert outcome(out) == whole("prepare-logits").outcome


def test_files_of_writers_at_work_stay(tmp_path):
    with atomic_write(tmp_path / "a.json") as file, atomic_folder(tmp_path / "deep" / "b.arrow") as folder:
        file.write("{}")
        (folder / "c").write_text("c")
        before = names(tmp_path)
        recover(tmp_path / "a.json")
        recover(tmp_path / "deep" / "b.arrow")
        assert names(tmp_path) == before
    recover(tmp_path / "a.json")
    assert names(tmp_path) == {"a.json", "deep"}


def test_only_temporary_names_of_this_file_are_cleared_away(tmp_path):
    others = {".a.json.tmp", ".a.json.0123456.tmp", ".b.json.01234567.tmp", ".a.json.01234567.txt", ".a.json"}
    for name in (*others, ".a.json.01234567.tmp"):
        (tmp_path / name).write_text("")
    recover(tmp_path / "a.json")
    assert names(tmp_path) == others


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
def test_signals_come_to_scripts_of_tests_in_the_background():
    """`make test &`: a shell starts it, and so what it starts, without SIGINT; a child would hang until its limit."""
    code = "import signal, tests.conftest; signal.raise_signal(signal.SIGINT)"
    command = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize(("number", "status"), SIGTERM)
@pytest.mark.parametrize("name", ["kd"])
def test_training_stops_within_a_step(tmp_path, cases, whole, name, number, status):
    out = tmp_path / "run" / "out"
    out.parent.mkdir()
    at = Kill(call=0, at=r"rename .*/state/\.2_", signal=number)  # in the middle of the second update's save
    ended = run(cases[name], out, tmp_path / "log", at)
    assert (ended.status, ended.errors) == (status, "")
    (state,) = names(out / "state")
    assert state.startswith("2_")
    assert run(cases[name], out, tmp_path / "log").status == 0
    assert differences(whole(name).outcome, outcome(out)) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_writing_stops_within_a_batch(tmp_path, cases, whole, number, status):
    out = tmp_path / "run" / "out"
    out.parent.mkdir()
    at = Kill(call=1, at=r"fsync .*partial", signal=number)
    ended = run(cases["gen-beam"], out, tmp_path / "log", at)
    assert (ended.status, ended.errors) == (status, "")
    assert len((out / "generated_datasets.partial.jsonl").read_text().splitlines()) == 2
    assert run(cases["gen-beam"], out, tmp_path / "log").status == 0
    assert differences(whole("gen-beam").outcome, outcome(out)) == []


MAKING = ("prepare-original", "prepare-generations", "prepare-logits", "create-student")
STOPS = (("before", signal.SIGTERM, 143), ("after", signal.SIGINT, 130))
FEW = [(name, *STOPS[i % 2]) for i, name in enumerate(MAKING)]
OTHERS = [(name, *stop) for i, name in enumerate(MAKING) for stop in (STOPS[1 - i % 2], ("after", signal.SIGTERM, 143))]


@pytest.mark.parametrize(("name", "moment", "number", "status"), [*FEW, *slow(*OTHERS)])
def test_what_makes_a_file_stops_and_leaves_nothing(tmp_path, cases, whole, name, moment, number, status):
    """At every call that changes the disk, in a folder that is new, too: no file, no half of one, no empty folder. What
    is stopped after the last rename has made its file."""
    expected, n_stopped = whole(name), 0
    for call in range(expected.calls):
        out = tmp_path / str(call) / "run" / "out"
        out.parent.mkdir(parents=True)
        ended = run(cases[name], out, tmp_path / "log", Kill(call=call, moment=moment, signal=number))
        n_stopped += bool(ended.place)  # a call that fails has no moment after it
        assert (ended.status, ended.errors) == (status if ended.place else 0, "")
        left = outcome(out)
        assert left in ({}, expected.outcome)
        assert left or ended.place
    assert n_stopped > expected.calls / 2


@pytest.mark.parametrize(("number", "status"), SIGTERM)
@pytest.mark.parametrize("name", ["prepare-generations", "prepare-logits", *slow("prepare-original", "create-student")])
def test_what_was_there_is_there_when_its_replacement_is_stopped(tmp_path, cases, whole, name, number, status):
    """Between the two names of a folder, too."""
    out, n_stopped = tmp_path / "run" / "out", 0
    out.parent.mkdir()
    assert run(cases[name], out, tmp_path / "log").status == 0
    expected = whole(name)
    for call in range(expected.calls + 8):  # a former folder is renamed and removed
        ended = run(cases[name], out, tmp_path / "log", Kill(call=call, moment="after", signal=number))
        n_stopped += bool(ended.place)
        assert (ended.status, ended.errors) == (status if ended.place else 0, "")
        assert differences(expected.outcome, outcome(out)) == []
    assert n_stopped > expected.calls / 2


def caught(owner: Any, name: str, number: int, call: int = 0) -> Callable[[], None]:
    """In a run: the n-th call of a function gets the signal, and would take a minute."""

    def install() -> None:
        calls, plain = itertools.count(), getattr(owner, name)

        def slow(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), number)
                for _ in range(600):  # as a library does, it looks up now and then
                    time.sleep(0.1)
            return plain(*args, **kwargs)

        setattr(owner, name, slow)

    return install


STARTING = {  # what happens before the first update or the first text
    "reads data": (tables, "read_datasets"),
    "reads a tokenizer": (loading, "find_model"),
    "reads weights": (loading, "model_class"),
    "tokenizes": (Preprocessor, "encode_in_chunks"),
}


@pytest.mark.parametrize(("number", "status"), SIGTERM)
@pytest.mark.parametrize("where", STARTING)
@pytest.mark.parametrize("name", ["ft", "kd", "kd-with-logits", "gen-beam", "simulate"])
def test_a_run_that_starts_stops_at_once(tmp_path, cases, whole, name, where, number, status):
    """Nothing is there, or a state with which the same command goes on (tokens are made when they are needed)."""
    out = tmp_path / "run" / "out"
    out.parent.mkdir()
    ended = run(cases[name], out, tmp_path / "log", before=caught(*STARTING[where], number))
    assert (ended.status, ended.errors) == (status, "")
    assert ended.seconds < 10
    if where != "tokenizes" or not out.exists():
        assert outcome(out) == {}
        return
    assert "the same command continues there" in ended.printed
    assert run(cases[name], out, tmp_path / "log").status == 0
    assert differences(whole(name).outcome, outcome(out)) == []


@pytest.mark.parametrize("call", [1, 4, *slow(2, 3)])
def test_a_run_that_tokenizes_another_split_stops_at_once(tmp_path, cases, whole, call):
    """That of an evaluation, or the next epoch's, beside this one."""
    out = tmp_path / "run" / "out"
    out.parent.mkdir()
    ended = run(
        cases["ft"], out, tmp_path / "log", before=caught(Preprocessor, "encode_in_chunks", signal.SIGTERM, call)
    )
    assert (ended.status, ended.errors) == (143, "")
    assert ended.seconds < 10
    assert run(cases["ft"], out, tmp_path / "log").status == 0
    assert differences(whole("ft").outcome, outcome(out)) == []


def test_the_end_does_not_wait_for_the_next_epoch_s_tokens():
    """A thread tokenizes; between two chunks of texts it is told to stop."""
    begun = threading.Event()

    class Slow:
        pad_token_id, eos_token_id, bos_token_id, unk_token_id = 0, 1, None, None
        all_special_ids, all_special_tokens = (0, 1), ()

        def __call__(self, texts=None, **_):
            begun.set()
            time.sleep(0.05)
            return {"input_ids": [[5, 1] for _ in texts]} if isinstance(texts, list) else {"input_ids": [5, 1]}

    rows = {"text": [str(i) for i in range(10**6)]}
    data = TokenizedDatasets({"train_0": rows}, Preprocessor(Slow(), True, 8, 8))
    started = time.monotonic()
    data.tokenize_ahead("train_0")
    assert begun.wait(10)
    data.close()
    for thread in threading.enumerate():
        if thread.name.startswith("tokenize"):
            thread.join(10)
            assert not thread.is_alive()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("name", "number", "status"), [("ft", signal.SIGTERM, 143), *slow(("prepare-original", signal.SIGINT, 130))]
)
def test_exit_statuses_of_real_processes(tmp_path, cases, name, number, status):
    """While libraries are imported, or right after."""
    script = Path(sys.modules[cases[name].main.__module__].__file__)
    (tmp_path / "run").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    for seconds in (0.4, 1.2):
        process = subprocess.Popen(
            [sys.executable, str(script), *cases[name].flags(tmp_path / "run" / "out")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        time.sleep(seconds)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
        assert (process.returncode, printed, errors) in ((status, "", ""), (-number, "", ""))
        assert names(tmp_path / "run") == set()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As under nohup, or in a script that traps it."""
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run_script(lambda _: os.kill(os.getpid(), signal.SIGTERM)) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)


def test_signals_wait_for_what_must_not_be_cut():
    done = []
    with pytest.raises(Stopped) as stopped, sigterm_as_exception(), signals_deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("renamed")
    assert (done, stopped.value.code) == (["renamed"], 143)
    with pytest.raises(KeyboardInterrupt), signals_deferred():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("removed")
    assert done == ["renamed", "removed"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ---------------------------------------------------------------------------------------------------------------- disk


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 32 MiB of our own, where one may be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, free: int) -> Path:
    """A file that leaves `free` bytes of the disk, in whole pages."""
    ballast = disk / "ballast"
    left = shutil.disk_usage(disk).free - free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left)
    return ballast


def check_states_are_whole(out: Path) -> None:
    for folder in [*out.glob("state/[0-9]*"), *out.glob("epoch*")]:
        read_state(folder)
        assert {"config.json", "model.safetensors", "tokenizer.json", "optimizer.pt"} <= names(folder)


@pytest.mark.parametrize(
    ("name", "free_kib"),
    [
        ("ft", 48),
        ("gen-sampling", 4),
        ("prepare-logits", 16),
        *slow(("ft", 0), ("ft", 160), ("kd", 230), ("prepare-original", 8)),
    ],
)
def test_a_full_disk(tmp_path, disk, cases, whole, name, free_kib):
    expected = whole(name).outcome
    out, case = disk / "run" / "out", cases[name]
    out.parent.mkdir()
    ballast = fill(disk, free_kib * 1024)
    check_refused(run(case, out, tmp_path / "log"), "No space left on device", str(out))
    check_states_are_whole(out)
    ballast.unlink()
    assert run(case, out, tmp_path / "log").status == 0
    assert differences(expected, outcome(out)) == []


@pytest.mark.parametrize(
    ("name", "limit"), [("ft", 4_000), ("gen-sampling", 600), *slow(("ft", 2_000), ("ft", 40_000))]
)
def test_files_that_may_not_grow(tmp_path, cases, whole, name, limit):
    """As a quota has it: what does not fit is refused in the middle of a file."""
    out = tmp_path / "run" / "out"
    out.parent.mkdir()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    check_refused(run(cases[name], out, tmp_path / "log", before=limited), "File too large", str(out))
    check_states_are_whole(out)
    assert run(cases[name], out, tmp_path / "log").status == 0
    assert differences(whole(name).outcome, outcome(out)) == []


@pytest.mark.parametrize("name", ["prepare-original", "prepare-logits", "ft", "gen-sampling", "kd"])
def test_a_read_only_disk(tmp_path, disk, cases, name):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    check_refused(
        run(cases[name], disk / "out", tmp_path / "log"), "cannot be written: Read-only file system", str(disk)
    )
    assert names(disk) == set()


def test_a_disk_that_is_read_only_for_a_while(tmp_path, disk, cases, whole):
    expected = whole("ft").outcome
    out, case = disk / "run" / "out", cases["ft"]
    out.parent.mkdir()
    assert run(case, out, tmp_path / "log", Kill(call=3, at="fsync .*eval_scores")).status == -signal.SIGKILL
    before = outcome(out)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    check_refused(run(case, out, tmp_path / "log"), "Read-only file system", str(out))
    assert outcome(out) == before
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert run(case, out, tmp_path / "log").status == 0
    assert differences(expected, outcome(out)) == []


# ----------------------------------------------------------------------------------------------------------- cut files


@pytest.fixture(scope="module")
def stopped(root, cases) -> Callable[[str, Path], Path]:
    """A copy of a run that was stopped in the middle."""
    at = {
        "ft": Kill(call=1, at=r"rename .*/state/\.2_", moment="after", signal=signal.SIGTERM),
        "gen-sampling": Kill(call=3, at=r"fsync .*partial", signal=signal.SIGTERM),
    }

    def copy(name: str, folder: Path) -> Path:
        out = root / f"{name}-stopped" / "out"
        if not out.is_dir():
            assert run(cases[name], out, root / "log", at[name]).status == 143
        return Path(shutil.copytree(out, folder / "run" / "out"))

    return copy


CUT = [
    *(("ft", f"state/*/{name}") for name in ("model.safetensors", "optimizer.pt", "run_state.json")),
    *(("ft", name) for name in ("run.json", "eval_scores.csv", "train_losses.csv", "eval_generations.jsonl")),
    ("ft", "epoch*/model.safetensors"),
    ("gen-sampling", "run.json"),
]


@pytest.mark.parametrize("size", ["half", *slow("gone")])
@pytest.mark.parametrize(("name", "pattern"), CUT)
def test_a_cut_file_is_named(tmp_path, cases, whole, stopped, name, pattern, size):
    """Or, where the run does not need it, the results are those of an undisturbed run."""
    out = stopped(name, tmp_path)
    (file,) = out.glob(pattern)
    if size == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)
    ended = run(cases[name], out, tmp_path / "log")
    if ended.status == 0:
        assert differences(whole(name).outcome, outcome(out)) == []
    else:
        check_refused(ended, str(out) if size == "gone" else str(file))


@pytest.mark.parametrize("lost", [1, 40, 10_000])
def test_cut_progress_is_made_good(tmp_path, cases, whole, stopped, lost):
    out = stopped("gen-sampling", tmp_path)
    file = out / "generated_datasets.partial.jsonl"
    os.truncate(file, max(0, file.stat().st_size - lost))
    assert run(cases["gen-sampling"], out, tmp_path / "log").status == 0
    assert differences(whole("gen-sampling").outcome, outcome(out)) == []


@pytest.mark.parametrize(
    "value",
    [
        '{"flags": 1}',
        '{"scores": []}',
        '{"data": null}',
        '{"status": "done"}',
        '{"flags": {}}',
        '{"script": "a b"}',
        '{"script": null}',
        f'{{"script": "{"9" * 5_000}.py"}}',
    ],
)
@pytest.mark.parametrize("name", ["ft", "gen-sampling"])
def test_a_description_of_another_kind(tmp_path, cases, stopped, name, value):
    out = stopped(name, tmp_path)
    description = json.loads((out / "run.json").read_text()) | json.loads(value)
    (out / "run.json").write_text(json.dumps(description))
    check_refused(run(cases[name], out, tmp_path / "log"), "run.json: not a description of a run")


# --------------------------------------------------------------------------------------------------------------- clock


@pytest.mark.parametrize("name", ["ft", "gen-sampling"])
def test_a_clock_that_jumps(tmp_path, cases, whole, name):
    out = tmp_path / "run" / "out"
    out.parent.mkdir()

    def jumping() -> None:
        jumps = itertools.cycle([0.0, 1e9, -1e9, 3600.0, -86_400.0])
        clock = time.time
        time.time = lambda: clock() + next(jumps)

    assert run(cases[name], out, tmp_path / "log", before=jumping).status == 0
    assert differences(whole(name).outcome, outcome(out)) == []
