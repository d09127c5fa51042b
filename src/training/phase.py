"""Phases of training, and those of an experiment."""

from dataclasses import dataclass, field, replace
from typing import TypeVar

from src.config.console import say
from src.config.constants import DEV, FT
from src.config.errors import UserError
from src.config.experiments.load import load_experiment
from src.config.experiments.schema import Experiment, LossEntry, Schedule
from src.config.flags.train import DISTILL_PROMPT, DistillStoredArguments
from src.data.schema import Datasets
from src.distillation.capture import LayerIndices
from src.distillation.teachers import Teacher
from src.models.folders import TrainedPrompt, trained_prompt, warn_if_prompt_differs
from src.models.loading import tokenizer_settings
from src.models.multilingual import saved_languages

FORWARD = LossEntry(name="forward", forward_weight=1.0)  # plain fine-tuning: NLL of the labels


NEVER_CHANGES = Schedule(name="no_scheduling")


@dataclass(frozen=True)
class Phase:
    """A part of training: distillation with an experiment, or fine-tuning.

    splits: one per epoch, in rotation. epochs: their number. losses: learned one at a time, as `schedule` says.
    layers: those of the student that losses compare. teacher: None if no loss needs one. from_best: begin with the best
    checkpoint so far (weights, optimizer, scheduler).
    """

    name: str
    splits: tuple[str, ...]
    epochs: int
    losses: tuple[LossEntry, ...] = (FORWARD,)
    schedule: Schedule = NEVER_CHANGES
    layers: LayerIndices = field(default_factory=dict)
    teacher: Teacher | None = None
    from_best: bool = False


Distillation = TypeVar("Distillation", bound=DistillStoredArguments)


def read_experiment(config: DistillStoredArguments) -> Experiment:
    """Load the experiment that the flags name; its schedule may use --epochs and --n_patience_epochs."""
    return load_experiment(
        config.experiment_file,
        config.experiment_config_key,
        epochs=config.stop_training_after_n_epochs or config.epochs,
        n_patience_epochs=config.n_patience_epochs,
    )


def with_teacher_settings(config: Distillation, teacher_name: str | None = None) -> Distillation:
    """The arguments with prompt and languages: the flags', else those saved in the teacher's folder.

    Without either, the prompt is the published default, or none with a chat template. Prints a prompt that comes from
    the teacher's folder, and warns if flags contradict it. teacher_name: None if there is no model of the teacher.
    """
    known = None if teacher_name is None else trained_prompt(teacher_name)
    uses_chat = bool(known.chat_template if known and config.chat_template is None else config.chat_template)
    usual = known or TrainedPrompt("" if uses_chat else DISTILL_PROMPT)
    # Without a chat template the flags of one stay None, as they are in the folders of runs that had none.
    names = ("task_prompt", "chat_template", "system_prompt") if uses_chat else ("task_prompt",)
    taken = {name: getattr(usual, name) for name in names if getattr(config, name) is None}
    config = replace(config, **taken)
    if known is not None and ("task_prompt" in taken or "chat_template" in taken):
        say(f"{known}: as --teacher_name {teacher_name} was trained")
    if teacher_name is not None:
        warn_if_prompt_differs(config, teacher_name, "teacher_name")
    if config.chat_template:
        warn_if_prompt_differs(config, config.student_name, "student_name")
    if teacher_name is None:
        return config
    source, target = saved_languages(tokenizer_settings(teacher_name))
    return replace(
        config, source_language=config.source_language or source, target_language=config.target_language or target
    )


def distillation_phases(
    config: DistillStoredArguments, experiment: Experiment, splits: tuple[str, ...], teacher: Teacher | None
) -> list[Phase]:
    """The phases of a distillation: the experiment, then --ft_steps_at_end epochs from the best checkpoint."""
    distill = Phase(
        f"distill ({experiment.name})",
        splits,
        config.stop_training_after_n_epochs or config.epochs,
        losses=experiment.losses,
        schedule=experiment.schedule,
        layers=experiment.layers.of("student"),
        teacher=teacher,
    )
    if not config.ft_steps_at_end:
        return [distill]
    return [distill, Phase("fine-tune", (FT,), config.ft_steps_at_end, from_best=True)]


def check_schedule(config: DistillStoredArguments, datasets: Datasets, experiment: Experiment) -> None:
    """Raise UserError if the closing fine-tuning or the experiment's schedule needs a split that the data lack."""
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
