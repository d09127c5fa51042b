"""Distill a teacher that is loaded together with the student."""

from src.config.cli import parse, run_script
from src.config.flags.train import DistillArguments


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train the student and return the test scores of its best checkpoint."""
    config = parse(DistillArguments, argv)
    from src.data.tables import read_data
    from src.kd_models_accelerator_multiple_loaders import train_kd
    from src.training.phase import read_experiment

    experiment = read_experiment(config)
    return train_kd(config, read_data(config, config.dataset_path, max_rows=config.max_rows), experiment)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
