"""SacreBLEU (Post, 2018): corpus BLEU of order 4, 13a tokens, exponential smoothing."""

from collections.abc import Sequence

from src.evaluation.metrics.packages import missing_packages

SCORES = ("sacrebleu",)


def missing() -> str | None:
    return missing_packages(sacrebleu="sacrebleu")


def bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU, 0 to 100, one reference per row."""
    import sacrebleu

    # `force` only silences a hint printed when many rows end in a tokenised full stop.
    return {"sacrebleu": sacrebleu.corpus_bleu(predictions, [references], force=True).score}
