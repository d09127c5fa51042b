"""chrF (Popović, 2015): corpus F2 of character n-grams up to order 6."""

from collections.abc import Sequence

from src.evaluation.metrics.packages import missing_packages
from src.evaluation.metrics.pieces import corpus_score

SCORES = ("chrf",)


def missing() -> str | None:
    return missing_packages(sacrebleu="sacrebleu")


def signature() -> str:
    """sacreBLEU's own description of the score."""
    from sacrebleu.metrics import CHRF

    return CHRF(references=[[""]]).get_signature().format()


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus chrF, 0 to 100, against the best reference of each row."""
    from sacrebleu.metrics import CHRF

    return {"chrf": corpus_score(CHRF(), predictions, references)}
