"""The stage that runs a study: check the plan, let Snakemake run its commands, say what failed and where to look."""

import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil

from src.config.console import say
from src.config.errors import UserError
from src.config.flags.base import REPOSITORY
from src.config.flags.study import StudyArguments
from src.config.signals import Stopped
from src.storage.locks import FolderLock
from src.studies.jobs import Study
from src.studies.plan import DISTILL, FINE_TUNE, read_study

LOCAL = "local"
CONTINUES = "stopped; the same command continues the study"
CLUSTER_THREADS = 4  # of a command on a cluster


def run_study(config: StudyArguments) -> Path:
    """Run every command of the plan that has not finished, and report on the runs; return the study's folder.

    Raises UserError for a mistake in the plan, before anything runs, and at the end if commands failed.
    """
    study = read_study(Path(config.plan), config.output_dir, config.seed)
    if find_spec("snakemake") is None:
        raise UserError("snakemake is not installed; run pip install -r requirements-study.txt")
    if config.profile is not None and not Path(config.profile).is_dir():
        raise UserError(f"--profile {config.profile}: there is no such folder")
    done = [job for job in study.jobs if study.is_done(job)]
    say(f"{config.plan}: {len(study.jobs)} commands, {len(done)} of them done; results in {study.root}")
    if config.dry_run:
        for job in study.jobs:
            say(f"{job.name}: {'done' if job in done else job.command}")
        _snakemake(config, study, ["--dry-run", "--quiet"])
        return study.root
    lock = FolderLock(study.root)
    study.root.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    try:
        for job in study.jobs:
            if not study.is_done(job):  # a run whose folder was deleted runs again
                study.marker(job).unlink(missing_ok=True)
        status = _snakemake(config, study, [])
    finally:
        lock.release()
    if any(study.is_done(job) and job.script in (FINE_TUNE, DISTILL) for job in study.jobs):
        _report(study)
    _report_failures(study, status)
    return study.root


def _report(study: Study) -> None:
    """Print the table of all runs that have finished, and write the page on them."""
    page = ["--output_file", str(study.root / "report.html")]
    for script, flags in (("compare_main.py", []), ("report_main.py", page)):
        say(f"\n$ python {script} {shlex.join([str(study.root), *flags])}")
        subprocess.run([sys.executable, str(REPOSITORY / script), str(study.root), *flags], check=False)


def _snakemake(config: StudyArguments, study: Study, more: list[str]) -> int:
    """Run Snakemake; return its exit status. A lock that a killed Snakemake left does not count: the study has its own.

    Ctrl-C reaches the commands by the terminal; SIGTERM is passed on, so that they save their states.
    """
    local = config.executor == LOCAL
    gpus = config.gpus if config.gpus is not None else n_gpus() if local else 1
    threads = max(1, (os.cpu_count() or 1) // config.jobs) if local else CLUSTER_THREADS
    settings = {
        "plan": config.plan, "output_dir": study.root, "threads": threads, "gpus": gpus, "share_gpus": local,
        **({} if config.seed is None else {"seed": config.seed}),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "workflow" / "Snakefile"),
        "--executor", config.executor, "--nolock", "--rerun-incomplete", *(more or ["--quiet", "host", "reason"]),
        *(["--cores", str(threads * config.jobs)] if local else ["--jobs", str(config.jobs)]),
        *(["--resources", f"gpu={gpus}"] if gpus and local else []),
        *(["--workflow-profile", config.profile] if config.profile else []),
        *(["--keep-going"] if config.keep_going else []),
        "--config", *(f"{name}={value}" for name, value in settings.items()),
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except Stopped:
            process.terminate()  # starts nothing more, and waits for its commands
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
            process.wait()
            say(CONTINUES)
            raise
        except KeyboardInterrupt:
            process.wait()
            say(CONTINUES)
            raise


def n_gpus() -> int:
    """The number of NVIDIA GPUs that commands may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _report_failures(study: Study, status: int) -> None:
    """Say which commands failed, and raise UserError if any command has not finished."""
    missing = [job for job in study.jobs if not study.is_done(job)]
    failed = [job for job in missing if all(map(study.is_done, study.needed(job))) and study.log(job).is_file()]
    for job in failed:
        say(f"failed: {job.name}: {_last_line(study.log(job))} (log: {study.log(job)})")
    if not missing and not status:
        return
    raise UserError(
        f"{study.root}: commands that failed: {len(failed)}, that were not run: {len(missing) - len(failed)}; the same "
        "command continues the study"
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "its log is empty")
