"""Resume a training run from a checkpoint, and begin to write."""

from pathlib import Path

from src.config.console import say
from src.config.errors import UserError
from src.devices import processes
from src.runs.records import LOSSES, SCORES, check_records, truncate_records
from src.training import checkpoints, rhythm
from src.training.engine import Trainer


def resume(trainer: Trainer, folder: Path) -> None:
    """Load a checkpoint's weights, optimizer, scheduler and position. Writes nothing.

    A checkpoint of another run (of the same model) is continued too, without that run's rows and predictions.
    Raises UserError if the position does not exist in this run, or files that the checkpoint needs are missing.
    """
    trainer.updater.state, trainer.resumed = checkpoints.load_checkpoint(folder, trainer.training), folder
    state = trainer.state
    if not _has_position(trainer):
        raise UserError(
            f"{folder}: this checkpoint is at epoch {state.epoch}, step {state.steps_done} of phase {state.phase}, "
            f"a position this run never reaches. To use only its weights, pass {folder / 'model.safetensors'}"
        )
    if trainer.run.holds(folder):
        if state.best is not None and not (trainer.run.path / state.best.folder).is_dir():
            raise UserError(f"{folder}: {state.best.folder}, the best checkpoint so far, is missing")
        check_records(trainer.run.path, state.n_rows, state.n_losses, trainer.data.datasets)
    else:
        state.n_rows, state.n_losses = 0, 0


def begin(trainer: Trainer) -> None:
    """Begin to write: make the output folder, or cut its files back to the position of the resumed checkpoint."""
    state, folder = trainer.state, trainer.resumed
    processes.wait_for_all()  # they have read what is removed here
    is_same_run = folder is not None and trainer.run.holds(folder)
    trainer.run.begin(anew=not is_same_run, kept={SCORES: state.n_rows, LOSSES: state.n_losses})
    if folder is None:
        return
    say(f"continuing from {folder}: epoch {state.epoch}, step {state.steps_done}")
    if state.best is not None and not is_same_run:
        if (state.best.epoch, state.best.step) == (state.epoch, state.steps_done - 1):  # these weights
            checkpoints.save_checkpoint(trainer.run.path / state.best.folder, trainer.training, state)
        else:
            say(f"{folder}: is not the best checkpoint of its run; the best is chosen anew")
            state.best = None
    trainer.save_state()  # first: if killed now, the run must not find a newer state whose rows are gone
    if processes.is_main():
        truncate_records(trainer.run.path, state.n_rows, state.n_losses)
        checkpoints.remove_others(trainer.run.path, keep=() if state.best is None else (state.best.folder,))


def _has_position(trainer: Trainer) -> bool:
    state, phases = trainer.state, trainer.phases
    if state.phase >= len(phases) or state.stage.index >= len(phases[state.phase].losses):
        return False
    split = rhythm.rotated(phases[state.phase].splits, state.epoch - state.phase_start)
    return state.steps_done <= rhythm.steps_in_epoch(trainer.data.rows(split), trainer.config.micro_batch_size)
