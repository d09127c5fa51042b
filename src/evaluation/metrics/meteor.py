"""METEOR (Banerjee and Lavie, 2005): exact, stem and WordNet matches, F-mean times a fragmentation penalty."""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from src.evaluation.metrics.packages import missing_packages

SCORES = ("meteor",)
DEFINITION = "nltk single_meteor_score, mean over rows"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def missing() -> str | None:
    """Opens WordNet (a second or two) instead of guessing where and in which form it lies; never downloads."""
    absent = missing_packages(nltk="nltk")
    if absent:
        return absent
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return "NLTK's WordNet data is not found (python -m nltk.downloader wordnet)"
    return None


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean over rows of the best reference's, 0 to 100; a perfect row of n words has 100 × (1 − 0.5 / n³)."""
    from nltk.corpus import wordnet

    return {"meteor": mean_meteor(predictions, references, wordnet)}


def mean_meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], wordnet: Any) -> float:
    """METEOR with the synonyms of `wordnet`, anything that has NLTK's `synsets(word)`."""
    from nltk.translate.meteor_score import meteor_score

    rows = zip(predictions, references, strict=True)
    return 100 * fmean(meteor_score(list(map(_words, refs)), _words(pred), wordnet=wordnet) for pred, refs in rows)


def _words(text: str) -> list[str]:
    """Treebank tokens of each sentence; the tokenizer splits a full stop off only at the end of what it is given."""
    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    return [word for sentence in _SENTENCE_END.split(text) for word in tokenizer.tokenize(sentence)]
