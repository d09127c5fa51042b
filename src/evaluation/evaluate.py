"""Evaluate a model on a split: generate texts, score them against the references, and compute the targets' likelihood.

Shapes: N valid target positions of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import exp

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.config.console import progress_bar
from src.data.references import Target
from src.decoding.generate import to_texts, write_tokens
from src.decoding.settings import Decoding
from src.evaluation.metrics import LIKELIHOOD_SCORES, Options, resolve_metrics, score_columns, score_texts
from src.models.forward import target_labels, teacher_forced, unwrapped
from src.tokens.batch import collate
from src.tokens.order import chunks, longest_first
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedSplit

COMPARED_ROWS = 256  # on which two models are compared

Check = Callable[[], None]  # called between batches; raises to stop


@dataclass(frozen=True)
class Evaluation:
    """Scores by column name, and the predictions in the split's order."""

    scores: dict[str, float]
    predictions: list[str]


@dataclass(frozen=True)
class Evaluator:
    """How a run evaluates: the same decoding, metrics and batch size every time.

    check: called between batches. options: keyword arguments by metric.
    """

    preprocessor: Preprocessor
    decoding: Decoding
    metrics: tuple[str, ...]
    batch_size: int
    device: torch.device
    check: Check = lambda: None
    options: Options = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of all scores that an evaluation of this run may have."""
        return (*score_columns(self.metrics, final=True), *LIKELIHOOD_SCORES)

    def evaluate(
        self,
        model: nn.Module,
        split: TokenizedSplit,
        references: Sequence[Target],
        *,
        likelihood_split: TokenizedSplit | None = None,
        final: bool = False,
    ) -> Evaluation:
        """Generate for `split`, score against `references` (as in the dataset file), and add nll and ppl.

        likelihood_split: the targets of nll and ppl; None: the split's own (of several references, the first).
        final: also compute the costly metrics. The model is in eval mode meanwhile, and in its old mode afterwards.
        """
        with _in_eval_mode(model):
            predictions = self.predict(model, split)
            nll = self.mean_nll(model, split if likelihood_split is None else likelihood_split)
        scores = score_texts(predictions, references, self.metrics, final=final, options=self.options)
        return Evaluation({**scores, "nll": nll, "ppl": _exp(nll)}, predictions)

    def compare(
        self,
        predictions: Sequence[str],
        other: nn.Module,
        split: TokenizedSplit,
        references: Sequence[Target],
        score: str,
    ) -> tuple[float, float]:
        """A `score` of texts on the first COMPARED_ROWS rows: of these predictions, and of the `other` model's.

        The other model is in eval mode meanwhile, and in its old mode afterwards.
        """
        first = replace(split, input_of_row=split.input_of_row[:COMPARED_ROWS], labels=None, teacher=None)
        with _in_eval_mode(other):
            others = self.predict(other, first)
        metrics = resolve_metrics((), score)

        def scored(texts: Sequence[str]) -> float:
            return score_texts(texts, references[: len(first)], metrics, final=False, options=self.options)[score]

        return scored(predictions[: len(first)]), scored(others)

    def predict(self, model: nn.Module, split: TokenizedSplit) -> list[str]:
        """Generate one text per row, in the split's order; batches are sorted by length."""
        predictions = [""] * len(split)
        with progress_bar(len(split), f"{split.name}: generate", "rows") as bar:
            for rows in chunks(longest_first(split.input_lengths), self.batch_size):
                self.check()
                for row, text in zip(rows, self.write(model, split, rows), strict=True):
                    predictions[row] = text
                bar.update(len(rows))
        return predictions

    def write(self, model: nn.Module, split: TokenizedSplit, rows: np.ndarray) -> list[str]:
        """Generate a text for each of these rows, in one batch; does not set the model's train/eval mode."""
        batch = collate(self.preprocessor, split, rows).to(self.device)
        return to_texts(self.preprocessor.tokenizer, write_tokens(unwrapped(model), batch, self.decoding))

    @torch.no_grad()
    def mean_nll(self, model: nn.Module, split: TokenizedSplit) -> float:
        """Mean negative log-likelihood over all target tokens of the split, in nats per token."""
        assert split.labels is not None
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        with progress_bar(len(split), f"{split.name}: likelihood", "rows") as bar:
            for rows in chunks(longest_first(split.lengths), self.batch_size):
                self.check()
                for losses in self.token_losses(model, split, rows):
                    total += losses.double().sum().cpu()
                    tokens += len(losses)
                bar.update(len(rows))
        return float(total) / tokens

    @torch.no_grad()
    def token_losses(self, model: nn.Module, split: TokenizedSplit, rows: np.ndarray) -> Iterator[Tensor]:
        """Negative log-likelihoods in nats (N,) of the target tokens of these rows, in several parts."""
        batch = collate(self.preprocessor, split, rows).to(self.device)
        labels = target_labels(batch)
        logits = teacher_forced(model, batch).logits.cast()
        for part in logits.chunks():
            yield F.cross_entropy(logits.some(part), labels[part], reduction="none")


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _exp(nll: float) -> float:
    return float("inf") if nll > 700 else exp(nll)
