"""One optimizer update: its micro-batches, labels written by the student, losses, gradient and step."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from src.config.console import progress_bar, say
from src.config.errors import NotFiniteError, UserError
from src.config.experiments.schema import LossEntry
from src.config.flags.shared import TrainingArguments
from src.devices.processes import Accelerator
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.distillation.student_targets import student_writes, with_student_targets
from src.models.forward import unwrapped
from src.tokens.batch import Batch, collate
from src.tokens.order import chunks
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedSplit
from src.training import rhythm
from src.training.metric_buffer import GRADIENT_NORM, SKIPPED, TOTAL_LOSS, MetricBuffer
from src.training.phase import Phase
from src.training.state import RunState, TrainingState

UPDATES = "updates"  # their number, among the sums of losses
WRITING, MEASURING = 1, 2  # what random numbers are drawn for, besides dropout
SCALE_BATCHES, SCALE_FLOOR = 100, 0.025  # micro-batches that a scale is measured on, and the least mean it assumes


@dataclass(frozen=True)
class Work:
    """What an updater has done: rows, their tokens (inputs and targets, no padding), and the seconds taken."""

    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Updater:
    """Makes updates of a student from its position on, and sums their losses in `state.losses`.

    Random numbers depend on (seed, epoch, step): a resumed run draws what an uninterrupted one does.
    """

    config: TrainingArguments
    accelerator: Accelerator
    training: TrainingState
    preprocessor: Preprocessor
    last_good_checkpoint: Callable[[], str]
    state: RunState = field(default_factory=RunState)
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        self.metrics = MetricBuffer(self.accelerator.device, self.last_good_checkpoint)

    def _micro_batches(self, split: TokenizedSplit, rows: np.ndarray) -> list[Batch]:
        """The micro-batches of an update; its rows are sorted by length, so that batches have little padding."""
        by_length = rows[np.argsort(split.lengths[rows], kind="stable")]
        return [self._batch(split, some) for some in chunks(by_length, self.config.micro_batch_size)]

    def _batch(self, split: TokenizedSplit, rows: np.ndarray) -> Batch:
        return collate(self.preprocessor, split, rows).to(self.accelerator.device)

    def update(self, phase: Phase, split: TokenizedSplit, rows: np.ndarray) -> None:
        """Make one optimizer update on some rows, in micro-batches. Writes nothing to disk.

        Raises UserError for a loss or a gradient that is not finite (on a GPU it may be raised by the next update).
        """
        training, entry, began = self.training, phase.losses[self.state.stage.index], time.perf_counter()
        batches = self._micro_batches(split, rows)
        tokens = sum(int(each.lengths.inputs.sum() + each.lengths.n_known.sum()) for each in batches)
        with self.finite(self._place(phase, *batches)):
            batches = [self._with_student_targets(entry, batch, offset) for offset, batch in enumerate(batches)]
        training.model.train()
        self._seed(self.state.steps_done)
        window = _window(batches)
        for batch in batches:
            loss, terms = self._loss(phase, entry, batch, window)
            self.metrics.record({TOTAL_LOSS: loss.detach(), **terms}, self._place(phase, batch))
            self.metrics.add_to(self.state.losses, leave=len(batches))
            self.accelerator.backward(loss)
        self._clip_gradient(phase, batches)
        training.optimizer.step()
        training.optimizer.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:
            self.state.losses[SKIPPED] = self.state.losses.get(SKIPPED, 0) + 1
        else:
            training.scheduler.step()
        self.state.losses[UPDATES] = self.state.losses.get(UPDATES, 0) + 1
        self.state.updates += 1
        rows_done, tokens_done = self.work.rows + len(rows), self.work.tokens + tokens
        self.work = Work(rows_done, tokens_done, self.work.seconds + time.perf_counter() - began)

    def _clip_gradient(self, phase: Phase, batches: Sequence[Batch]) -> None:
        """Record the gradient's norm, and clip it to --clip_grad_norm. In fp16 the scaler checks that it is finite."""
        parameters, limit = list(self.training.model.parameters()), self.config.clip_grad_norm
        if limit is not None:
            norm = self.accelerator.clip_grad_norm_(parameters, limit)
        elif self.training.scaler is None:
            norm = get_total_norm([each.grad for each in parameters if each.grad is not None])
        else:
            return
        checked = GRADIENT_NORM if self.training.scaler is None else None
        self.metrics.record({GRADIENT_NORM: norm}, self._place(phase, *batches), checked=checked)
        self.metrics.add_to(self.state.losses, leave=len(batches) + 1)

    def _loss(self, phase: Phase, entry: LossEntry, batch: Batch, window: Window) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the update's loss (a scalar), and of each of its terms."""
        student = capture_states(self.training.model, batch, entry, phase.layers)
        with self.accelerator.autocast():
            teacher = phase.teacher(batch, entry) if phase.teacher and entry.needs_teacher else None
        smoothing = self.config.label_smoothing
        return distillation_loss(student, teacher, batch, entry, window, self.state.scales, label_smoothing=smoothing)

    def _with_student_targets(self, entry: LossEntry, batch: Batch, offset: int) -> Batch:
        """Micro-batch number `offset` of the update, with labels generated by the student on its share of steps."""
        place = {"seed": self.config.seed, "epoch": self.state.epoch, "step": self.state.steps_done + offset}
        if not student_writes(entry.generate_labels_weight, **place):
            return batch
        self._seed(place["step"], WRITING)
        with self.accelerator.autocast():
            return with_student_targets(unwrapped(self.training.model), batch, entry, self.config.max_labels_length)

    def _seed(self, step: int, *purpose: int) -> None:
        """Seed torch from (seed, epoch, step, process): resuming needs no saved generator, evaluation changes nothing.

        purpose: a number for draws other than the dropout of training.
        """
        place = [self.config.seed, self.state.epoch, step, self.accelerator.process_index, *purpose]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    @torch.no_grad()
    def measure_scales(
        self, phase: Phase, split: TokenizedSplit, order: np.ndarray, check_stop: Callable[[], None]
    ) -> dict[str, float]:
        """The scale of each term of the current loss: 1 / its mean over the epoch's first micro-batches.

        Measured on the data's own labels, with the student in eval mode; the teacher's dropout is that of the loss.
        """
        entry = phase.losses[self.state.stage.index]
        rows = list(chunks(order, self.config.micro_batch_size))[:SCALE_BATCHES]
        sums: dict[str, float] = {}
        self.training.model.eval()
        self._seed(self.state.steps_done, MEASURING)
        with progress_bar(len(rows), "measure scales", "batches") as bar:
            for chosen in rows:
                check_stop()
                batch = self._batch(split, chosen)
                loss, terms = self._loss(phase, entry, batch, _window([batch]))
                self.metrics.record({TOTAL_LOSS: loss, **terms}, self._place(phase, batch))
                self.metrics.add_to(sums, leave=1)
                bar.update()
        self.metrics.add_to(sums)
        means = {term: total / len(rows) for term, total in sums.items() if term != TOTAL_LOSS}
        say(f"{entry.name}: divided by " + "  ".join(f"{term} {max(m, SCALE_FLOOR):.4g}" for term, m in means.items()))
        return {term: 1 / max(mean, SCALE_FLOOR) for term, mean in means.items()}

    def _place(self, phase: Phase, *batches: Batch) -> str:
        state = self.state
        split = rhythm.rotated(phase.splits, state.epoch - state.phase_start)
        rows = [row for batch in batches for row in batch.rows]
        return f"epoch {state.epoch}, step {state.steps_done}, rows {rows} of '{split}'"

    @contextmanager
    def finite(self, place: str) -> Iterator[None]:
        """Add the place and the last good checkpoint to the error of a student whose outputs are not finite."""
        try:
            yield
        except NotFiniteError as error:
            raise UserError(f"{error} at {place}; {self.last_good_checkpoint()}") from None


def _window(batches: Sequence[Batch]) -> Window:
    """The denominators of an update's losses: its numbers of targets and of tokens."""
    return Window(sum(len(batch.rows) for batch in batches), sum(len(batch.valid) for batch in batches))
