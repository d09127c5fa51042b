"""What a run has to remember to continue where it stopped."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from src.config.errors import UserError
from src.distillation.loss_schedule import SchedulePosition
from src.storage.json_files import read_json

STATE = "run_state.json"
NAME = re.compile(r"\w[-\w]*")  # of a checkpoint's folder: it leads nowhere else


@dataclass
class Best:
    """The best evaluation so far: its score, its place, the name of the folder that holds it, and its NLL."""

    score: float
    epoch: int
    step: int
    folder: str
    nll: float | None = None


@dataclass
class RunState:
    """Where a run stands. Everything random in training is derived from (seed, epoch, step): no generator is saved.

    phase, epoch, steps_done: the position; epoch counts on through the phases, from phase_start in this one.
    evaluated: steps_done of the epoch's last evaluation. best_epoch: last epoch of this phase with a new best, for
    patience. last: the latest evaluation's folder name. n_rows, n_losses: evaluations and rows of losses in the run's
    files that belong to this state; sums: their CRC-32 by file. losses: sums since the last row of losses. stage,
    scales: of this phase's loss.
    said: warnings that are given once per run, and have been.
    """

    phase: int = 0
    epoch: int = 0
    steps_done: int = 0
    updates: int = 0
    evaluated: int = 0
    phase_start: int = 0
    best_epoch: int = -1
    best: Best | None = None
    last: str = ""
    n_rows: int = 0
    n_losses: int = 0
    sums: dict[str, int] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    stage: SchedulePosition = field(default_factory=SchedulePosition)
    scales: dict[str, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "RunState":
        """Raises UserError if the file holds anything else: among others, names of folders that lead elsewhere."""
        content = read_json(folder / STATE)
        values = content.get("run") if isinstance(content, dict) else None
        values = dict(values) if isinstance(values, dict) else {}
        try:
            best, stage = values.pop("best"), values.pop("stage")
            state = cls(**values, best=None if best is None else Best(**best), stage=SchedulePosition(**stage))
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{folder / STATE}: not the state of a run of this version: {error}") from None
        wrong = [name for name, is_right in state._checks().items() if not is_right]
        if wrong:
            raise UserError(f"{folder / STATE}: not the state of a run: '{wrong[0]}' is another kind of value")
        return state

    def _checks(self) -> dict[str, bool]:
        counts = ("phase", "epoch", "steps_done", "updates", "evaluated", "phase_start", "n_rows", "n_losses")
        checks = {name: _is_count(getattr(self, name)) for name in counts}
        checks |= {f"stage.{name}": _is_count(value) for name, value in asdict(self.stage).items()}
        checks["best_epoch"] = self.best_epoch == -1 or _is_count(self.best_epoch)
        checks["last"] = self.last == "" or _is_name(self.last)
        if self.best is not None:
            best = self.best
            checks["best"] = is_number(best.score) and _is_count(best.epoch) and _is_count(best.step)
            checks["best.folder"] = _is_name(best.folder)
        for name, numbers in (("losses", self.losses), ("scales", self.scales), ("sums", self.sums)):
            checks[name] = isinstance(numbers, dict) and all(map(is_number, numbers.values()))
        checks["said"] = isinstance(self.said, list) and all(isinstance(each, str) for each in self.said)
        return checks


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_name(value: object) -> bool:
    """Of something in the run's folder: it is made, copied and removed by this name."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None


@dataclass
class TrainingState:
    """What a checkpoint saves besides the run's position."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler | None = None
