"""Stage: fine-tune a model on labeled data, usually the teacher."""

from src.config.flags.train import FineTuneArguments
from src.data.schema import Datasets
from src.models.adapters import Lora
from src.preflight.report import report_training
from src.runs.description import FINISHED
from src.training.finish import tidy_and_show_scores, train
from src.training.phase import Phase
from src.training.setup import check_data, load_student, open_training_run, prepare_training


def train_model(config: FineTuneArguments, datasets: Datasets) -> dict[str, float]:
    """Fine-tune `config.model_name` with NLL on `train` (or `train_0 …` in rotation); returns the test scores.

    Writes scores, predictions, checkpoints and the model folder into `config.output_dir` (docs/reliability.md); with
    --dry_run True only prints a report. Raises UserError for what is wrong with flags, data or model.
    """
    run = open_training_run(config, datasets)
    with run.held():
        if run.status == FINISHED:
            return tidy_and_show_scores(run, config)
        splits = check_data(config, datasets)
        lora = None
        if config.lora_rank is not None and config.do_train:
            lora = Lora(config.lora_rank, config.lora_alpha or config.lora_rank)
        student = load_student(config, datasets, run, config.model_name, splits=splits, lora=lora)
        phases = [Phase("fine-tune", splits, config.epochs)] if config.do_train else []
        trainer = prepare_training(student, phases)
        return report_training(trainer) if config.dry_run else train(trainer)
