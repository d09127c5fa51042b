"""run_state.json: the position that a run continues from; and the objects that a checkpoint saves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.errors import UserError
from src.distillation.loss_schedule import Count, SchedulePosition
from src.storage.json_files import read_json

STATE = "run_state.json"
OneRate = Annotated[list[float], Meta(min_length=1, max_length=1)]  # the optimizer has one group of parameters


class Best(msgspec.Struct, forbid_unknown_fields=True):
    """The best evaluation so far: its score on dev, its epoch and step, the folder of its checkpoint, and its NLL."""

    score: float
    epoch: Count
    step: Count
    folder: Annotated[str, Meta(pattern=r"^\w[-\w]*\Z")]  # written and removed by this name: it must lead nowhere else
    nll: float | None = None


class RunState(msgspec.Struct, forbid_unknown_fields=True):
    """Where a run is. Random numbers depend on (seed, epoch, step) alone, so no generator is saved.

    phase, epoch, steps_done: the position; steps_done are those of the epoch, and epochs count on through the phases.
    updates: optimizer updates of the run.
    evaluated: the steps_done of the epoch's last evaluation, 0 before it.
    phase_start: the phase's first epoch.
    best_epoch: the last epoch with a new best score, for --n_patience_epochs; before the phase's first one, the epoch
    before the phase (−1).
    best: the best evaluation of the run. last: the name of the latest evaluation's checkpoint, were it saved.
    n_rows, n_losses: evaluations (rows of scores, lines of predictions) and rows of losses written so far.
    losses: sums since the last row of losses, by term.
    stage: the loss being learned, and what decides on the next one.
    scales: the factor of each term of that loss, with `loss_scale`.
    said: names of warnings given already; each is given once per run.
    """

    phase: Count = 0
    epoch: Count = 0
    steps_done: Count = 0
    updates: Count = 0
    evaluated: Count = 0
    phase_start: Count = 0
    best_epoch: Annotated[int, Meta(ge=-1)] = -1
    best: Best | None = None
    last: Annotated[str, Meta(pattern=r"^(\w[-\w]*)?\Z")] = ""
    n_rows: Count = 0
    n_losses: Count = 0
    losses: dict[str, float] = {}
    stage: SchedulePosition = SchedulePosition()
    scales: dict[str, float] = {}
    said: list[str] = []


class SchedulerState(TypedDict):
    """What a learning rate scheduler has to know: rates at the start and now, and its number of steps."""

    base_lrs: OneRate
    last_epoch: Count
    _step_count: Count
    _last_lr: OneRate


class StateFile(msgspec.Struct):
    """What run_state.json holds. checksums: CRC-32 of the checkpoint's files of weights, by name."""

    run: RunState
    scheduler: SchedulerState
    checksums: dict[str, int] = {}


def read_state(folder: Path) -> StateFile:
    """The run_state.json of a checkpoint folder. Raises UserError if a value is of another kind than expected."""
    content = read_json(folder / STATE)
    if isinstance(content, dict) and isinstance(content.get("run"), dict):
        content["run"].pop("sums", None)  # version 1 and before: checksums of the rows written so far
    try:
        return msgspec.convert(content, StateFile)
    except msgspec.ValidationError as error:
        raise UserError(f"{folder / STATE}: not the state of a run of this version: {error}") from None


@dataclass
class TrainingState:
    """What a checkpoint saves besides the run's position. learner: computes with the model in all processes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler | None = None
    learner: nn.Module | None = None
