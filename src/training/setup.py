"""Set up a training run: check flags, data and models, then load them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from src.config.console import say
from src.config.constants import DEV, FT, TARGET, TEST
from src.config.errors import UserError
from src.config.flags.shared import TrainingArguments
from src.config.signals import StopRequests
from src.data.references import count_references, row_for_each_reference
from src.data.schema import (
    Datasets,
    check_datasets,
    check_trainable,
    is_training_split,
    some_texts,
    training_splits,
)
from src.data.splits import n_rows
from src.decoding.checks import check_decoding
from src.decoding.settings import decoding_of
from src.devices.processes import Accelerator, make_accelerator
from src.distillation.capture import keep_all_layers
from src.evaluation.evaluate import Evaluator
from src.evaluation.metrics import resolve_metrics, score_definitions
from src.models.checks_before_loading import check_lengths, check_model_files
from src.models.compiled import check_can_compile, compile_layers
from src.models.generation_config import apply_settings, fit_to_tokenizer
from src.models.loading import is_encoder_decoder, load_config, load_model, load_tokenizer
from src.models.multilingual import set_languages
from src.runs.description import UNFINISHED, data_fingerprint
from src.runs.folder import RunFolder, open_run
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets
from src.tokens.unknown_characters import check_characters_known
from src.training import checkpoints, rhythm
from src.training.engine import Trainer
from src.training.phase import Phase
from src.training.state import TrainingState


@dataclass(frozen=True)
class Task:
    """What a stage wants trained.

    model_name, state_dict_path: the model, and its weights if not the name's own. phases(accelerator, tokenizer,
    splits): called once the model is known to be sound; splits are the training splits in the order of rotation.
    check(): raises for whatever else can be wrong, before weights are read. inputs: what flags stand for besides the
    data, as JSON values by the flags' names: a run is only continued with equal ones.
    """

    model_name: str
    phases: Callable[[Accelerator, PreTrainedTokenizerBase, tuple[str, ...]], Sequence[Phase]]
    state_dict_path: str | None = None
    check: Callable[[], None] = lambda: None
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train: all that can be wrong has been looked for, and nothing is written yet.

    name: the model's. updates: those after which the learning rate is 0, warmup: those in which it rises.
    """

    trainer: Trainer
    phases: Sequence[Phase]
    name: str
    updates: int
    warmup: int


def open_training_run(config: TrainingArguments, datasets: Datasets, task: Task) -> RunFolder:
    """The output folder of a run with these flags and data. Raises UserError for one that holds something else."""
    return open_run(config, {"dataset_path": data_fingerprint(config.dataset_path, datasets), **task.inputs})


