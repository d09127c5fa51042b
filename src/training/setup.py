"""Set up a training run: check flags, data and models, load the student, then build the trainer.

A stage calls `open_training_run`, `check_data`, `load_student` and, once it knows the phases, `prepare_training`. None
of them writes anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from src.config.console import say
from src.config.constants import DEV, FT, NO_TRACKER, TARGET, TEST
from src.config.errors import UserError
from src.config.flags.shared import TrainingArguments
from src.data.references import count_references, row_for_each_reference
from src.data.schema import Datasets, check_datasets, check_trainable, is_training_split, some_texts, training_splits
from src.data.splits import n_rows
from src.decoding.checks import check_decoding
from src.decoding.settings import decoding_of
from src.devices import processes
from src.devices.accelerator import Accelerator, make_accelerator, shards_models
from src.devices.data_parallel import Computation, shard
from src.devices.trackers import check_tracker
from src.distillation.capture import keep_all_layers
from src.evaluation.evaluate import Evaluator
from src.evaluation.metrics import resolve_metrics, score_definitions
from src.models.adapters import Lora, add_lora
from src.models.checks_before_loading import check_lengths, check_model_files
from src.models.compiled import check_can_compile, compile_layers
from src.models.generation_config import apply_settings, fit_to_tokenizer
from src.models.gradient_checkpointing import compute_layers_again
from src.models.loading import is_encoder_decoder, load_config, load_model, load_tokenizer
from src.models.multilingual import set_languages
from src.models.names import find_model, parse_model_name
from src.models.quantized import refuse_quantized
from src.runs.description import UNFINISHED, data_fingerprint
from src.runs.folder import RunFolder, open_run
from src.tokens.chat_preprocessing import preprocessor_of
from src.tokens.preprocessing import Preprocessor
from src.tokens.token_cache import NO_CACHE, TokenCache
from src.tokens.tokenized import TokenizedDatasets
from src.tokens.unknown_characters import check_characters_known
from src.training import checkpoints, rhythm
from src.training.engine import Trainer
from src.training.learning_rate import learning_rate_of
from src.training.optimizers import check_optimizer, make_optimizer
from src.training.phase import Phase
from src.training.resume import resume
from src.training.state import TrainingState


@dataclass(frozen=True)
class Student:
    """A loaded model to be trained, with its data; `splits` are the training splits in the order of rotation.

    resumed: the checkpoint whose weights it has and whose position it continues, None for a new run.
    """

    config: TrainingArguments
    run: RunFolder
    model: PreTrainedModel
    accelerator: Accelerator
    preprocessor: Preprocessor
    data: TokenizedDatasets
    metrics: tuple[str, ...]
    splits: tuple[str, ...]
    resumed: Path | None


def open_training_run(
    config: TrainingArguments, datasets: Datasets, inputs: Mapping[str, Any] | None = None
) -> RunFolder:
    """The output folder of a run with these flags and data. Raises UserError for one that holds something else.

    inputs: what other flags stand for, as JSON values by the flags' names; a run is continued only if they are equal.
    """
    return open_run(config, {"dataset_path": data_fingerprint(config.dataset_path, datasets), **(inputs or {})})


def check_data(config: TrainingArguments, datasets: Datasets) -> tuple[str, ...]:
    """Check that the data have what this run needs; returns the training splits, none with --do_train False."""
    if not config.do_train:
        check_datasets(datasets, config.dataset_path)
        if TEST not in datasets:
            raise UserError(f"{config.dataset_path}: --do_train False scores the split 'test', but there is none")
        return ()
    check_trainable(datasets, config.dataset_path)
    if DEV not in datasets:
        say(f"{config.dataset_path}: no split 'dev'; the last weights will count as the best")
    return tuple(training_splits(datasets))


def check_model(config: TrainingArguments, name: str, state_dict_path: str | Path | None) -> None:
    """Refuse unusable files of a model, and flags that it cannot serve, before its weights are read."""
    if config.compile:
        check_can_compile(load_config(name))
    check_model_files(name, state_dict_path=state_dict_path)
    check_lengths(name, config)


def load_checked(
    config: TrainingArguments,
    name: str,
    state_dict_path: str | Path | None,
    preprocessor: Preprocessor,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load a model with the generation settings of the flags, and compile it if they say so.

    Raises UserError for weights that do not fit and for a model that cannot generate as the flags want.
    """
    model = load_model(name, state_dict_path=state_dict_path, dtype=dtype)
    fit_to_tokenizer(model, preprocessor.tokenizer, preprocessor.end)
    apply_settings(model, name, config)
    check_decoding(model, name, config)
    if config.compile:
        compile_layers(model)
    return model


