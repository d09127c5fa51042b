"""The score of a corpus by a metric of sacreBLEU, in bounded memory."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

ROWS = 1_000


def corpus_score(metric: "Metric", predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """What `metric.corpus_score` gives, whose n-grams of all references take gigabytes.

    Counts of ROWS rows at a time are added up: they are integers, so the result is the same to the last digit. Rows may
    differ in how many references they have.
    """
    totals: list[int] = []
    for start in range(0, len(predictions), ROWS):
        piece = slice(start, start + ROWS)
        streams = list(zip_longest(*references[piece]))  # as sacreBLEU has them: the first of each row, the second, ...
        counts = metric._extract_corpus_statistics(predictions[piece], streams)
        totals = [sum(column) for column in zip(*filter(None, [totals]), *counts, strict=True)]
    return metric._compute_score_from_stats(totals).score
