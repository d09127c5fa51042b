"""Stage: fine-tune a model on labeled data, usually the teacher."""

from src.config.flags.fine_tune import FineTuneArguments
from src.data.schema import Datasets
from src.preflight.dry_run import train_or_report
from src.training.phase import Phase
from src.training.setup import Task


def train_model(config: FineTuneArguments, datasets: Datasets) -> dict[str, float]:
    """Fine-tune `config.model_name` with NLL on `train` (or its rotation); returns the test scores of the best weights.

    Writes into `config.output_dir` what SPEC §1 lists. Raises UserError for what is wrong with flags, data or model.
    """
    task = Task(
        config.model_name,
        phases=lambda _accelerator, _tokenizer, splits: [Phase("fine-tune", splits, config.epochs)],
    )
    return train_or_report(config, datasets, task)
