"""Fine-tune a model, usually the teacher, on labeled data."""

from src.config.cli import parse, run_script
from src.config.flags.train import FineTuneArguments


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune the model and return the test scores of its best checkpoint."""
    config = parse(FineTuneArguments, argv)
    from src.data.tables import read_data
    from src.train_models_accelerator import train_model

    return train_model(config, read_data(config, config.dataset_path, max_rows=config.max_rows))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