def load_student(
    config: TrainingArguments,
    datasets: Datasets,
    run: RunFolder,
    name: str,
    *,
    splits: tuple[str, ...],
    state_dict_path: str | None = None,
    lora: Lora | None = None,
) -> Student:
    """Check the model called `name` against flags and data, then load it.

    Its weights are those of the checkpoint to continue from, of --checkpoint_path, of `state_dict_path` or its own, in
    this order. lora: freeze them and train an adapter on top. Raises UserError for what is wrong, before weights are
    read where possible.
    """
    if config.report_to != NO_TRACKER:
        check_tracker(config.report_to)
    metrics = resolve_metrics(config.metrics, config.metric_for_best_model)
    targets = [target for split in (DEV, TEST) if split in datasets for target in datasets[split][TARGET]]
    run.score_definitions = score_definitions(metrics, config.metric_options, count_references(targets))
    resumed = _resumable_folder(config, run)
    weights = resumed or config.checkpoint_path or state_dict_path
    if lora is not None:
        if weights is not None and resumed is None:
            raise UserError(f"--checkpoint_path {weights}: not with --lora_rank; give a model folder as --model_name")
        weights = None  # those of the base model; `resume` reads the adapter
    check_model(config, name, weights)
    refuse_quantized(load_config(name), find_model(parse_model_name(name)[0]), training=config.do_train)
    accelerator = make_accelerator(config)
    check_optimizer(config, accelerator.device)
    if shards_models():
        _check_can_shard(config)
    preprocessor = _load_preprocessor(config, datasets, name)
    cache = NO_CACHE if config.dry_run else TokenCache.beside(config.dataset_path)
    data = TokenizedDatasets(_one_row_per_reference(config, datasets), preprocessor, cache)
    data.check_stored(splits, config.dataset_path)
    model = load_checked(config, name, weights, preprocessor)
    if lora is not None:
        add_lora(model, name, lora, seed=config.seed)
    if config.gradient_checkpointing and config.do_train:
        compute_layers_again(model, name)
    return Student(config, run, model, accelerator, preprocessor, data, metrics, splits, resumed)


def prepare_training(student: Student, phases: Sequence[Phase]) -> Trainer:
    """Build the optimizer, the schedule of the learning rate and the trainer; take up a checkpoint's position.

    Raises UserError for a checkpoint that does not fit the model or the phases.
    """
    config, accelerator, preprocessor = student.config, student.accelerator, student.preprocessor
    compares_layers = any(entry.compares_layers for phase in phases for entry in phase.losses)
    if compares_layers:
        keep_all_layers(student.model, "student")
    stop = processes.stop_requests()
    decoding = decoding_of(
        "beam_search", num_beams=config.num_beams, targets_per_input=1, max_new_tokens=config.max_labels_length
    )
    batch_size, options = config.micro_batch_size, config.metric_options
    evaluator = Evaluator(preprocessor, decoding, student.metrics, batch_size, stop, options)
    updates = _nominal_updates(config, student.data, student.splits, phases)
    rate = learning_rate_of(config, updates, from_checkpoint=_starts_from_weights(student.run))
    learner = _learner(student, hooks_inside=compares_layers)
    # The fused kernel would skip an overflown fp16 update without reporting it.
    made = make_optimizer(config, student.model.parameters(), can_fuse=accelerator.scaler is None)
    optimizer = accelerator.prepare(made)
    schedule, scaler = rate.schedule(optimizer), accelerator.scaler
    training = TrainingState(student.model, preprocessor.tokenizer, optimizer, schedule, scaler, learner)
    trainer = Trainer(config, accelerator, training, student.data, evaluator, student.run, stop, phases, rate)
    if student.resumed is not None:
        resume(trainer, student.resumed)
    return trainer


