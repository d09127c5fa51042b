"""The training loop: phases, epochs, updates, evaluations. It does not know what distillation is.

A stage builds phases and hands them to `Trainer.fit`. A step is one micro-batch, an update one optimiser step.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from src.config.arguments import TrainingArguments
from src.config.console import progress_bar, say
from src.config.constants import DEV, DEV_PPL, TARGET, TEST
from src.config.errors import UserError
from src.config.experiments import LossEntry
from src.data.batches import Batch, TokenizedDatasets, TokenizedSplit, chunks, epoch_order
from src.distillation.objectives import States, Window, distillation_loss
from src.distillation.teachers import Teacher
from src.evaluation.evaluate import Evaluation, Evaluator
from src.models.forward import target_labels, target_logits
from src.training import checkpoints, rhythm
from src.training.checkpoints import LAST, Best, RunState, StateFolder, Training
from src.training.interrupts import Interrupted, StopRequests
from src.training.tracking import LOSSES, SCORES, RunFolder

FORWARD = LossEntry(name="forward", forward_weight=1.0)  # plain fine-tuning: NLL of the labels
FINAL = -1  # epoch and step of the closing test of the best checkpoint


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one objective.

    splits: rotated, one per epoch. epochs: how many are run. loss: what is learnt. teacher: None where no term needs
    one. from_best: start from the best checkpoint so far (weights, optimiser, scheduler).
    """

    name: str
    splits: tuple[str, ...]
    epochs: int
    loss: LossEntry
    teacher: Teacher | None = None
    from_best: bool = False


