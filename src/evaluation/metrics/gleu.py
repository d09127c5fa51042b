"""GLEU (Wu et al., 2016, "Google BLEU"): the smaller of n-gram precision and recall, over the corpus."""

from collections.abc import Sequence

from src.evaluation.metrics.packages import missing_packages
from src.evaluation.metrics.words import words

ORDERS = (1, 2, 4)
SCORES = tuple(f"gleu_{order}" for order in ORDERS)
DEFINITION = "nltk corpus_gleu, white-space words, characters of scripts without spaces"


def missing() -> str | None:
    return missing_packages(nltk="nltk")


def gleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus GLEU over all n-grams up to each of `ORDERS`, 0 to 100, on white-space words.

    Characters of scripts without spaces are words. Of several references of a row the best counts.
    """
    from nltk.translate.gleu_score import corpus_gleu

    hypotheses = [words(prediction) for prediction in predictions]
    candidates = [list(map(words, alternatives)) for alternatives in references]
    return {f"gleu_{order}": 100 * corpus_gleu(candidates, hypotheses, 1, order) for order in ORDERS}