def _check_can_shard(config: TrainingArguments) -> None:
    refused = {
        f"--optimizer {config.optimizer}": config.optimizer != "adamw",
        "--max_gpu_batch_size auto": config.max_gpu_batch_size is None,
        "--mixed_precision fp16": config.mixed_precision == "fp16",
        "--compile True": config.compile,
    }
    for flag, is_given in refused.items():
        if is_given:
            raise UserError(f"{flag}: not with FSDP; leave it out, or take ddp.yaml")


def _learner(student: Student, *, hooks_inside: bool) -> nn.Module:
    """The student as processes train it together: each with a copy, or with shares of its weights."""
    if shards_models():
        return shard(student.model, student.accelerator.device, hooks_inside=hooks_inside)
    learner: nn.Module = student.accelerator.prepare(Computation(student.model))
    return learner


def _load_preprocessor(config: TrainingArguments, datasets: Datasets, name: str) -> Preprocessor:
    """The model's tokenizer with the prompt and limits of the flags, checked against the texts."""
    tokenizer = load_tokenizer(name, some_texts(datasets))
    set_languages(tokenizer, name, config.source_language, config.target_language)
    kind = is_encoder_decoder(load_config(name))
    preprocessor = preprocessor_of(config, tokenizer, datasets, is_encoder_decoder=kind)
    check_characters_known(preprocessor, datasets, config.dataset_path)
    return preprocessor


def _one_row_per_reference(config: TrainingArguments, datasets: Datasets) -> Datasets:
    """The data with a training row for each reference of an input, unless the flags ask for the first alone."""
    if config.several_references == "first" or not config.do_train:
        return datasets
    expanded = {
        split: row_for_each_reference(columns) if is_training_split(split) or split == FT else columns
        for split, columns in datasets.items()
    }
    for split, columns in expanded.items():
        if columns is not datasets[split]:
            say(f"{split}: {n_rows(columns)} rows, one for each reference of its {n_rows(datasets[split])} inputs")
            break
    return expanded


def _resumable_folder(config: TrainingArguments, run: RunFolder) -> Path | None:
    """The checkpoint to continue from: the flag's if it has an optimizer, else this run's newest state."""
    given = None if config.checkpoint_path is None else Path(config.checkpoint_path)
    if given is not None and not given.exists():
        raise UserError(f"--checkpoint_path {given}: no such file or folder")
    state = checkpoints.StateFolder(run.path).newest() if run.status == UNFINISHED else None
    if given is not None and checkpoints.is_resumable(given) and config.do_train:
        return given if state is None or run.holds(given) else state
    return state


def _starts_from_weights(run: RunFolder) -> bool:
    """Whether the run started from weights that a flag names; a checkpoint with an optimizer continues its schedule."""
    path = run.flags["checkpoint_path"]
    if path is None:
        return run.flags.get("student_state_dict_path") is not None
    return not checkpoints.is_resumable(Path(path))


def _nominal_updates(
    config: TrainingArguments, data: TokenizedDatasets, splits: tuple[str, ...], phases: Sequence[Phase]
) -> int:
    """The updates of all --epochs, run or not, and of the later phases: the learning rate falls to 0 over them."""
    if not phases:
        return 0
    nominal = [rhythm.rotated(splits, epoch) for epoch in range(config.epochs)]
    closing = [rhythm.rotated(phase.splits, epoch) for phase in phases[1:] for epoch in range(phase.epochs)]
    return sum(
        rhythm.updates_in_epoch(data.rows(split), config.micro_batch_size, config.accumulation_steps)
        for split in (*nominal, *closing)
    )
