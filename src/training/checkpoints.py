"""Checkpoints: folders with a model, its optimiser and the state of the run, whole or not there at all."""

import secrets
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.errors import UserError
from src.data.files import read_json, whole_folder, write_json, writing_to
from src.distillation.loss_scheduler import Stage
from src.models.forward import unwrapped
from src.models.loading import READ_ERRORS, read_state_dict
from src.models.students import quiet

OPTIMIZER, STATE = "optimizer.pt", "run_state.json"
LAST = "__last"  # closes the name of the last checkpoint of the distillation phase
CARD = "README.md"


@dataclass
class Best:
    """The best evaluation so far: its score, its place, and the name of the folder that holds it."""

    score: float
    epoch: int
    step: int
    folder: str


@dataclass
class RunState:
    """Where a run stands. Everything random in training is derived from (seed, epoch, step): no generator is saved.

    phase, epoch, steps_done: the position; epoch counts on through the phases, from phase_start in this one.
    evaluated: steps_done of the epoch's last evaluation. best_epoch: last epoch of this phase with a new best, for
    patience. last: the latest evaluation's folder name. n_rows, n_losses: evaluations and rows of losses in the run's
    files that belong to this state. losses: sums since the last row of losses. stage, scales: of this phase's loss.
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
    losses: dict[str, float] = field(default_factory=dict)
    stage: Stage = field(default_factory=Stage)
    scales: dict[str, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "RunState":
        values = read_json(folder / STATE)["run"]
        try:
            best, stage = values.pop("best"), values.pop("stage")
            return cls(**values, best=None if best is None else Best(**best), stage=Stage(**stage))
        except (TypeError, KeyError) as error:
            raise UserError(f"{folder / STATE}: not the state of a run of this version: {error}") from None


@dataclass
class Training:
    """What a checkpoint saves besides the run's position."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler | None = None


def save_checkpoint(folder: Path, training: Training, state: RunState) -> None:
    """Write a checkpoint: a model folder that `from_pretrained` opens, plus optimiser and position."""
    with whole_folder(folder) as temporary:
        save_model(temporary, training.model, training.tokenizer)
        saved = {"optimizer": training.optimizer.state_dict()}
        if training.scaler is not None:
            saved["scaler"] = training.scaler.state_dict()
        _save_tensors(saved, temporary / OPTIMIZER)
        write_json(temporary / STATE, {"run": asdict(state), "scheduler": training.scheduler.state_dict()}, indent=1)


def _save_tensors(values: dict[str, Any], path: Path) -> None:
    """`torch.save`, by a file of Python's: its errors say what is wrong (no space)."""
    with path.open("wb") as file:
        torch.save(values, file)


def load_checkpoint(folder: Path, training: Training) -> RunState:
    """Restore weights, optimiser, scheduler and scaler in place; returns the position."""
    load_weights(training.model, folder)
    try:
        saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        training.optimizer.load_state_dict(saved["optimizer"])
        if training.scaler is not None and "scaler" in saved:
            training.scaler.load_state_dict(saved["scaler"])
    except READ_ERRORS as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder / OPTIMIZER}: cannot be read: {said}") from None
    training.scheduler.load_state_dict(read_json(folder / STATE)["scheduler"])
    return RunState.read(folder)


def is_resumable(folder: Path) -> bool:
    """Whether a folder is a checkpoint with optimiser and position, and not weights alone."""
    return (folder / STATE).is_file() and (folder / OPTIMIZER).is_file()


def save_model(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, card: str | None = None) -> None:
    """Write a portable model folder: safetensors, config, generation config, tokenizer and model card."""
    core: PreTrainedModel = unwrapped(model)
    with quiet():
        core.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")


def save_portable(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, card: str) -> None:
    """As `save_model`, whole or not at all."""
    with whole_folder(folder) as temporary:
        save_model(temporary, model, tokenizer, card)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Restore the weights of a checkpoint folder into a model of the same architecture; tied weights stay tied."""
    core = unwrapped(model)
    try:
        missing, unexpected = core.load_state_dict(read_state_dict(folder), strict=False)
    except RuntimeError as error:  # tensors of other shapes
        raise UserError(f"{folder}: not weights of this model: {str(error).splitlines()[-1].strip()}") from None
    tied = set(getattr(core, "all_tied_weights_keys", {}))
    computed = set(getattr(core, "_keys_to_ignore_on_save", None) or ())  # Marian's sines
    misfits = sorted({*unexpected, *missing} - tied - computed)
    if misfits:
        raise UserError(f"{folder}: not weights of this model: {misfits[0]}")


def find_best(folder: Path, state: RunState) -> Path | None:
    """Where the best checkpoint that a checkpoint's state names can be found: in the folder itself, or beside it."""
    assert state.best is not None
    if (state.best.epoch, state.best.step) == (state.epoch, state.steps_done - 1):
        return folder  # the weights were judged best and saved at once
    beside = (folder.parent / state.best.folder, folder.parent.parent / state.best.folder)
    return next(filter(is_resumable, beside), None)


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint into another run, which has none of its rows."""
    with whole_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        values = read_json(temporary / STATE)
        values["run"] |= {"n_rows": 0, "n_losses": 0}
        write_json(temporary / STATE, values, indent=1)


def remove(folder: Path) -> None:
    """Remove a folder: at once under its name, so that nobody takes half of one for a whole."""
    former = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.former")
    folder.rename(former)
    shutil.rmtree(former)


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """The best and last checkpoints of a run, in the order of their names."""
    return sorted(entry for entry in output_dir.glob("epoch*__step*") if entry.is_dir())


def remove_others(output_dir: Path, keep: Collection[str]) -> None:
    """Remove best checkpoints that are none any more; the names in `keep` and the last of distillation stay."""
    for folder in checkpoint_folders(output_dir):
        if folder.name not in keep and not folder.name.endswith(LAST):
            remove(folder)


def reduce_to_state_dict(folder: Path) -> Path:
    """Replace a checkpoint folder by `<folder>__model.pt`, the bare state dict, and return its path."""
    path = folder.with_name(f"{folder.name}__model.pt")
    temporary = path.with_name(f".{path.name}.tmp")
    with writing_to(path):
        _save_tensors(read_state_dict(folder), temporary)
        temporary.replace(path)
    remove(folder)
    return path


class StateFolder:
    """The resumable states of a run: `state/<updates>`, of which the newest whole one counts."""

    def __init__(self, output_dir: Path) -> None:
        self.root = output_dir / "state"

    def newest(self) -> Path | None:
        found = [entry for entry in self.root.glob("[0-9]*") if is_resumable(entry)]
        return max(found, key=lambda entry: [int(part) for part in entry.name.split("_")], default=None)

    def save(self, training: Training, state: RunState) -> None:
        """Write the state, unless it is there, and only then remove others."""
        folder = self.root / f"{state.updates}_{state.n_rows}"
        with writing_to(folder):
            self.root.mkdir(exist_ok=True)  # so that what a kill leaves of the first one lies in it, too
        if not is_resumable(folder):  # replacing it would leave a moment without any
            save_checkpoint(folder, training, state)
        for entry in self.root.iterdir():
            if entry != folder:
                remove(entry)

    def clear(self) -> None:
        if self.root.is_dir():
            remove(self.root)
