"""A study's jobs, one command of one script each, and where their logs and markers are."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from src.config.cli import parse
from src.config.errors import UserError
from src.config.experiments.load import find_experiment, load_experiments
from src.config.experiments.schema import Experiment
from src.config.flags.base import REPOSITORY
from src.config.flags.train import DistillArguments
from src.config.scripts import ARGUMENTS

Value = str | list[str]  # of a flag, as in YAML and on the command line
Flags = Mapping[str, Value]


@dataclass(frozen=True)
class Job:
    """A command of a study.

    name: its place in the study's folder, for example kd/logits_kd__seed1. place: the entry of the plan, for messages.
    result: a path that exists when the command has finished. needs: names of the jobs whose results it reads. files:
    files of the user that it reads.
    """

    name: str
    place: str
    script: str
    flags: Flags
    result: Path
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @cached_property
    def words(self) -> list[str]:
        """The command's flags, as words of a command line."""
        return [word for name, value in self.flags.items() for word in (f"--{name}", *as_list(value))]

    @property
    def command(self) -> str:
        """The command as a user would type it in the working directory."""
        return shlex.join(["python", self._script_path, *self.words])

    @property
    def shell_command(self) -> str:
        """The command, run by the Python that plans the study."""
        return shlex.join([sys.executable, self._script_path, *self.words])

    @property
    def _script_path(self) -> str:
        path = REPOSITORY / self.script
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    @property
    def runs_a_model(self) -> bool:
        """Whether the command trains or generates, which a GPU speeds up."""
        return self.script not in ("prepare_datasets_main.py", "create_student_main.py")

    def check(self, experiments: dict[Path, dict[str, Experiment]]) -> None:
        """Raise UserError, naming the entry of the plan, if the script would refuse the flags or the experiment.

        experiments: those of each file that was read; files are added.
        """
        try:
            config = parse(ARGUMENTS[self.script], self.words)
            if isinstance(config, DistillArguments):
                file = config.experiment_file
                if file not in experiments:
                    experiments[file] = load_experiments(file)
                find_experiment(config.experiment_config_key, experiments[file], file.name)
        except UserError as error:
            raise UserError(f"{self.place}: {error}") from None


@dataclass(frozen=True)
class Study:
    """A checked plan. root: the folder of everything the study writes. jobs: each after those that it needs."""

    root: Path
    jobs: tuple[Job, ...]

    def marker(self, job: Job) -> Path:
        """The file that says that the job has finished; Snakemake may delete it."""
        return self.root / ".done" / job.name

    def is_done(self, job: Job) -> bool:
        """Whether the job has finished and its result is still there."""
        return self.marker(job).exists() and job.result.exists()

    def needed(self, job: Job) -> list[Job]:
        return [each for each in self.jobs if each.name in job.needs]

    def log(self, job: Job) -> Path:
        return self.root / "logs" / f"{job.name}.log"


def as_list(value: Value) -> list[str]:
    return value if isinstance(value, list) else [value]
