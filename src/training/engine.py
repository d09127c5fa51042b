"""The training loop: phases, epochs, updates, evaluations. It does not know what distillation is.

A stage builds phases and hands them to `Trainer.fit`. A step is one micro-batch, an update one optimizer step.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from src.config.console import progress_bar, say
from src.config.constants import DEV, DEV_PPL, TARGET, TEST
from src.config.flags.shared import TrainingArguments
from src.config.signals import Interrupted, StopRequests
from src.devices import processes
from src.devices.accelerator import Accelerator
from src.devices.data_parallel import whole
from src.distillation.loss_schedule import SchedulePosition, position_after_epoch, position_after_evaluation
from src.distillation.objectives import term_names
from src.evaluation import health
from src.evaluation.evaluate import Evaluation, Evaluator
from src.evaluation.metrics import LIKELIHOOD_SCORES
from src.runs.folder import RunFolder
from src.storage.atomic import remove_folder
from src.tokens.order import epoch_order
from src.tokens.tokenized import TokenizedDatasets, TokenizedSplit
from src.training import checkpoints, rhythm
from src.training.checkpoints import LAST, StateFolder
from src.training.learning_rate import LearningRate
from src.training.log import TrainingLog
from src.training.pace import Readout, Speed
from src.training.phase import Phase
from src.training.state import Best, RunState, TrainingState
from src.training.update import Updater


@dataclass
class Trainer:
    """Trains one student through its phases; leaves the best and last checkpoint, scores, losses and predictions.

    Random numbers depend on (seed, epoch, step): a resumed run ends like an uninterrupted one.
    """

    config: TrainingArguments
    accelerator: Accelerator
    training: TrainingState
    data: TokenizedDatasets
    evaluator: Evaluator
    run: RunFolder
    stop: StopRequests
    phases: Sequence[Phase]
    rate: LearningRate
    resumed: Path | None = None

    def __post_init__(self) -> None:
        preprocessor = self.evaluator.preprocessor
        self.updater = Updater(self.config, self.accelerator, self.training, preprocessor, self._last_good_checkpoint)
        self.log = TrainingLog(self.config, self.training, self.data, self.evaluator, self.run)
        self.speed, self.states = Speed(self.updater), StateFolder(self.run.path)
        self.state_saved_at = time.monotonic()
        entries = [entry for phase in self.phases for entry in phase.losses]
        kind = preprocessor.is_encoder_decoder
        self.terms = tuple(dict.fromkeys(t for entry in entries for t in term_names(entry, is_encoder_decoder=kind)))

    @property
    def state(self) -> RunState:
        return self.updater.state

    # ------------------------------------------------------------------------------------------------------- phases

    def fit(self) -> None:
        """Train from the run's position to the end of the last phase, then load the best weights."""
        try:
            for index in range(self.state.phase, len(self.phases)):
                self._run_phase(self.phases[index])
                if index == 0:
                    last = self.run.path / (self.state.last + LAST)
                    checkpoints.save_checkpoint(last, self.training, self.state)
                if index + 1 < len(self.phases):
                    self._enter_phase(index + 1, self.phases[index + 1])
        except Interrupted:
            self.save_state()
            say(f"stopped at epoch {self.state.epoch}, step {self.state.steps_done}; the same command continues there")
            raise
        if self.state.best is not None:
            checkpoints.load_weights(self.training.model, self.run.path / self.state.best.folder)
            processes.wait_for_all()  # the folder may be removed afterwards

    def _enter_phase(self, index: int, phase: Phase) -> None:
        state = self.state
        if phase.from_best and state.best is not None:
            checkpoints.load_checkpoint(self.run.path / state.best.folder, self.training)
        state.phase, state.phase_start, state.best_epoch = index, state.epoch, state.epoch - 1
        state.stage, state.scales = SchedulePosition(), {}

    def _run_phase(self, phase: Phase) -> None:
        state = self.state
        lengths = [
            rhythm.steps_in_epoch(self.data.rows(rhythm.rotated(phase.splits, epoch)), self.config.micro_batch_size)
            for epoch in range(phase.epochs)
        ]
        done = sum(lengths[: state.epoch - state.phase_start]) + state.steps_done
        values = Readout(self.updater, self.log.learning_rate)
        with progress_bar(sum(lengths), phase.name, "steps", initial=done, values=values) as bar:
            while state.epoch < state.phase_start + phase.epochs:
                patience = self.config.n_patience_epochs
                if DEV in self.data and rhythm.out_of_patience(state.epoch - 1, state.best_epoch, patience):
                    say(f"{phase.name}: no better score in {patience} epochs, stopping")
                    break
                bar.set_description(f"{phase.name}, epoch {state.epoch}", refresh=False)
                split = self._split(rhythm.rotated(phase.splits, state.epoch - state.phase_start))
                if state.epoch + 1 < state.phase_start + phase.epochs:
                    self.data.tokenize_ahead(rhythm.rotated(phase.splits, state.epoch + 1 - state.phase_start))
                self._run_epoch(phase, split, bar)
                state.epoch, state.steps_done, state.evaluated = state.epoch + 1, 0, 0
                stage = position_after_epoch(state.stage, phase.schedule, len(phase.losses), seed=self.config.seed)
                self._set_stage(stage, phase)

    def _set_stage(self, stage: SchedulePosition, phase: Phase) -> None:
        """Go to the next stage of the loss schedule; a new loss has its scales measured again."""
        state = self.state
        if stage.changes > state.stage.changes:
            state.scales = {}
            say(f"{phase.name}: learning '{phase.losses[stage.index].name}' from here on")
        state.stage = stage

    # ------------------------------------------------------------------------------------------------------- epochs

    def _run_epoch(self, phase: Phase, split: TokenizedSplit, bar: Any) -> None:
        state, micro = self.state, self.config.micro_batch_size
        order = epoch_order(len(split), seed=self.config.seed, epoch=state.epoch)
        n_steps = rhythm.steps_in_epoch(len(split), micro)
        interval = rhythm.evaluation_interval(self.config.save_checkpoint_every_n_steps, n_steps)
        while True:
            if rhythm.evaluates_after(state.steps_done, state.evaluated, n_steps, interval):
                self._evaluate(phase, at_epoch_end=state.steps_done == n_steps)
            if state.steps_done == n_steps:
                return
            self.stop.check()
            if phase.losses[state.stage.index].loss_scale and not state.scales:
                state.scales = self.updater.measure_scales(phase, split, order, self.stop.check)
            first = state.steps_done * micro
            rows = order[first : first + self.config.batch_size]
            self.updater.update(phase, split, rows)
            n_done = rhythm.steps_in_epoch(len(rows), micro)
            before, state.steps_done = state.steps_done, state.steps_done + n_done
            bar.update(n_done)
            writes_row = rhythm.evaluates_after(state.steps_done, state.evaluated, n_steps, interval)
            if not writes_row and rhythm.passes_multiple(before, state.steps_done, self.config.loss_interval):
                self._log_losses(phase)
            is_due = time.monotonic() - self.state_saved_at > 60 * self.config.save_state_every_n_minutes
            if processes.highest(is_due):
                self.save_state()

    def try_update(self, phase: Phase, split: TokenizedSplit, rows: np.ndarray) -> None:
        """Make one update with the phase's first loss, to measure its time and memory.

        Writes nothing. The student's weights change, so the run cannot be trained afterwards.
        """
        self.state.stage = SchedulePosition()
        self.updater.update(phase, split, rows)
        self.updater.metrics.add_to(self.state.losses)

    def _last_good_checkpoint(self) -> str:
        best = self.state.best and self.run.path / self.state.best.folder
        return f"last good checkpoint: {best or self.states.newest() or 'none yet'}"

    # --------------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, phase: Phase, *, at_epoch_end: bool) -> None:
        """Evaluate on dev and, if --test_every_n_epochs says so, on test; log it, and save the state."""
        state = self.state
        results = {DEV: self.evaluate(DEV)} if DEV in self.data else {}
        if at_epoch_end and TEST in self.data and rhythm.is_test_epoch(state.epoch, self.config.test_every_n_epochs):
            results[TEST] = self.evaluate(TEST)
        below = self._below_teacher(phase, results[DEV]) if at_epoch_end and DEV in results else None
        # Rows are written after all evaluations: a run stopped between them evaluates again.
        self._log_losses(phase)
        is_best = DEV in results and self._is_better(results[DEV].scores)
        for split, result in results.items():
            self.log.evaluation(state, split, result, is_best=is_best and split == DEV)
        self.log.warn(state, DEV, below)
        former, state.evaluated = state.best, state.steps_done
        state.last = f"epoch{state.epoch}__step{state.steps_done - 1}"
        if DEV in results:
            self._judge(results[DEV].scores, phase, is_best=is_best)
        self.save_state()
        if processes.is_main() and former is not None and former is not state.best:
            remove_folder(self.run.path / former.folder)

    def _log_losses(self, phase: Phase) -> None:
        self.updater.metrics.add_to(self.state.losses)
        self.log.losses(self.state, phase.losses[self.state.stage.index].name, self.terms, self.speed.take())

    def evaluate(self, split: str, *, final: bool = False) -> Evaluation:
        """Evaluate the student with its current weights. NLL of dev is measured on the split dev_ppl, if it exists."""
        likelihood = self._split(DEV_PPL) if split == DEV and DEV_PPL in self.data else None
        references, tokens = self.data.datasets[split][TARGET], self._split(split)
        place = f"epoch {self.state.epoch}, step {self.state.steps_done}, evaluation on '{split}'"
        model = self.training.model
        with self.updater.finite(place), self.accelerator.autocast(), whole(model):  # parts of it are called directly
            return self.evaluator.evaluate(model, tokens, references, likelihood_split=likelihood, final=final)

    def _split(self, name: str) -> TokenizedSplit:
        """The split's tokens. A signal ends the run at once: tokenizing may take minutes and changes no state."""
        with self.stop.at_once():
            return self.data.split(name)

    def _below_teacher(self, phase: Phase, dev: Evaluation) -> str | None:
        """A warning if the student scores far below its live teacher on rows of dev after the phase's first epoch.

        It does not change the training: the teacher's mode is restored, and random numbers depend on the step.
        """
        score = self.config.metric_for_best_model
        teacher = None if phase.teacher is None else phase.teacher.model
        if teacher is None or self.state.epoch != self.state.phase_start or score in LIKELIHOOD_SCORES:
            return None
        with self.accelerator.autocast(), whole(teacher):
            scores = self.evaluator.compare(
                dev.predictions, teacher, self._split(DEV), self.data.datasets[DEV][TARGET], score
            )
        return health.far_below_teacher(*scores, score, higher_is_better=self.config.higher_is_better)

    def _is_better(self, scores: Mapping[str, float]) -> bool:
        """Whether scores on dev are the best so far."""
        config, best = self.config, self.state.best
        score, direction = scores[config.metric_for_best_model], config.higher_is_better
        best_score, best_nll = (None, None) if best is None else (best.score, best.nll)
        return rhythm.is_better(score, best_score, higher_is_better=direction, nll=scores["nll"], best_nll=best_nll)

    def _judge(self, scores: Mapping[str, float], phase: Phase, *, is_best: bool) -> None:
        """Use scores on dev: choose the loss to learn next, and save a checkpoint if they are the best so far."""
        state, score, nll = self.state, scores[self.config.metric_for_best_model], scores["nll"]
        state.last += f"__score{score:.3f}".replace(".", "_")
        n_losses, seed = len(phase.losses), self.config.seed
        stage = position_after_evaluation(state.stage, phase.schedule, n_losses, is_better=is_best, seed=seed)
        self._set_stage(stage, phase)
        if is_best:  # saved last: the checkpoint's state includes all that follows from this evaluation
            state.best_epoch = state.epoch
            state.best = Best(score, state.epoch, state.steps_done - 1, state.last, nll if isfinite(nll) else None)
            checkpoints.save_checkpoint(self.run.path / state.best.folder, self.training, state)

    def save_state(self) -> None:
        self.updater.metrics.add_to(self.state.losses)
        self.states.save(self.training, self.state)
        self.state_saved_at = time.monotonic()
