"""Evaluate a model on a split: generate texts, score them against the references, and compute the targets' likelihood.

Shapes: N valid target positions of a batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import exp

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import PreTrainedModel

from src.config.console import progress_bar
from src.config.signals import StopRequests
from src.data.references import Target
from src.decoding.generate import to_texts, write_tokens
from src.decoding.settings import Decoding
from src.devices import processes
from src.evaluation.metrics import LIKELIHOOD_SCORES, Options, resolve_metrics, score_columns, score_texts
from src.models.forward import target_labels, teacher_forced
from src.tokens.batch import collate
from src.tokens.order import chunks, longest_first
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedSplit

COMPARED_ROWS = 256  # on which two models are compared


@dataclass(frozen=True)
class Evaluation:
    """Scores by column name, and the predictions in the split's order."""

    scores: dict[str, float]
    predictions: list[str]


@dataclass(frozen=True)
class Evaluator:
    """How a run evaluates: the same decoding, metrics and batch size every time.

    stop: signals that end an evaluation. options: keyword arguments by metric.
    """

    preprocessor: Preprocessor
    decoding: Decoding
    metrics: tuple[str, ...]
    batch_size: int
    stop: StopRequests = field(default_factory=StopRequests)
    options: Options = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of all scores that an evaluation of this run may have."""
        return (*score_columns(self.metrics, final=True), *LIKELIHOOD_SCORES)

    def evaluate(
        self,
        model: PreTrainedModel,
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
        scores = processes.from_main(
            lambda: score_texts(predictions, references, self.metrics, final=final, options=self.options)
        )
        return Evaluation({**scores, "nll": nll, "ppl": _exp(nll)}, predictions)

    def compare(
        self,
        predictions: Sequence[str],
        other: PreTrainedModel,
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

        return processes.from_main(lambda: (scored(predictions[: len(first)]), scored(others)))

    def predict(self, model: PreTrainedModel, split: TokenizedSplit) -> list[str]:
        """Generate one text per row, in the split's order. Batches are sorted by length; the processes share them."""
        written: dict[int, str] = {}
        batches = list(chunks(longest_first(split.input_lengths), self.batch_size))
        with progress_bar(len(split), f"{split.name}: generate", "rows") as bar:
            for together, own in processes.rounds(batches):
                if self.stop.leaves():
                    break
                if own is not None:
                    written |= zip(own.tolist(), self.write(model, split, own), strict=True)
                bar.update(sum(map(len, together)))
        self.stop.check()
        predictions = {row: text for some in processes.gathered(written) for row, text in some.items()}
        return [predictions[row] for row in range(len(split))]

    def write(self, model: PreTrainedModel, split: TokenizedSplit, rows: np.ndarray) -> list[str]:
        """Generate a text for each of these rows, in one batch; does not set the model's train/eval mode."""
        batch = collate(self.preprocessor, split, rows).to(model.device)
        return to_texts(self.preprocessor.tokenizer, write_tokens(model, batch, self.decoding))

    @torch.no_grad()
    def mean_nll(self, model: PreTrainedModel, split: TokenizedSplit) -> float:
        """Mean negative log-likelihood over all target tokens of the split, in nats per token."""
        assert split.labels is not None
        sums: list[list[tuple[float, int]]] = []  # of the parts of each batch: losses and tokens
        batches = list(chunks(longest_first(split.lengths), self.batch_size))
        with progress_bar(len(split), f"{split.name}: likelihood", "rows") as bar:
            for together, own in processes.rounds(batches):
                if self.stop.leaves():
                    break
                if own is not None:
                    parts = self.token_losses(model, split, own)
                    sums.append([(float(losses.double().sum()), len(losses)) for losses in parts])
                bar.update(sum(map(len, together)))
        self.stop.check()
        # In the order of the batches, so that rounding does not depend on the number of processes.
        in_order = [
            part for batch in zip_longest(*processes.gathered(sums), fillvalue=[]) for own in batch for part in own
        ]
        total, tokens = map(sum, zip(*in_order, strict=True))
        return total / tokens

    @torch.no_grad()
    def token_losses(self, model: PreTrainedModel, split: TokenizedSplit, rows: np.ndarray) -> Iterator[Tensor]:
        """Negative log-likelihoods in nats (N,) of the target tokens of these rows, in several parts."""
        batch = collate(self.preprocessor, split, rows).to(model.device)
        labels = target_labels(batch)
        logits = teacher_forced(model, batch).logits.cast()
        for part in logits.chunks():
            yield F.cross_entropy(logits.some(part), labels[part], reduction="none")


@contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _exp(nll: float) -> float:
    return float("inf") if nll > 700 else exp(nll)
