"""Stage: distill a live teacher into a student, one training split per epoch."""

import torch

from src.config.errors import UserError
from src.config.experiments.schema import Experiment
from src.config.flags.train import DistillArguments
from src.data.schema import Datasets
from src.devices import processes
from src.devices.accelerator import shards_models
from src.devices.data_parallel import shard
from src.distillation.capture import check_comparable, keep_all_layers
from src.distillation.teachers import LiveTeacher
from src.models.checks_before_loading import check_same_template, check_same_tokenizer
from src.models.loading import is_encoder_decoder, load_config, load_tokenizer
from src.preflight.report import report_training
from src.runs.description import FINISHED
from src.training.finish import tidy_and_show_scores, train
from src.training.phase import check_schedule, distillation_phases, with_teacher_settings
from src.training.setup import (
    Student,
    check_data,
    check_model,
    load_checked,
    load_student,
    open_training_run,
    prepare_training,
)


def train_kd(config: DistillArguments, datasets: Datasets, experiment: Experiment) -> dict[str, float]:
    """Distill `config.teacher_name` into `config.student_name`, then fine-tune on `ft` if the flags ask for it.

    Returns the test scores of the best weights. Writes scores, predictions, checkpoints and the model folder into
    `config.output_dir` (docs/reliability.md); with --dry_run True only prints a report. Raises UserError for what is
    wrong with flags, data or the pairing of the models.
    """
    config = with_teacher_settings(config, config.teacher_name if experiment.needs_teacher else None)
    run = open_training_run(config, datasets, {"experiment_config_key": experiment.as_json()})
    with run.held():
        if run.status == FINISHED:
            return tidy_and_show_scores(run, config)
        splits = check_data(config, datasets)
        if config.do_train:
            _check_experiment(config, datasets, experiment)
            _teacher_device(config)
        name, weights = config.student_name, config.student_state_dict_path
        student = load_student(config, datasets, run, name, splits=splits, state_dict_path=weights)
        phases = []
        if config.do_train:
            teacher = _load_teacher(config, student, experiment) if experiment.needs_teacher else None
            phases = distillation_phases(config, experiment, splits, teacher)
        trainer = prepare_training(student, phases)
        return report_training(trainer) if config.dry_run else train(trainer)


def _check_experiment(config: DistillArguments, datasets: Datasets, experiment: Experiment) -> None:
    """Refuse what is wrong with the experiment and the pairing of the models, before any weights are read."""
    check_schedule(config, datasets, experiment)
    for loss in experiment.losses:
        if loss.missing_mass != "drop":
            raise UserError(
                f"experiment '{experiment.key}': '{loss.name}' sets missing_mass, which applies only to stored "
                "log-probabilities (kd_dataset_with_logits_main.py); remove it"
            )
    if config.compile and any(loss.compares_layers for loss in experiment.losses):
        raise UserError(f"--compile True: experiment '{experiment.key}' compares states in layers; leave it out")
    if experiment.needs_teacher:
        _check_teacher(config, experiment)


def _check_teacher(config: DistillArguments, experiment: Experiment) -> None:
    """Refuse a teacher whose files are unusable or that cannot teach this student."""
    check_model(config, config.teacher_name, config.teacher_state_dict_path)
    student, teacher = load_config(config.student_name), load_config(config.teacher_name)
    if is_encoder_decoder(student) != is_encoder_decoder(teacher):
        kinds = {True: "encoder-decoder", False: "decoder-only"}
        raise UserError(
            f"--student_name {config.student_name} is {kinds[is_encoder_decoder(student)]}, --teacher_name "
            f"{config.teacher_name} {kinds[is_encoder_decoder(teacher)]}; both must be of one kind"
        )
    tokenizers = load_tokenizer(config.teacher_name), load_tokenizer(config.student_name)
    check_same_tokenizer(*tokenizers)
    if config.chat_template:
        check_same_template(*tokenizers, config.system_prompt)
    check_comparable(experiment, student, teacher)


def _teacher_device(config: DistillArguments) -> torch.device | None:
    """The device of --teacher_device. Raises UserError if it is not there."""
    if config.teacher_device is None:
        return None
    try:
        device = torch.device(config.teacher_device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--teacher_device {config.teacher_device}: {str(error).splitlines()[0]}") from None
    if device.type != "cpu" and processes.count() > 1:
        raise UserError(f"--teacher_device {device}: several processes would share it; take cpu, or leave it out")
    return device


def _load_teacher(config: DistillArguments, student: Student, experiment: Experiment) -> LiveTeacher:
    dtype = torch.bfloat16 if config.teacher_dtype == "bf16" else torch.float32
    weights = config.teacher_state_dict_path
    model = load_checked(config, config.teacher_name, weights, student.preprocessor, dtype)
    if any(loss.compares_layers for loss in experiment.losses):
        keep_all_layers(model, "teacher")
    layers, device = experiment.layers.of("teacher"), _teacher_device(config)
    if shards_models() and device is None:
        return LiveTeacher(model, layers, shard(model, student.accelerator.device))
    device = device or student.accelerator.device
    return LiveTeacher(model.to(device), layers)  # type: ignore[arg-type]
