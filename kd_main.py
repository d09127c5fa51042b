"""Distil a live teacher into a student. `python kd_main.py --help` explains the flags."""

import sys
from collections.abc import Sequence

from src.config.arguments import EXPERIMENTS, DistillArguments, experiment_file
from src.config.cli import explicit_flags, parse, run_script


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    given = explicit_flags(DistillArguments, argv)
    if given.get("list_experiments"):
        from src.config.experiments import print_experiments

        print_experiments(experiment_file(given.get("experiment_config_path", EXPERIMENTS)))
        return {}
    config = parse(DistillArguments, argv)
    from src.data.files import read_datasets
    from src.kd_models_accelerator_multiple_loaders import train_kd
    from src.training.phases import read_experiment

    experiment = read_experiment(config)
    return train_kd(config, read_datasets(config.dataset_path, max_rows=config.max_rows), experiment)


if __name__ == "__main__":
    sys.exit(run_script(main))
