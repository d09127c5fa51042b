"""Flags of study_main.py."""

from dataclasses import dataclass
from typing import ClassVar

from src.config.flags.base import FILES, LARGEST_SEED, REQUIRED, RUN, Arguments, flag


@dataclass(frozen=True, kw_only=True)
class StudyArguments(Arguments):
    r"""Run a study: the data, teachers, pseudo-targets and students of a plan, and a report on them.

    Reads   a plan (YAML), such as those in arg_configs/studies; docs/studies.md explains it.
    Writes  the plan's output_dir: a folder for each run, report.html, and a log for each command. Snakemake runs the
            commands. The same command continues a study that was stopped or killed.

    Example:
      python study_main.py --plan arg_configs/studies/demo.yaml --jobs 2
    """

    script: ClassVar[str] = "study_main.py"

    plan: str = flag(REQUIRED, "The study's plan (YAML).", FILES)
    output_dir: str | None = flag(None, "Folder for everything that the study writes. None means the plan's.", FILES)
    seed: int | None = flag(  # type: ignore[assignment]
        None, "Seed of the students' runs. None means the plan's seeds.", RUN, minimum=0, maximum=LARGEST_SEED
    )
    jobs: int = flag(1, "Number of commands that run at the same time.", RUN, minimum=1)
    executor: str = flag(
        "local", "Where commands run: local, slurm, or another executor plugin of Snakemake that is installed.", RUN
    )
    profile: str | None = flag(None, "Snakemake profile: a folder such as arg_configs/studies/profiles/slurm.", RUN)
    gpus: int | None = flag(
        None,
        "GPUs of this machine to use, one for each command; on a cluster 0 or 1 for each command. None means all that "
        "nvidia-smi lists, on a cluster 1.",
        RUN,
        minimum=0,
    )
    keep_going: bool = flag(True, "After a failed command go on with those that do not need it.", RUN)
    dry_run: bool = flag(False, "Check the plan and print the commands that would run, and why.", RUN)
