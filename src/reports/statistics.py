"""Statistics of a method: mean and deviation over seeds, share of the gap closed, paired bootstrap, wins."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from statistics import fmean, stdev
from typing import Any

import numpy as np

from src.config.constants import LOWER_IS_BETTER
from src.evaluation.metrics import METRICS
from src.reports.collect import Run

RESAMPLES = 1_000
RESAMPLED_VALUES = 10_000_000  # rows times resamples, a limit to memory
MEANS_OVER_ROWS = ("wer", "rouge", "meteor")  # metrics whose scores are means of the rows' scores
CORPUS_METRICS = ("sacrebleu", "chrf")  # which sacreBLEU computes from the sums of the rows' counts


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its standard deviation, None of one seed."""

    value: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean | None":
        """None if there is no value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None


@dataclass(frozen=True)
class Difference:
    """A method's score minus the baseline's, and its 95 % interval by paired bootstrap over test rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Wins:
    """Percent of the test rows in which a method's chrF is above the baseline's, equal to it, and below it."""

    better: float
    equal: float
    worse: float


def gap_closed(values: Sequence[float], start: float, goal: float, score: str) -> Mean | None:
    """100 (x - start) / (goal - start), over seeds; None if the goal is no better than the start.

    start: the fine-tuned student's score. goal: the teacher's.
    """
    better = start - goal if score in LOWER_IS_BETTER else goal - start
    return Mean.of([100 * (value - start) / (goal - start) for value in values]) if better > 0 else None


class Bootstrap:
    """Paired bootstrap over test rows: of every run the same rows are drawn. seed: of scipy; sacreBLEU has its own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._counts = lru_cache(maxsize=None)(_counts)
        self.row_scores = lru_cache(maxsize=None)(self._row_scores)
        self.samples = lru_cache(maxsize=None)(self._samples)

    def difference(self, pairs: Sequence[tuple[Run, Run]], score: str) -> Difference | None:
        """The mean difference of (run, baseline) pairs, one pair for each seed; None for a score without rows.

        BLEU and chrF are resampled by sacreBLEU, other scores by scipy.
        """
        if score in CORPUS_METRICS:
            return self._of_corpus(pairs, score)
        if score in _scores_of_rows():
            return self._of_rows(pairs, score)
        return None

    def _of_corpus(self, pairs: Sequence[tuple[Run, Run]], score: str) -> Difference:
        sampled = np.mean([self.samples(run, score) - self.samples(other, score) for run, other in pairs], axis=0)
        low, high = np.percentile(sampled[1:], (2.5, 97.5))
        return Difference(float(sampled[0]), float(low), float(high))

    def _of_rows(self, pairs: Sequence[tuple[Run, Run]], score: str) -> Difference:
        from scipy.stats import bootstrap

        rows = np.mean([self.row_scores(run, score) - self.row_scores(other, score) for run, other in pairs], axis=0)
        mean = float(rows.mean())
        if len(rows) < 2 or np.ptp(rows) == 0:
            return Difference(mean, mean, mean)
        n_resamples = _n_resamples(len(rows))
        found = bootstrap(
            (rows,), np.mean, n_resamples=n_resamples, batch=100, method="percentile",
            rng=np.random.default_rng(self.seed),
        ).confidence_interval  # fmt: skip
        return Difference(mean, float(found.low), float(found.high))

    def wins(self, pairs: Sequence[tuple[Run, Run]]) -> Wins:
        """Of (run, baseline) pairs, one pair for each seed: the mean over seeds."""
        differences = [self.row_scores(run, "chrf") - self.row_scores(other, "chrf") for run, other in pairs]
        signs = np.sign(np.round(differences, 6))
        better, equal, worse = (100 * float((signs == sign).mean()) for sign in (1, 0, -1))
        return Wins(better, equal, worse)

    def _samples(self, run: Run, score: str) -> np.ndarray:
        """The score, then that of each resample; sacreBLEU's seed is fixed, so the samples of two runs are pairs."""
        from sacrebleu.significance import _bootstrap_resample

        metric, counts = self._counts(run, score)
        _, scores = _bootstrap_resample(counts.tolist(), metric, _n_resamples(len(counts)))
        exact = metric._compute_score_from_stats(counts.sum(axis=0).tolist()).score
        return np.array([exact, *(each.score for each in scores)])

    def _row_scores(self, run: Run, score: str) -> np.ndarray:
        """A score of each row."""
        if score in CORPUS_METRICS:
            metric, counts = self._counts(run, score)
            return np.array([metric._compute_score_from_stats(row).score for row in counts.tolist()])
        compute = METRICS[_scores_of_rows()[score]].compute
        rows = zip(run.predictions, run.references, strict=True)
        return np.array([compute([prediction], [references])[score] for prediction, references in rows])


def _counts(run: Run, score: str) -> tuple[Any, np.ndarray]:
    """sacreBLEU's metric, and the counts of each row that it computes a score from."""
    from sacrebleu.metrics import BLEU, CHRF

    metric = BLEU(force=True, tokenize=run.flags["bleu_tokenize"]) if score == "sacrebleu" else CHRF()
    streams = list(zip_longest(*run.references))
    return metric, np.array(metric._extract_corpus_statistics(run.predictions, streams), dtype=np.int32)


def _n_resamples(n_rows: int) -> int:
    return max(100, min(RESAMPLES, RESAMPLED_VALUES // max(n_rows, 1)))


def _scores_of_rows() -> dict[str, str]:
    """The metric of each score that is a mean of rows' scores."""
    return {score: name for name in MEANS_OVER_ROWS for score in METRICS[name].score_names}
