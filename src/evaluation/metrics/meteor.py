"""METEOR (Banerjee and Lavie, 2005): exact, stem and WordNet matches, with a penalty for fragmentation."""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from src.evaluation.metrics.metric import Metric

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def missing() -> str | None:
    """WordNet, if NLTK cannot open it (takes a second or two); never downloads it."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return "NLTK's WordNet data is not found (python -m nltk.downloader wordnet)"
    return None


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """METEOR, 0 to 100: mean over rows of the best reference's score.

    A perfect row of n words scores 100 × (1 − 0.5 / n³).
    """
    from nltk.corpus import wordnet

    return {"meteor": mean_meteor(predictions, references, wordnet)}


def mean_meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], wordnet: Any) -> float:
    """METEOR with the synonyms of `wordnet`, which has NLTK's method `synsets(word)`."""
    from nltk.translate.meteor_score import meteor_score

    rows = zip(predictions, references, strict=True)
    return 100 * fmean(meteor_score(list(map(_words, refs)), _words(pred), wordnet=wordnet) for pred, refs in rows)


def _words(text: str) -> list[str]:
    """Treebank tokens, sentence by sentence, because the tokenizer splits off only a text's last full stop."""
    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    return [word for sentence in _SENTENCE_END.split(text) for word in tokenizer.tokenize(sentence)]


METEOR = Metric("meteor", ("meteor",), meteor, "nltk single_meteor_score, mean over rows", ("nltk",), missing)
