"""Checkpoints: folders with a model, its optimizer and the state of the run, whole or not there at all."""

import re
import secrets
import shutil
import zlib
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
from src.distillation.loss_schedule import Stage
from src.models.forward import unwrapped
from src.models.loading import in_one_line, load_saved, read_tensors
from src.models.prompts import KEY, PROMPT_FILE
from src.models.students import quiet
from src.storage.atomic import whole_folder, writing_to
from src.storage.json_files import read_json, write_json

OPTIMIZER, STATE = "optimizer.pt", "run_state.json"
NAME = re.compile(r"\w[-\w]*")  # of a checkpoint's folder: it leads nowhere else
LAST = "__last"  # closes the name of the last checkpoint of the distillation phase
CARD = "README.md"


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
    stage: Stage = field(default_factory=Stage)
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
            state = cls(**values, best=None if best is None else Best(**best), stage=Stage(**stage))
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
            checks["best"] = _is_number(best.score) and _is_count(best.epoch) and _is_count(best.step)
            checks["best.folder"] = _is_name(best.folder)
        for name, numbers in (("losses", self.losses), ("scales", self.scales), ("sums", self.sums)):
            checks[name] = isinstance(numbers, dict) and all(map(_is_number, numbers.values()))
        checks["said"] = isinstance(self.said, list) and all(isinstance(each, str) for each in self.said)
        return checks


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_name(value: object) -> bool:
    """Of something in the run's folder: it is made, copied and removed by this name."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None


@dataclass
class Training:
    """What a checkpoint saves besides the run's position."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler | None = None


def save_checkpoint(folder: Path, training: Training, state: RunState) -> None:
    """Write a checkpoint: a model folder that `from_pretrained` opens, plus optimizer and position."""
    with whole_folder(folder) as temporary:
        save_model(temporary, training.model, training.tokenizer)
        saved = {"optimizer": training.optimizer.state_dict()}
        if training.scaler is not None:
            saved["scaler"] = training.scaler.state_dict()
        _save_tensors(saved, temporary / OPTIMIZER)
        described = {"run": asdict(state), "scheduler": training.scheduler.state_dict()}
        write_json(temporary / STATE, described | {"checksums": _checksums(temporary)}, indent=1)


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 by the name of each file of weights; those of torch have some inside."""
    return {file.name: _checksum(file) for file in sorted(folder.glob("*.safetensors"))}


def _checksum(file: Path) -> int:
    total = 0
    with file.open("rb") as content:
        while piece := content.read(2**24):
            total = zlib.crc32(piece, total)
    return total


def _save_tensors(values: dict[str, Any], path: Path) -> None:
    """`torch.save`, by a file of Python's: its errors say what is wrong (no space)."""
    with path.open("wb") as file:
        torch.save(values, file)


def load_checkpoint(folder: Path, training: Training) -> RunState:
    """Restore weights, optimizer, scheduler and scaler in place; returns the position."""
    state = RunState.read(folder)
    load_weights(training.model, folder)
    with in_one_line(str(folder / OPTIMIZER), "cannot be read"):
        saved = read_tensors(folder / OPTIMIZER)
        if not _are_alike(saved["optimizer"]["param_groups"], training.optimizer.state_dict()["param_groups"]):
            raise ValueError("its groups of parameters are not this model's")
        training.optimizer.load_state_dict(saved["optimizer"])
        _check_moments(training.optimizer)
        if training.scaler is not None and "scaler" in saved:
            if not _are_alike(saved["scaler"], training.scaler.state_dict()):
                raise ValueError("its scaler holds something else than numbers")
            training.scaler.load_state_dict(saved["scaler"])
    scheduler = read_json(folder / STATE).get("scheduler")
    if not _are_alike(scheduler, training.scheduler.state_dict()):
        raise UserError(f"{folder / STATE}: not the state of a run: 'scheduler' is another kind of value")
    training.scheduler.load_state_dict(scheduler)
    return state


def _check_moments(optimizer: Optimizer) -> None:
    """`load_state_dict` looks at the number of parameters alone."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, moment in optimizer.state.get(parameter, {}).items():
                if name != "step" and (not isinstance(moment, torch.Tensor) or moment.shape != parameter.shape):
                    raise ValueError(f"its {name} is not of the shape of a parameter")


def _are_alike(value: Any, model: Any) -> bool:
    """Whether two values of lists and dicts differ in numbers at most."""
    if isinstance(model, dict):
        has_keys = isinstance(value, dict) and value.keys() == model.keys()
        return has_keys and all(_are_alike(value[name], model[name]) for name in model)
    if isinstance(model, list):
        return isinstance(value, list) and len(value) == len(model) and all(map(_are_alike, value, model))
    return _is_number(value) if _is_number(model) else type(value) is type(model)


def is_resumable(folder: Path) -> bool:
    """Whether a folder is a checkpoint with optimizer and position, and not weights alone."""
    return (folder / STATE).is_file() and (folder / OPTIMIZER).is_file()


def save_model(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, card: str | None = None) -> None:
    """Write a portable model folder: safetensors, config, generation config, tokenizer and model card."""
    core: PreTrainedModel = unwrapped(model)
    with quiet():
        core.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")


def save_portable(
    folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, card: str, task_prompt: str
) -> None:
    """As `save_model`, atomically and with the prompt that the model was trained with."""
    with whole_folder(folder) as temporary:
        save_model(temporary, model, tokenizer, card)
        write_json(temporary / PROMPT_FILE, {KEY: task_prompt})


def load_weights(model: nn.Module, folder: Path) -> None:
    """Restore the weights of a checkpoint folder into a model of the same architecture."""
    core = unwrapped(model)
    _check_sums(folder)
    core.load_state_dict(load_saved(folder, core.config).state_dict())


def _check_sums(folder: Path) -> None:
    """Raise UserError for weights that have changed since their checkpoint was saved."""
    if not (folder / STATE).is_file():
        return
    content = read_json(folder / STATE)
    sums = content.get("checksums", {}) if isinstance(content, dict) else None
    if not isinstance(sums, dict):
        raise UserError(f"{folder / STATE}: not the state of a run: 'checksums' is another kind of value")
    for file in folder.glob("*.safetensors"):
        if file.name in sums and sums[file.name] != _checksum(file):
            raise UserError(f"{file}: has changed since it was saved, by its checksum in {STATE}")


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
        values["run"] |= {"n_rows": 0, "n_losses": 0, "sums": {}}
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
    """Replace a checkpoint folder by `<folder>__model.pt`, the bare state dict, and return its path.

    The stock class loads it with `load_state_dict(strict=True)`: tied weights stand under all their names.
    """
    values = load_saved(folder).state_dict()
    path = folder.with_name(f"{folder.name}__model.pt")
    temporary = path.with_name(f".{path.name}.tmp")
    with writing_to(path):
        _save_tensors(values, temporary)
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
