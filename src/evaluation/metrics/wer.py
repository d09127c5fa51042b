"""Word error rate: edits (insert, delete, replace) per word of the reference."""

import unicodedata
from collections.abc import Sequence
from statistics import fmean

from src.evaluation.metrics.packages import missing_packages

SCORES = ("wer",)


class _PunctuationApart(dict[int, str]):
    """A `str.translate` table, filled as characters come up: punctuation and symbols get white space around them."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        apart = unicodedata.category(character)[0] in "PS"
        self[code] = f" {character} " if apart else character
        return self[code]


_PUNCTUATION_APART = _PunctuationApart()


def words(text: str) -> list[str]:
    """Case-folded words; every punctuation mark or symbol is a word of its own."""
    return text.casefold().translate(_PUNCTUATION_APART).split()


def missing() -> str | None:
    return missing_packages(rapidfuzz="rapidfuzz")


def wer(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean over rows of 100 × edits / words of the reference; 0 is best and it may pass 100.

    A reference without words counts as one word long: 0 for an empty prediction, 100 per invented word otherwise.
    """
    from rapidfuzz.distance import Levenshtein

    def errors_per_word(prediction: str, reference: str) -> float:
        wanted = words(reference)
        return Levenshtein.distance(words(prediction), wanted) / max(1, len(wanted))

    return {"wer": 100 * fmean(map(errors_per_word, predictions, references))}
