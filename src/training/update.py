"""One optimizer update: its micro-batches, labels written by the student, losses, gradient and step."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from src.config.console import progress_bar, say
from src.config.errors import NotFiniteError, UserError
from src.config.experiments.schema import LossEntry
from src.config.flags.shared import TrainingArguments
from src.devices import memory, processes
from src.devices.accelerator import Accelerator
from src.devices.data_parallel import full, whole
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.distillation.student_targets import student_targets, student_writes
from src.tokens.batch import NO_TARGETS, Batch, Targets, collate, with_targets
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
        self.pass_size = self.config.micro_batch_size  # rows at once; with --max_gpu_batch_size auto it may shrink
        self.metrics = MetricBuffer(self.accelerator.device, self.last_good_checkpoint)

    def _batch(self, split: TokenizedSplit, rows: np.ndarray, written: Targets = NO_TARGETS) -> Batch:
        """The batch of these rows, on the device; some with targets that the student has written."""
        return with_targets(collate(self.preprocessor, split, rows), written).to(self.accelerator.device)

    def update(self, phase: Phase, split: TokenizedSplit, rows: np.ndarray) -> None:
        """Make one optimizer update on some rows, which the processes share, in micro-batches. Writes nothing to disk.

        Raises UserError for a loss or a gradient that is not finite (on a GPU it may be raised by the next update).
        """
        training, entry, began = self.training, phase.losses[self.state.stage.index], time.perf_counter()
        by_length = rows[np.argsort(split.lengths[rows], kind="stable")]  # so that batches have little padding
        with self.finite(self._place(phase, by_length)):
            written = self._student_targets(entry, split, by_length)
        losses, n_tokens = self._learn_rows(phase, entry, split, by_length, written)
        shares = [self._share(by_length, rank) for rank in range(processes.count())]
        places = [self._place(phase, some) for share in shares for some in share]
        first = sum(map(len, shares[: processes.rank()]))
        n_own = len(shares[processes.rank()])
        for place, values in zip(places, _of_all_passes(losses, n_own, first, len(places)), strict=True):
            self.metrics.record(values, place)
        self.metrics.add_to(self.state.losses, leave=len(places))
        self._clip_gradient(self._place(phase, by_length), leave=len(places) + 1)
        training.optimizer.step()
        training.optimizer.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:
            self.state.losses[SKIPPED] = self.state.losses.get(SKIPPED, 0) + 1
        else:
            training.scheduler.step()
        self.state.losses[UPDATES] = self.state.losses.get(UPDATES, 0) + 1
        self.state.updates += 1
        rows_done, tokens_done = self.work.rows + len(rows), self.work.tokens + n_tokens
        self.work = Work(rows_done, tokens_done, self.work.seconds + time.perf_counter() - began)

    def _learn_rows(
        self, phase: Phase, entry: LossEntry, split: TokenizedSplit, by_length: np.ndarray, written: Targets
    ) -> tuple[list[dict[str, Tensor]], int]:
        """Sum the gradients of an update's rows; returns the losses of this process's passes, and the tokens read.

        All processes make as many passes: one with fewer micro-batches repeats the first row, which does not count.
        """
        self.training.model.train()
        while True:
            batches = [self._batch(split, some, written) for some in self._share(by_length, processes.rank())]
            window, n_tokens = self._window(by_length, batches)
            self._seed(self.state.steps_done, processes.rank())
            if self.config.max_gpu_batch_size is not None:
                passes = [(each, True) for each in batches]
                if n_idle := len(self._share(by_length, 0)) - len(batches):
                    passes += n_idle * [(self._batch(split, by_length[:1], written), False)]
                losses = [
                    self._learn(phase, entry, batch, window, is_last=i == len(passes), counts=counts)
                    for i, (batch, counts) in enumerate(passes, start=1)
                ]
                return losses, n_tokens
            if self._fit_into_memory(losses := [], phase, entry, batches, window):
                if processes.count() > 1:  # a last pass makes the processes sum their gradients
                    idle = self._batch(split, by_length[:1], written)
                    losses.append(self._learn(phase, entry, idle, window, is_last=True, counts=False))
                return losses, n_tokens
            self.training.optimizer.zero_grad()
            memory.free_unused(self.accelerator.device)
            self.pass_size = max(1, self.pass_size // 2)
            say(f"out of memory: at most {self.pass_size} rows at once from here on")

    def _fit_into_memory(
        self, losses: list[dict[str, Tensor]], phase: Phase, entry: LossEntry, batches: Sequence[Batch], window: Window
    ) -> bool:
        """Learn from batches, adding to `losses`; returns whether all processes had enough memory."""
        ran_out = False
        try:
            losses += [self._learn(phase, entry, batch, window, is_last=False) for batch in batches]
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error) or self.pass_size == 1:
                raise
            ran_out = True
        return not processes.highest(ran_out)

    def _share(self, by_length: np.ndarray, rank: int) -> list[np.ndarray]:
        """The rows of an update that a process learns from, in micro-batches. Rows are dealt round: lengths are alike.

        The main process has the most.
        """
        return list(chunks(by_length[rank :: processes.count()], self.pass_size))

    def _window(self, rows: np.ndarray, batches: Sequence[Batch]) -> tuple[Window, int]:
        """The denominators of an update's losses over all processes, and the tokens that it reads."""
        lengths = [batch.lengths for batch in batches]
        n_labels = sum(int(each.n_known.sum()) for each in lengths)
        n_labels, n_inputs = processes.totals(n_labels, sum(int(each.inputs.sum()) for each in lengths))
        return Window(len(rows), n_labels), n_inputs + n_labels

    def _learn(
        self, phase: Phase, entry: LossEntry, batch: Batch, window: Window, *, is_last: bool, counts: bool = True
    ) -> dict[str, Tensor]:
        """Add a micro-batch's gradient; returns its share of the update's loss and of each of its terms.

        The gradients of all processes are summed after the last micro-batch. Data parallel wrappers take their mean.
        """
        learner = self.training.learner
        assert learner is not None
        with nullcontext() if is_last else self.accelerator.no_sync(learner):
            loss, terms = learner(lambda: self._loss(phase, entry, batch, window))
            self.accelerator.backward(loss * counts * processes.count())
        return {name: value * counts for name, value in {TOTAL_LOSS: loss.detach(), **terms}.items()}

    def _clip_gradient(self, place: str, leave: int) -> None:
        """Record the gradient's norm, and clip it to --clip_grad_norm. In fp16 the scaler checks that it is finite."""
        parameters, limit = list(self.training.model.parameters()), self.config.clip_grad_norm
        if limit is not None:
            norm = self.accelerator.clip_grad_norm_(parameters, limit)
        elif self.training.scaler is None:
            norm = get_total_norm([each.grad for each in parameters if each.grad is not None])
        else:
            return
        norm = full(norm)
        checked = GRADIENT_NORM if self.training.scaler is None else None
        self.metrics.record({GRADIENT_NORM: norm}, place, checked=checked)
        self.metrics.add_to(self.state.losses, leave=leave)

    def _loss(self, phase: Phase, entry: LossEntry, batch: Batch, window: Window) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the update's loss (a scalar), and of each of its terms."""
        with self.accelerator.autocast():
            student = capture_states(self.training.model, batch, entry, phase.layers)
            teacher = phase.teacher(batch, entry) if phase.teacher and entry.needs_teacher else None
        smoothing = self.config.label_smoothing
        with torch.autocast(self.accelerator.device.type, enabled=False):
            return distillation_loss(
                student, teacher, batch, entry, window, self.state.scales, label_smoothing=smoothing
            )

    def _student_targets(self, entry: LossEntry, split: TokenizedSplit, by_length: np.ndarray) -> Targets:
        """The targets that the student writes for rows of this update, on its share of steps.

        One process writes all rows of a step, so that their random numbers do not depend on the number of processes.
        """
        steps = enumerate(chunks(by_length, self.config.micro_batch_size), start=self.state.steps_done)
        place = {"seed": self.config.seed, "epoch": self.state.epoch}
        pieces = [
            (step, rows) for step, rows in steps if student_writes(entry.generate_labels_weight, **place, step=step)
        ]
        if not pieces:
            return NO_TARGETS
        targets: dict[int, np.ndarray] = {}
        with self.accelerator.autocast(), whole(self.training.model):
            for step, rows in processes.dealt(pieces):
                self._seed(step, 0, WRITING)
                batch, length = self._batch(split, rows), self.config.max_labels_length
                targets |= student_targets(self.training.model, batch, entry, length)
        return {row: tokens for some in processes.gathered(targets) for row, tokens in some.items()}

    def _seed(self, step: int, process: int, *purpose: int) -> None:
        """Seed torch from (seed, epoch, step, process): resuming needs no saved generator, evaluation changes nothing.

        process: 0 where all processes draw the same. purpose: a number for draws other than the dropout of training.
        """
        place = [self.config.seed, self.state.epoch, step, process, *purpose]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    @torch.no_grad()
    def measure_scales(
        self, phase: Phase, split: TokenizedSplit, order: np.ndarray, check_stop: Callable[[], None]
    ) -> dict[str, float]:
        """The scale of each term of the current loss: 1 / its mean over the epoch's first micro-batches.

        Measured on the data's own labels, with the student in eval mode; the teacher's dropout is that of the loss.
        """
        entry, learner = phase.losses[self.state.stage.index], self.training.learner
        assert learner is not None
        rows = list(chunks(order, self.config.micro_batch_size))[:SCALE_BATCHES]
        sums: dict[str, float] = {}
        self.training.model.eval()
        self._seed(self.state.steps_done, 0, MEASURING)
        with progress_bar(len(rows), "measure scales", "batches") as bar:
            for chosen in rows:
                check_stop()
                batch = self._batch(split, chosen)
                window = Window(len(batch.rows), len(batch.valid))
                loss, terms = learner(partial(self._loss, phase, entry, batch, window))
                self.metrics.record({TOTAL_LOSS: loss, **terms}, self._place(phase, chosen))
                self.metrics.add_to(sums, leave=1)
                bar.update()
        self.metrics.add_to(sums)
        means = {term: total / len(rows) for term, total in sums.items() if term != TOTAL_LOSS}
        say(f"{entry.name}: divided by " + "  ".join(f"{term} {max(m, SCALE_FLOOR):.4g}" for term, m in means.items()))
        return {term: 1 / max(mean, SCALE_FLOOR) for term, mean in means.items()}

    def _place(self, phase: Phase, rows: np.ndarray) -> str:
        state = self.state
        split = rhythm.rotated(phase.splits, state.epoch - state.phase_start)
        return f"epoch {state.epoch}, step {state.steps_done}, rows {rows.tolist()} of '{split}'"

    @contextmanager
    def finite(self, place: str) -> Iterator[None]:
        """Add the place and the last good checkpoint to the error of a student whose outputs are not finite."""
        try:
            yield
        except NotFiniteError as error:
            raise UserError(f"{error} at {place}; {self.last_good_checkpoint()}") from None


def _of_all_passes(
    losses: Sequence[dict[str, Tensor]], n_own: int, first: int, n_passes: int
) -> list[dict[str, Tensor]]:
    """The losses of all processes' passes, of which the first `n_own` of these are numbers `first`, first + 1, …"""
    names = list(losses[0])
    table = torch.stack([torch.stack([value.float() for value in each.values()]) for each in losses])[:n_own]
    if processes.count() > 1:
        own, table = table, table.new_zeros(n_passes, len(names))
        table[first : first + n_own] = own
        processes.add_up(table)
    return [dict(zip(names, row, strict=True)) for row in table]
