"""chrF (Popović, 2015): corpus F2 of character n-grams up to order 6."""

from collections.abc import Sequence

from src.evaluation.metrics.packages import missing_packages

SCORES = ("chrf",)


def missing() -> str | None:
    return missing_packages(sacrebleu="sacrebleu")


def signature() -> str:
    """sacreBLEU's own description of the score."""
    from sacrebleu.metrics import CHRF

    return CHRF(references=[[""]]).get_signature().format()


def chrf(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus chrF, 0 to 100, one reference per row."""
    import sacrebleu

    return {"chrf": sacrebleu.corpus_chrf(predictions, [references]).score}
