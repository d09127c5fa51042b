"""Log a training run: rows of losses and scores, predictions, what is printed, and warnings about its health."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from textwrap import shorten

from src.config.console import say
from src.config.constants import DEV, TARGET, TEXT
from src.config.flags.shared import TrainingArguments
from src.data.references import first_references
from src.devices import processes
from src.evaluation import health
from src.evaluation.evaluate import Evaluation, Evaluator
from src.runs.folder import RunFolder
from src.runs.records import LOSSES, SCORES, append_predictions
from src.tokens.tokenized import TokenizedDatasets
from src.training.metric_buffer import GRADIENT_NORM, SKIPPED, TOTAL_LOSS
from src.training.state import RunState, TrainingState
from src.training.summary import precision
from src.training.update import UPDATES

FINAL = -1  # epoch and step of the final test of the best checkpoint
EXAMPLES, EXAMPLE_WIDTH = 5, 500  # predictions that a tracker gets at an evaluation; characters of each text


@dataclass
class TrainingLog:
    """Writes rows to the run's trackers, counts them in its state, and says what looks wrong."""

    config: TrainingArguments
    training: TrainingState
    data: TokenizedDatasets
    evaluator: Evaluator
    run: RunFolder

    def learning_rate(self) -> float:
        return float(self.training.scheduler.get_last_lr()[0])

    def losses(self, state: RunState, learned: str, terms: Sequence[str], speed: Mapping[str, float]) -> None:
        """Write a row of training losses, means over the updates since the last row, and begin new sums.

        learned: the name of the loss. terms: the columns of all losses of the run. speed: for trackers; equal runs
        write equal files.
        """
        updates, skipped = state.losses.pop(UPDATES, 0), state.losses.get(SKIPPED, 0)
        counts = {GRADIENT_NORM: updates - skipped}  # a skipped update has no norm
        means = {name: total / (counts.get(name, updates) or 1) for name, total in state.losses.items()}
        warning = health.skipped_updates(skipped, updates, state.updates)
        self.warn(state, self.config.mixed_precision, warning, once=SKIPPED)
        place = {"phase": state.phase, "learned": learned, "epoch": state.epoch, "step": state.steps_done - 1}
        row = place | {"learning_rate": self.learning_rate()} | means
        closing = (GRADIENT_NORM,) if self.training.scaler is None else (GRADIENT_NORM, SKIPPED)
        columns = (*place, "learning_rate", TOTAL_LOSS, *terms, *closing)
        self.run.log(LOSSES, columns, row, step=state.updates, more=speed)
        state.n_losses += 1
        state.losses = {}

    def evaluation(
        self, state: RunState, split: str, result: Evaluation, *, is_best: bool = False, is_final: bool = False
    ) -> None:
        """Write an evaluation's row of scores and its predictions; print its main scores and warnings.

        is_best: it beats `state.best`, the best so far.
        """
        epoch, step = (FINAL, FINAL) if is_final else (state.epoch, state.steps_done - 1)
        columns, row = (
            ("split", "epoch", "step", *self.evaluator.columns),
            {"split": split, "epoch": epoch, "step": step},
        )
        examples = {"predictions": self._examples(split, result.predictions)}
        self.run.log(SCORES, columns, row | result.scores, step=state.updates, more=examples)
        if processes.is_main():
            append_predictions(self.run.path, split, epoch, step, result.predictions)
        state.n_rows += 1
        say(self._line(state, split, result.scores, is_best=is_best, is_final=is_final))
        self._warn_of_scores(state, split, result, is_final=is_final)

    def _line(self, state: RunState, split: str, scores: Mapping[str, float], *, is_best: bool, is_final: bool) -> str:
        """An evaluation in one line: its score, the best so far or whether this is it, and its NLL."""
        name, best = self.config.metric_for_best_model, state.best
        place = "best checkpoint" if is_final else f"epoch {state.epoch}, step {state.steps_done - 1}"
        shown = [f"{place}: {split}"]
        if name in scores:
            shown.append(f"{name} {scores[name]:{precision(name)}}")
        if is_best:
            shown.append("(new best)")
        elif split == DEV and best is not None:
            shown.append(f"(best so far: {best.score:{precision(name)}} at epoch {best.epoch}, step {best.step})")
        if name != "nll":
            shown.append(f"nll {scores['nll']:{precision('nll')}}")
        return " ".join(shown)

    def _examples(self, split: str, predictions: Sequence[str]) -> str:
        """The first predictions of a split beside their inputs and references, in Markdown, for trackers."""
        columns = self.data.datasets[split]
        rows = zip(columns[TEXT], first_references(columns[TARGET]), predictions, strict=False)
        parts = ("input", "reference", "prediction")
        return "\n\n---\n\n".join(
            "\n\n".join(f"**{part}**: {shorten(text, EXAMPLE_WIDTH)}" for part, text in zip(parts, row, strict=True))
            for row in islice(rows, EXAMPLES)
        )

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
