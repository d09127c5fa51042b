"""What both kinds of distillation share: the experiment that the flags name, and the phases it is learnt in."""

from src.config.arguments import DistillStoredArguments
from src.config.constants import DEV, FT
from src.config.errors import UserError
from src.config.experiments import Experiment, load_experiment
from src.data.checks import Datasets
from src.distillation.teachers import Teacher
from src.training.engine import Phase


def read_experiment(config: DistillStoredArguments) -> Experiment:
    """The experiment that the flags name, with the numbers that its schedule takes from them."""
    return load_experiment(
        config.experiment_file,
        config.experiment_config_key,
        epochs=config.stop_training_after_n_epochs or config.epochs,
        n_patience_epochs=config.n_patience_epochs,
    )


def distillation_phases(
    config: DistillStoredArguments, experiment: Experiment, splits: tuple[str, ...], teacher: Teacher | None
) -> list[Phase]:
    """Learning the experiment, and the closing fine-tuning from the best checkpoint if the flags ask for one."""
    distil = Phase(
        f"distil ({experiment.name})",
        splits,
        config.stop_training_after_n_epochs or config.epochs,
        losses=experiment.losses,
        schedule=experiment.schedule,
        layers=experiment.layers.of("student"),
        teacher=teacher,
    )
    if not config.ft_steps_at_end:
        return [distil]
    return [distil, Phase("fine-tune", (FT,), config.ft_steps_at_end, from_best=True)]


def check_schedule(config: DistillStoredArguments, datasets: Datasets, experiment: Experiment) -> None:
    """Raise UserError if the closing fine-tuning or the experiment's schedule needs a split that is not there."""
    if config.ft_steps_at_end and FT not in datasets:
        raise UserError(
            f"{config.dataset_path}: --ft_steps_at_end {config.ft_steps_at_end} trains on the split '{FT}', but there "
            "is none; prepare_datasets_main.py makes it, or leave the flag out"
        )
    if len(experiment.losses) > 1 and experiment.schedule.follows_evaluations and DEV not in datasets:
        raise UserError(
            f"{config.dataset_path}: the schedule '{experiment.schedule.name}' follows the evaluations on 'dev', but "
            "there is no such split"
        )
