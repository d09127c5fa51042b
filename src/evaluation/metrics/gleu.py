"""GLEU (Wu et al., 2016, "Google BLEU"): the smaller of n-gram precision and recall, over the corpus."""

from collections.abc import Sequence

from src.evaluation.metrics.packages import missing_packages

ORDERS = (1, 2, 4)
SCORES = tuple(f"gleu_{order}" for order in ORDERS)


def missing() -> str | None:
    return missing_packages(nltk="nltk")


def gleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus GLEU over all n-grams up to each of `ORDERS`, 0 to 100, on white-space tokens."""
    from nltk.translate.gleu_score import corpus_gleu

    hypotheses = [prediction.split() for prediction in predictions]
    candidates = [[reference.split()] for reference in references]
    return {f"gleu_{order}": 100 * corpus_gleu(candidates, hypotheses, 1, order) for order in ORDERS}
