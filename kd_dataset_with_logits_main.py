"""Distil a teacher whose log-probabilities are stored. `--help` explains the flags."""

import sys
from collections.abc import Sequence

from src.config.arguments import EXPERIMENTS, DistillStoredArguments, experiment_file
from src.config.cli import explicit_flags, parse, run_script
from src.config.errors import UserError


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    given = explicit_flags(DistillStoredArguments, argv)
    if given.get("list_experiments"):
        from src.config.experiments import print_experiments

        print_experiments(experiment_file(given.get("experiment_config_path", EXPERIMENTS)))
        return {}
    parse(DistillStoredArguments, argv)
    raise UserError("stored log-probabilities cannot be trained on by this version; kd_main.py distils a live teacher")


if __name__ == "__main__":
    sys.exit(run_script(main))