def prepare_training(config: TrainingArguments, datasets: Datasets, task: Task, run: RunFolder) -> Prepared:
    """Check flags, data and models, and load them: what is left to do is to train, or to report what it would take."""
    splits = _check(config, datasets)
    task.check()
    if config.compile:
        check_can_compile(load_config(task.model_name))
    metrics = resolve_metrics(config.metrics, config.metric_for_best_model)
    evaluated = [target for split in (DEV, TEST) if split in datasets for target in datasets[split][TARGET]]
    run.score_definitions = score_definitions(metrics, config.metric_options, count_references(evaluated))
    resumed = _resumable_folder(config, run)
    weights = resumed or config.checkpoint_path or task.state_dict_path
    check_model_files(task.model_name, state_dict_path=weights)
    check_lengths(task.model_name, config)
    accelerator = make_accelerator(config)

    tokenizer = load_tokenizer(task.model_name, some_texts(datasets))
    set_languages(tokenizer, task.model_name, config.source_language, config.target_language)
    kind = is_encoder_decoder(load_config(task.model_name))
    preprocessor = Preprocessor.of(config, tokenizer, is_encoder_decoder=kind)
    check_characters_known(preprocessor, datasets, config.dataset_path)
    data = TokenizedDatasets(_rows_to_learn(config, datasets), preprocessor)
    data.check_stored(splits, config.dataset_path)
    model = load_model(task.model_name, state_dict_path=weights)
    fit_to_tokenizer(model, tokenizer)
    apply_settings(model, task.model_name, config)
    check_decoding(model, task.model_name, config)
    if config.compile:
        compile_layers(model)
    phases = task.phases(accelerator, tokenizer, splits) if config.do_train else ()
    if any(entry.compares_layers for phase in phases for entry in phase.losses):
        keep_all_layers(model, "student")
    stop = StopRequests()
    decoding = decoding_of(
        "beam_search", num_beams=config.num_beams, targets_per_input=1, max_new_tokens=config.max_labels_length
    )
    evaluator = Evaluator(
        preprocessor,
        decoding,
        metrics,
        config.micro_batch_size,
        accelerator.device,
        stop.check,
        config.metric_options,
    )
    updates = _nominal_updates(config, data, splits, phases)
    warmup = rhythm.warmup_updates(updates, from_checkpoint=_starts_from_weights(run))
    model = accelerator.prepare(model)
    optimizer = accelerator.prepare(_optimizer(config, model, fused=accelerator.scaler is None))
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, updates)
    training = TrainingState(model, tokenizer, optimizer, scheduler, accelerator.scaler)
    trainer = Trainer(config, accelerator, training, data, evaluator, run, stop)
    if resumed is not None:
        trainer.resume(resumed, phases)
    return Prepared(trainer, phases, task.model_name, updates, warmup)


def _check(config: TrainingArguments, datasets: Datasets) -> tuple[str, ...]:
    """The training splits, once the data are known to be what this run needs."""
    if not config.do_train:
        check_datasets(datasets, config.dataset_path)
        if TEST not in datasets:
            raise UserError(f"{config.dataset_path}: --do_train False scores the split 'test', but there is none")
        return ()
    check_trainable(datasets, config.dataset_path)
    if DEV not in datasets:
        say(f"{config.dataset_path}: no split 'dev'; the last weights will count as the best")
    return tuple(training_splits(datasets))


def _rows_to_learn(config: TrainingArguments, datasets: Datasets) -> Datasets:
    """The data with a row for each reference, unless the flags want the first alone, where something is learned."""
    if config.several_references == "first" or not config.do_train:
        return datasets
    learned = {
        split: row_for_each_reference(columns) if is_training_split(split) or split == FT else columns
        for split, columns in datasets.items()
    }
    for split, columns in learned.items():
        if columns is not datasets[split]:
            say(f"{split}: {n_rows(columns)} rows, one for each reference of its {n_rows(datasets[split])} inputs")
            break
    return learned


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
    """Whether the run began from weights that a flag names; a checkpoint with an optimizer goes on in its schedule."""
    path = run.flags["checkpoint_path"]
    if path is None:
        return run.flags.get("student_state_dict_path") is not None
    return not checkpoints.is_resumable(Path(path))


def _optimizer(config: TrainingArguments, model: nn.Module, *, fused: bool) -> torch.optim.AdamW:
    """AdamW, in one kernel if `fused`: one that skips an update by itself when a scaler says so, and tells nobody."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        eps=config.optimizer_eps,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _nominal_updates(
    config: TrainingArguments, data: TokenizedDatasets, splits: tuple[str, ...], phases: Sequence[Phase]
) -> int:
    """Updates that the learning rate falls to 0 over: those of all --epochs, run or not, and of the later phases."""
    if not phases:
        return 0
    nominal = [rhythm.rotated(splits, epoch) for epoch in range(config.epochs)]
    closing = [rhythm.rotated(phase.splits, epoch) for phase in phases[1:] for epoch in range(phase.epochs)]
    return sum(
        rhythm.updates_in_epoch(data.rows(split), config.micro_batch_size, config.accumulation_steps)
        for split in (*nominal, *closing)
    )