class Trainer:
    """Runs phases on one student; leaves the best checkpoint, the last one, scores, losses and predictions.

    Everything random is derived from (seed, epoch, step): a resumed run does what an uninterrupted one does.
    """

    def __init__(
        self,
        config: TrainingArguments,
        accelerator: Accelerator,
        training: Training,
        data: TokenizedDatasets,
        evaluator: Evaluator,
        run: RunFolder,
        stop: StopRequests,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.training = training
        self.data = data
        self.evaluator = evaluator
        self.run = run
        self.stop = stop
        self.state = RunState()
        self.resumed: Path | None = None
        self.states = StateFolder(run.path)
        self.state_saved_at = time.monotonic()

    # -------------------------------------------------------------------------------------------------------- begin

    def resume(self, folder: Path, phases: Sequence[Phase]) -> None:
        """Take up a checkpoint's weights, optimiser, schedule and position; writes nothing.

        The checkpoint of another run (of the same model) gives all this too, but its evaluations stay where they are.
        Raises UserError if `phases` have no such position.
        """
        self.state, self.resumed = checkpoints.load_checkpoint(folder, self.training), folder
        state = self.state
        if not self._has_position(phases):
            raise UserError(
                f"{folder}: stands at epoch {state.epoch}, step {state.steps_done} of phase {state.phase}, which this "
                f"run has not; to start from its weights alone give {folder / 'model.safetensors'}"
            )
        if self.run.holds(folder):
            if state.best is not None and not (self.run.path / state.best.folder).is_dir():
                raise UserError(f"{folder}: the best checkpoint of its time, {state.best.folder}, is gone")
        else:
            state.n_rows = state.n_losses = 0
        say(f"continuing from {folder}: epoch {state.epoch}, step {state.steps_done}")

    def begin(self) -> None:
        """Open the run's folder, the first thing that is written: what it holds becomes that of the position."""
        state, folder = self.state, self.resumed
        goes_on = folder is not None and self.run.holds(folder)
        self.run.begin(anew=not goes_on)
        if folder is None:
            return
        if not goes_on:
            self._adopt_best(folder)
        self._save_state()  # before anything is dropped: from here on nothing newer counts
        self.run.keep_rows(SCORES, state.n_rows)
        self.run.keep_rows(LOSSES, state.n_losses)
        self.run.keep_generations(state.n_rows)
        checkpoints.remove_others(self.run.path, keep=() if state.best is None else (state.best.folder,))

    def _has_position(self, phases: Sequence[Phase]) -> bool:
        state = self.state
        if state.phase >= len(phases):
            return False
        split = rhythm.rotated(phases[state.phase].splits, state.epoch - state.phase_start)
        return state.steps_done <= rhythm.steps_in_epoch(self.data.rows(split), self.config.micro_batch_size)

    def _adopt_best(self, folder: Path) -> None:
        """Copy the best checkpoint of the run that `folder` is from; where it is not to be found, start without."""
        best = self.state.best
        if best is None:
            return
        source = checkpoints.find_best(folder, self.state)
        if source is None:
            say(f"{folder}: its best checkpoint, {best.folder}, is not beside it; the best is chosen anew")
            self.state.best = None
        else:
            checkpoints.copy(source, self.run.path / best.folder)

    # ------------------------------------------------------------------------------------------------------- phases

    def fit(self, phases: Sequence[Phase]) -> None:
        """Run the phases from where the run stands; afterwards the student holds the best weights."""
        self.terms = tuple(dict.fromkeys(term for phase in phases for term in phase.loss.weights))
        try:
            for index in range(self.state.phase, len(phases)):
                self._run_phase(phases[index])
                if index == 0:
                    self._save_last()
                if index + 1 < len(phases):
                    self._enter(index + 1, phases[index + 1])
        except Interrupted:
            self._save_state()
            say(f"stopped at epoch {self.state.epoch}, step {self.state.steps_done}; the same command continues there")
            raise
        if self.state.best is not None:
            checkpoints.load_weights(self.training.model, self.run.path / self.state.best.folder)

    def _enter(self, index: int, phase: Phase) -> None:
        state = self.state
        if phase.from_best and state.best is not None:
            checkpoints.load_checkpoint(self.run.path / state.best.folder, self.training)
        state.phase, state.phase_start, state.best_epoch = index, state.epoch, state.epoch - 1

    def _run_phase(self, phase: Phase) -> None:
        state = self.state
        lengths = [
            rhythm.steps_in_epoch(self.data.rows(rhythm.rotated(phase.splits, epoch)), self.config.micro_batch_size)
            for epoch in range(phase.epochs)
        ]
        done = sum(lengths[: state.epoch - state.phase_start]) + state.steps_done
        with progress_bar(sum(lengths), phase.name, "steps", initial=done) as bar:
            while state.epoch < state.phase_start + phase.epochs:
                if self._is_out_of_patience():
                    say(f"{phase.name}: no better score in {self.config.n_patience_epochs} epochs, stopping")
                    break
                bar.set_description(f"{phase.name}, epoch {state.epoch}", refresh=False)
                split = self.data.split(rhythm.rotated(phase.splits, state.epoch - state.phase_start))
                self._run_epoch(phase, split, bar)
                state.epoch, state.steps_done, state.evaluated = state.epoch + 1, 0, 0

    def _is_out_of_patience(self) -> bool:
        patience = self.config.n_patience_epochs
        return DEV in self.data and rhythm.out_of_patience(self.state.epoch - 1, self.state.best_epoch, patience)

    # ------------------------------------------------------------------------------------------------------- epochs

    def _run_epoch(self, phase: Phase, split: TokenizedSplit, bar: Any) -> None:
        state, micro = self.state, self.config.micro_batch_size
        order = epoch_order(split.lengths, self.config.batch_size, seed=self.config.seed, epoch=state.epoch)
        n_steps = rhythm.steps_in_epoch(len(split), micro)
        interval = rhythm.evaluation_interval(self.config.save_checkpoint_every_n_steps, n_steps)
        while True:
            if rhythm.evaluates_after(state.steps_done, state.evaluated, n_steps, interval):
                self._evaluate(at_epoch_end=state.steps_done == n_steps)
            if state.steps_done == n_steps:
                return
            self.stop.check()
            first = state.steps_done * micro
            window = order[first : first + micro * self.config.accumulation_steps]
            batches = [self._batch(split, rows) for rows in chunks(window, micro)]
            self._update(phase, batches)
            state.steps_done += len(batches)
            bar.update(len(batches))
            self._save_state_in_time()

    def _batch(self, split: TokenizedSplit, rows: np.ndarray) -> Batch:
        return self.evaluator.tokenization.collate(split, rows).to(self.accelerator.device)

    def _update(self, phase: Phase, batches: Sequence[Batch]) -> None:
        """One optimiser update on a window of micro-batches, each weighed by its share of the window."""
        training = self.training
        training.model.train()
        self._seed_update()
        window = Window(sum(len(batch.rows) for batch in batches), sum(len(target_labels(batch)) for batch in batches))
        for batch in batches:
            student = States(target_logits(training.model, batch))
            with self.accelerator.autocast():
                teacher = None if phase.teacher is None else phase.teacher(batch)
            loss, terms = distillation_loss(student, teacher, batch, phase.loss, window)
            self._check_finite(loss, batch, phase)
            self.accelerator.backward(loss)
            self._add_losses({"loss": loss.detach(), **terms})
        training.optimizer.step()
        training.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            training.scheduler.step()
        self._add_losses({"updates": 1})
        self.state.updates += 1

    def _seed_update(self) -> None:
        """Dropout follows from (seed, epoch, step): no generator's state need be saved, evaluation disturbs nothing."""
        place = [self.config.seed, self.state.epoch, self.state.steps_done, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def _check_finite(self, loss: Tensor, batch: Batch, phase: Phase) -> None:
        if torch.isfinite(loss):
            return
        state = self.state
        best = state.best and self.run.path / state.best.folder
        split = rhythm.rotated(phase.splits, state.epoch - state.phase_start)
        raise UserError(
            f"non-finite loss at epoch {state.epoch}, step {state.steps_done}, rows {list(batch.rows)} of '{split}'; "
            f"last good checkpoint: {best or self.states.newest() or 'none yet'}"
        )

    def _add_losses(self, shares: dict[str, Any]) -> None:
        for name, share in shares.items():
            self.state.losses[name] = self.state.losses.get(name, 0.0) + float(share)

    # --------------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, *, at_epoch_end: bool) -> None:
        """The evaluation that is due: dev, and at the end of an epoch test if its turn has come."""
        state = self.state
        results = {DEV: self.evaluate(DEV)} if DEV in self.data else {}
        if at_epoch_end and TEST in self.data and rhythm.is_test_epoch(state.epoch, self.config.test_every_n_epochs):
            results[TEST] = self.evaluate(TEST)
        # Nothing is written before all is known: a run that is stopped in the middle evaluates again.
        self._write_losses()
        for split, result in results.items():
            self.note(split, state.epoch, state.steps_done - 1, result)
        state.evaluated = state.steps_done
        former = state.best
        state.last = f"epoch{state.epoch}__step{state.steps_done - 1}"
        if DEV in results:
            self._keep_if_best(results[DEV].scores[self.config.metric_for_best_model])
        self._save_state()
        if former is not None and former is not state.best:
            checkpoints.remove(self.run.path / former.folder)

    def evaluate(self, split: str, *, final: bool = False) -> Evaluation:
        """Evaluate the student as it is; dev's likelihood is measured on dev_ppl if there is one."""
        likelihood = self.data.split(DEV_PPL) if split == DEV and DEV_PPL in self.data else None
        references = self.data.datasets[split][TARGET]
        return self.evaluator.evaluate(
            self.training.model, self.data.split(split), references, likelihood_split=likelihood, final=final
        )

    def note(self, split: str, epoch: int, step: int, result: Evaluation) -> None:
        """Write an evaluation's row and predictions, and print its main scores."""
        columns = ("split", "epoch", "step", *self.evaluator.columns)
        self.run.append_row(SCORES, columns, {"split": split, "epoch": epoch, "step": step, **result.scores})
        self.run.append_generations(split, epoch, step, result.predictions)
        self.state.n_rows += 1
        shown = dict.fromkeys(name for name in (self.config.metric_for_best_model, "nll") if name in result.scores)
        place = "best checkpoint" if epoch == FINAL else f"epoch {epoch} step {step}"
        say(f"{place:<18} {split:<5}" + "".join(f"  {name} {result.scores[name]:.3f}" for name in shown))

    def _keep_if_best(self, score: float) -> None:
        state = self.state
        state.last += f"__score{score:.3f}".replace(".", "_")
        former = None if state.best is None else state.best.score
        if rhythm.is_better(score, former, greater_is_better=self.config.greater_is_better):
            state.best_epoch = state.epoch
            state.best = Best(score, state.epoch, state.steps_done - 1, state.last)
            checkpoints.save_checkpoint(self.run.path / state.best.folder, self.training, state)

    def _write_losses(self) -> None:
        """A row of training losses: means over the updates since the last row."""
        state = self.state
        updates = state.losses.pop("updates", 0)
        means = {name: total / updates for name, total in state.losses.items()}
        rate = self.training.scheduler.get_last_lr()[0]
        place = {"phase": state.phase, "epoch": state.epoch, "step": state.steps_done - 1, "learning_rate": rate}
        self.run.append_row(LOSSES, ("phase", "epoch", "step", "learning_rate", "loss", *self.terms), place | means)
        state.n_losses += 1
        state.losses = {}

    # -------------------------------------------------------------------------------------------------- checkpoints

    def _save_last(self) -> None:
        checkpoints.save_checkpoint(self.run.path / (self.state.last + LAST), self.training, self.state)

    def _save_state_in_time(self) -> None:
        if time.monotonic() - self.state_saved_at > 60 * self.config.save_state_every_n_minutes:
            self._save_state()

    def _save_state(self) -> None:
        self.states.save(self.training, self.state)
        self.state_saved_at = time.monotonic()
