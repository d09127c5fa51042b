"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) without stemming: precision, recall and F1."""

from collections.abc import Sequence
from statistics import fmean

from src.evaluation.metrics.packages import missing_packages
from src.evaluation.metrics.words import RougeTokenizer

KINDS = ("rouge1", "rouge2", "rougeL")
SIDES = {"p": "precision", "r": "recall", "f": "fmeasure"}
SCORES = tuple(f"{kind}_{side}" for kind in KINDS for side in SIDES)
DEFINITION = "rouge_score without stemming, mean over rows; runs of a-z0-9, other scripts by word or character"


def missing() -> str | None:
    return missing_packages(rouge_score="rouge-score")


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean over rows, 0 to 100. Words are runs of a-z and 0-9 in Latin script, and words of other scripts.

    Of several references of a row, each kind takes the one with the highest F1.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(KINDS), tokenizer=RougeTokenizer())
    rows = [scorer.score_multi(each, prediction) for prediction, each in zip(predictions, references, strict=True)]
    return {
        f"{kind}_{side}": 100 * fmean(getattr(row[kind], attribute) for row in rows)
        for kind in KINDS
        for side, attribute in SIDES.items()
    }
