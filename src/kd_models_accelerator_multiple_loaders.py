"""Stage: distill a live teacher into a student, one training split per epoch."""

import torch

from src.config.errors import UserError
from src.config.experiments.schema import Experiment
from src.config.flags.train import DistillArguments
from src.data.schema import Datasets
from src.decoding.checks import check_decoding
from src.distillation.capture import check_comparable, keep_all_layers
from src.distillation.teachers import LiveTeacher
from src.models.checks_before_loading import check_lengths, check_model_files, check_same_tokenizer
from src.models.compiled import check_can_compile, compile_layers
from src.models.generation_config import apply_settings, fit_to_tokenizer
from src.models.loading import is_encoder_decoder, load_config, load_model, load_tokenizer
from src.preflight.report import report_training
from src.runs.description import FINISHED
from src.training.finish import tidy_and_show_scores, train
from src.training.phase import check_schedule, distillation_phases, with_languages_of, with_prompt
from src.training.setup import Student, check_data, load_student, open_training_run, prepare_training


def train_kd(config: DistillArguments, datasets: Datasets, experiment: Experiment) -> dict[str, float]:
    """Distill `config.teacher_name` into `config.student_name`, then fine-tune on `ft` if the flags ask for it.

    Returns the test scores of the best weights. Writes scores, predictions, checkpoints and the model folder into
    `config.output_dir` (docs/reliability.md); with --dry_run True only prints a report. Raises UserError for what is
    wrong with flags, data or the pairing of the models.
    """
    config = with_prompt(config, config.teacher_name if experiment.needs_teacher else None)
    if experiment.needs_teacher:
        config = with_languages_of(config, config.teacher_name)
    run = open_training_run(config, datasets, {"experiment_config_key": experiment.as_json()})
    with run.held():
        if run.status == FINISHED:
            return tidy_and_show_scores(run, config)
        splits = check_data(config, datasets)
        if config.do_train:
            _check_experiment(config, datasets, experiment)
        name, weights = config.student_name, config.student_state_dict_path
        student = load_student(config, datasets, run, name, splits=splits, state_dict_path=weights)
        phases = []
        if config.do_train:
            teacher = _load_teacher(config, student, experiment) if experiment.needs_teacher else None
            phases = distillation_phases(config, experiment, splits, teacher)
        prepared = prepare_training(student, phases)
        return report_training(prepared) if config.dry_run else train(prepared)


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
    check_model_files(config.teacher_name, state_dict_path=config.teacher_state_dict_path)
    check_lengths(config.teacher_name, config)
    student, teacher = load_config(config.student_name), load_config(config.teacher_name)
    if config.compile:
        check_can_compile(teacher)
    if is_encoder_decoder(student) != is_encoder_decoder(teacher):
        kinds = {True: "encoder-decoder", False: "decoder-only"}
        raise UserError(
            f"--student_name {config.student_name} is {kinds[is_encoder_decoder(student)]}, --teacher_name "
            f"{config.teacher_name} {kinds[is_encoder_decoder(teacher)]}; both must be of one kind"
        )
    check_same_tokenizer(load_tokenizer(config.teacher_name), load_tokenizer(config.student_name))
    check_comparable(experiment, student, teacher)


def _load_teacher(config: DistillArguments, student: Student, experiment: Experiment) -> LiveTeacher:
    dtype = torch.bfloat16 if config.teacher_dtype == "bf16" else torch.float32
    model = load_model(config.teacher_name, state_dict_path=config.teacher_state_dict_path, dtype=dtype)
    fit_to_tokenizer(model, student.preprocessor.tokenizer)
    apply_settings(model, config.teacher_name, config)
    check_decoding(model, config.teacher_name, config)
    if any(loss.compares_layers for loss in experiment.losses):
        keep_all_layers(model, "teacher")
    if config.compile:
        compile_layers(model)
    return LiveTeacher(model.to(student.accelerator.device), experiment.layers.of("teacher"))
