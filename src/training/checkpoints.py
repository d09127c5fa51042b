"""Save and load checkpoints: model folders with the optimizer and the run's position, written atomically."""

import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from msgspec import to_builtins
from transformers import PreTrainedModel

from src.config.errors import UserError
from src.devices import processes
from src.devices.data_parallel import full_state, is_sharded, load_full_state, share_of, whole
from src.models.adapters import has_lora, load_lora
from src.models.folders import save_model
from src.models.library_errors import in_one_line
from src.models.loading import load_saved
from src.models.weights import read_tensors
from src.storage.atomic import WritingTo, atomic_folder, remove_folder
from src.storage.json_files import write_json
from src.training.state import STATE, RunState, TrainingState, read_state

OPTIMIZER = "optimizer.pt"
LAST = "__last"  # ends the name of the last checkpoint of the first phase


def save_checkpoint(folder: Path, training: TrainingState, state: RunState) -> None:
    """Write a checkpoint: a model (or adapter) folder that `load_model` opens, with optimizer.pt and run_state.json.

    All processes call it, the main one writes.
    """
    optimizer = full_state(training.optimizer)
    with whole(training.model):
        if processes.is_main():
            _save(folder, training, state, optimizer)
        processes.wait_for_all()


def _save(folder: Path, training: TrainingState, state: RunState, optimizer: dict[str, Any]) -> None:
    with atomic_folder(folder) as temporary:
        save_model(temporary, training.model, training.tokenizer)
        saved = {"optimizer": optimizer}
        if training.scaler is not None:
            saved["scaler"] = training.scaler.state_dict()
        _save_tensors(saved, temporary / OPTIMIZER)
        sums = {file.name: _checksum(file) for file in sorted(temporary.glob("*.safetensors"))}
        described = {"run": to_builtins(state), "scheduler": training.scheduler.state_dict(), "checksums": sums}
        write_json(temporary / STATE, described, indent=1)


def _checksum(file: Path) -> int:
    """CRC-32 of a file of weights; a .pt file has its own inside."""
    total = 0
    with file.open("rb") as content:
        while piece := content.read(2**24):
            total = zlib.crc32(piece, total)
    return total


def _save_tensors(values: dict[str, Any], path: Path) -> None:
    """`torch.save` through a Python file, whose errors name the cause (such as a full disk)."""
    with path.open("wb") as file:
        torch.save(values, file)


def load_checkpoint(folder: Path, training: TrainingState) -> RunState:
    """Restore weights, optimizer, scheduler and scaler in place, and return the position.

    Raises UserError for a file that cannot be read, has changed since it was saved, or is of another model.
    """
    state = read_state(folder)
    load_weights(training.model, folder)
    with in_one_line(str(folder / OPTIMIZER), "cannot be read"):
        _check_archive(folder / OPTIMIZER)
        saved = read_tensors(folder / OPTIMIZER)
        load_full_state(training.optimizer, saved["optimizer"])
        if training.scaler is not None and "scaler" in saved:
            training.scaler.load_state_dict(saved["scaler"])
    training.scheduler.load_state_dict({**training.scheduler.state_dict(), **state.scheduler})
    return state.run


def _check_archive(file: Path) -> None:
    """Raise ValueError if a part of a torch.save file does not match its CRC-32, which torch does not read."""
    with ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged, by its own checksum")


def is_resumable(folder: Path) -> bool:
    """Whether a folder is a checkpoint with optimizer and position, rather than only a model."""
    return (folder / STATE).is_file() and (folder / OPTIMIZER).is_file()


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Restore the weights of a checkpoint, or of any model folder, into a model of the same architecture.

    Raises UserError for weights that have changed since their checkpoint was saved.
    """
    sums = read_state(folder).checksums if (folder / STATE).is_file() else {}
    for file in folder.glob("*.safetensors"):
        if file.name in sums and sums[file.name] != _checksum(file):
            raise UserError(f"{file}: has changed since it was saved, by its checksum in {STATE}")
    if has_lora(model):
        load_lora(model, folder)
        return
    values = load_saved(folder, model.config).state_dict()
    if is_sharded(model):
        values = {name: share_of(values[name], like) for name, like in model.state_dict().items()}
    model.load_state_dict(values)


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """The best and last checkpoints of a run, in the order of their names."""
    return sorted(entry for entry in output_dir.glob("epoch*__step*") if entry.is_dir())


def remove_others(output_dir: Path, keep: Collection[str]) -> None:
    """Remove former best checkpoints: all but the names in `keep` and the last one of the first phase."""
    for folder in checkpoint_folders(output_dir):
        if folder.name not in keep and not folder.name.endswith(LAST):
            remove_folder(folder)


def reduce_to_state_dict(folder: Path) -> Path:
    """Replace a checkpoint folder by `<folder>__model.pt`, a bare state dict, and return its path.

    The model's class loads it with `load_state_dict(strict=True)`: tied weights appear under each of their names.
    """
    values = load_saved(folder).state_dict()
    path = folder.with_name(f"{folder.name}__model.pt")
    temporary = path.with_name(f".{path.name}.tmp")
    with WritingTo(path):
        _save_tensors(values, temporary)
        temporary.replace(path)
    remove_folder(folder)
    return path


class StateFolder:
    """The states that a run resumes from: checkpoints `state/<updates>_<evaluations>`; the newest one counts."""

    def __init__(self, output_dir: Path) -> None:
        self.root = output_dir / "state"

    def newest(self) -> Path | None:
        found = [entry for entry in self.root.glob("[0-9]*") if is_resumable(entry)]
        return max(found, key=lambda entry: [int(part) for part in entry.name.split("_")], default=None)

    def save(self, training: TrainingState, state: RunState) -> None:
        """Write the state, unless it exists, then remove older ones."""
        folder = self.root / f"{state.updates}_{state.n_rows}"
        if not processes.from_main(lambda: self._is_there(folder)):  # replacing it would leave a moment without a state
            save_checkpoint(folder, training, state)
        if processes.is_main():
            for entry in self.root.iterdir():
                if entry != folder:
                    remove_folder(entry)

    def _is_there(self, folder: Path) -> bool:
        """Whether a state is saved. Makes the parent folder first: temporary files of a killed save lie in it."""
        with WritingTo(folder):
            self.root.mkdir(exist_ok=True)
        return is_resumable(folder)

    def clear(self) -> None:
        if self.root.is_dir():
            remove_folder(self.root)
