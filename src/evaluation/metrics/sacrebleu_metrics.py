"""BLEU and chrF by sacreBLEU (Post, 2018), in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from src.config.errors import UserError
from src.evaluation.metrics.metric import Metric

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as SacreBLEUMetric

ROWS_AT_ONCE = 1_000


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a") -> dict[str, float]:
    """Corpus BLEU of order 4 with exponential smoothing, 0 to 100, against all references of a row.

    tokenize: the name of a tokenizer of sacreBLEU.
    """
    from sacrebleu.metrics import BLEU

    # `force` only silences a hint printed when many rows end in a tokenized full stop.
    return {"sacrebleu": corpus_score(BLEU(force=True, tokenize=tokenize), predictions, references)}


def bleu_signature(tokenize: str = "13a") -> str:
    """sacreBLEU's description of the score. Raises UserError for a tokenizer that does not work here."""
    from sacrebleu.metrics import BLEU

    try:
        return BLEU(tokenize=tokenize, references=[[""]]).get_signature().format()
    except (RuntimeError, ImportError, OSError) as error:  # a package or a download is missing
        raise UserError(f"--bleu_tokenize {tokenize}: {str(error).strip().splitlines()[0]}") from None


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus chrF (Popović, 2015), 0 to 100: F2 of character n-grams up to order 6, against the best reference."""
    from sacrebleu.metrics import CHRF

    return {"chrf": corpus_score(CHRF(), predictions, references)}


def chrf_signature() -> str:
    """sacreBLEU's description of the score."""
    from sacrebleu.metrics import CHRF

    return CHRF(references=[[""]]).get_signature().format()


def corpus_score(metric: SacreBLEUMetric, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The score of `metric.corpus_score`, without holding the n-grams of all references, which take gigabytes.

    Sums the integer counts of ROWS_AT_ONCE rows at a time, so the result is exactly the same. Rows may differ in their
    number of references.
    """
    totals: list[int] = []
    for start in range(0, len(predictions), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        streams = list(zip_longest(*references[rows]))  # sacreBLEU's order: each row's first reference, its second, ...
        counts = metric._extract_corpus_statistics(predictions[rows], streams)
        totals = [sum(column) for column in zip(*filter(None, [totals]), *counts, strict=True)]
    return metric._compute_score_from_stats(totals).score


SACREBLEU = Metric("sacrebleu", ("sacrebleu",), bleu, bleu_signature, ("sacrebleu",))
CHRF = Metric("chrf", ("chrf",), chrf, chrf_signature, ("sacrebleu",))
