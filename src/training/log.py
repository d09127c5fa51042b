"""Log a training run: rows of losses and scores, predictions, what is printed, and warnings about its health."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.config.console import say
from src.config.constants import DEV, TARGET, TEXT
from src.config.flags.shared import TrainingArguments
from src.evaluation import health
from src.evaluation.evaluate import Evaluation, Evaluator
from src.runs.folder import RunFolder
from src.runs.records import LOSSES, SCORES, append_predictions
from src.tokens.tokenized import TokenizedDatasets
from src.training.metric_buffer import GRADIENT_NORM, SKIPPED, TOTAL_LOSS
from src.training.state import RunState, TrainingState
from src.training.update import UPDATES

FINAL = -1  # epoch and step of the final test of the best checkpoint


@dataclass
class TrainingLog:
    """Writes rows to the run's trackers, counts them in its state, and says what looks wrong."""

    config: TrainingArguments
    training: TrainingState
    data: TokenizedDatasets
    evaluator: Evaluator
    run: RunFolder

    def losses(self, state: RunState, learned: str, terms: Sequence[str]) -> None:
        """Write a row of training losses, means over the updates since the last row, and begin new sums.

        learned: the name of the loss. terms: the columns of all losses of the run.
        """
        updates, skipped = state.losses.pop(UPDATES, 0), state.losses.get(SKIPPED, 0)
        counts = {GRADIENT_NORM: updates - skipped}  # a skipped update has no norm
        means = {name: total / (counts.get(name, updates) or 1) for name, total in state.losses.items()}
        warning = health.skipped_updates(skipped, updates, state.updates)
        self.warn(state, self.config.mixed_precision, warning, once=SKIPPED)
        place = {"phase": state.phase, "learned": learned, "epoch": state.epoch, "step": state.steps_done - 1}
        row = place | {"learning_rate": self.training.scheduler.get_last_lr()[0]} | means
        closing = (GRADIENT_NORM,) if self.training.scaler is None else (GRADIENT_NORM, SKIPPED)
        self.run.log(LOSSES, (*place, "learning_rate", TOTAL_LOSS, *terms, *closing), row)
        state.n_losses += 1
        state.losses = {}

    def evaluation(self, state: RunState, split: str, epoch: int, step: int, result: Evaluation) -> None:
        """Write an evaluation's row of scores and its predictions, and print its main scores and warnings."""
        columns = ("split", "epoch", "step", *self.evaluator.columns)
        self.run.log(SCORES, columns, {"split": split, "epoch": epoch, "step": step, **result.scores})
        append_predictions(self.run.path, split, epoch, step, result.predictions)
        state.n_rows += 1
        shown = dict.fromkeys(name for name in (self.config.metric_for_best_model, "nll") if name in result.scores)
        place = "best checkpoint" if epoch == FINAL else f"epoch {epoch} step {step}"
        say(f"{place:<18} {split:<5}" + "".join(f"  {name} {result.scores[name]:.3f}" for name in shown))
        self._warn_of_scores(state, split, result, is_final=epoch == FINAL)

    def _warn_of_scores(self, state: RunState, split: str, result: Evaluation, *, is_final: bool) -> None:
        """Warn of a model that has learned nothing, writes loops or copies its input."""
        if is_final or state.n_rows == 1:
            self.warn(state, split, health.nll_at_chance(result.scores["nll"], len(self.training.tokenizer)))
        if state.n_rows == 1:
            self.warn(state, split, health.zero_scores(result.scores, result.predictions))
        if is_final:
            texts, targets = self.data.datasets[split][TEXT], self.data.datasets[split][TARGET]
            self.warn(state, split, health.looping_texts(result.predictions))
            self.warn(state, split, health.copying_wins(result.predictions, texts, targets, self.evaluator.options))
        elif split == DEV:
            self.warn(state, split, health.looping_texts(result.predictions), once="loops")

    def warn(self, state: RunState, subject: str, line: str | None, *, once: str | None = None) -> None:
        """Print a warning, if there is one. once: its name, if it is given only once per run."""
        if line is None or once in state.said:
            return
        if once is not None:
            state.said.append(once)
        say(f"warning: {subject}: {line}")
