"""Distill a teacher whose log-probabilities are stored in the dataset file."""

from src.config.cli import parse, run_script
from src.config.flags.train import DistillStoredArguments


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train the student and return the test scores of its best checkpoint."""
    config = parse(DistillStoredArguments, argv)
    from src.data.tables import read_data
    from src.kd_models_dataset_with_logits import train_kd
    from src.training.phase import read_experiment

    experiment = read_experiment(config)
    return train_kd(config, read_data(config, config.dataset_path, max_rows=config.max_rows), experiment)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
