"""Stage: distill a teacher whose log-probabilities are stored with the data (an API's, for example)."""

from src.config.errors import UserError
from src.config.experiments.schema import Experiment, LossEntry
from src.config.flags.train import DistillStoredArguments
from src.data.schema import Datasets, training_splits
from src.data.soft_targets import LOGITS, TOKENS
from src.distillation.teachers import StoredTeacher
from src.preflight.report import report_training
from src.runs.description import FINISHED
from src.training.finish import tidy_and_show_scores, train
from src.training.phase import check_schedule, distillation_phases, with_teacher_settings
from src.training.setup import check_data, load_student, open_training_run, prepare_training


def train_kd(config: DistillStoredArguments, datasets: Datasets, experiment: Experiment) -> dict[str, float]:
    """Distill what the training splits store into `config.student_name`, then fine-tune on `ft` if flags ask for it.

    Returns the test scores of the best weights. Writes scores, predictions, checkpoints and the model folder into
    `config.output_dir` (docs/reliability.md); with --dry_run True only prints a report. Raises UserError for what is
    wrong with flags and data, and for an experiment that needs more than stored log-probabilities.
    """
    config = with_teacher_settings(config)
    run = open_training_run(config, datasets, {"experiment_config_key": experiment.as_json()})
    with run.held():
        if run.status == FINISHED:
            return tidy_and_show_scores(run, config)
        splits = check_data(config, datasets)
        if config.do_train:
            check_schedule(config, datasets, experiment)
            _check_stored(config, datasets, experiment)
        name, weights = config.student_name, config.student_state_dict_path
        student = load_student(config, datasets, run, name, splits=splits, state_dict_path=weights)
        phases = distillation_phases(config, experiment, splits, StoredTeacher()) if config.do_train else []
        trainer = prepare_training(student, phases)
        return report_training(trainer) if config.dry_run else train(trainer)


def _check_stored(config: DistillStoredArguments, datasets: Datasets, experiment: Experiment) -> None:
    """Refuse losses that need the teacher's model, and training splits without log-probabilities."""
    for loss in experiment.losses:
        needs_model = _needs_model(loss)
        if needs_model:
            raise UserError(
                f"experiment '{experiment.key}': '{loss.name}' has {', '.join(needs_model)}, which needs the teacher's "
                "model (kd_main.py); stored log-probabilities serve forward_weight and logits_weight"
            )
    if not experiment.needs_teacher:
        return
    for split in training_splits(datasets):
        missing = [name for name in (TOKENS, LOGITS) if name not in datasets[split]]
        if missing:
            raise UserError(
                f"{config.dataset_path}: split '{split}' has no column '{missing[0]}'; prepare the data with "
                "prepare_datasets_main.py --logits_dataset_path"
            )


def _needs_model(loss: LossEntry) -> list[str]:
    """The keys of a loss entry that only a live teacher can serve."""
    relations = [f"{name}_weight" for name in ("hidden", "attention_relation") if name in loss.weights]
    return relations + [key for key in ("dropout", "generate_labels_weight") if getattr(loss, key)]
