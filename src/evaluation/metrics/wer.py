"""Word error rate: edits (insert, delete, replace) per word of the reference."""

import unicodedata
from collections.abc import Sequence
from statistics import fmean

from src.evaluation.metrics.packages import missing_packages
from src.evaluation.metrics.words import Table, characters_apart

SCORES = ("wer",)
DEFINITION = "edits per word of the reference, mean over rows; case-folded words or characters, signs apart"


def _apart(character: str) -> str:
    """Punctuation, symbols, and characters of scripts without spaces get white space around them."""
    is_sign = unicodedata.category(character)[0] in "PS"
    return f" {character} " if is_sign else characters_apart(character)


_APART = Table(_apart)


def words(text: str) -> list[str]:
    """Case-folded words; a punctuation mark, a symbol, or a character of a script without spaces is one of its own."""
    return text.casefold().translate(_APART).split()


def missing() -> str | None:
    return missing_packages(rapidfuzz="rapidfuzz")


def wer(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean over rows of 100 × edits / words of the reference; 0 is best and it may pass 100.

    A reference without words counts as one word long: 0 for an empty prediction, 100 per invented word otherwise.
    Of several references of a row the one with the lowest rate counts.
    """
    from rapidfuzz.distance import Levenshtein

    def errors_per_word(prediction: str, alternatives: Sequence[str]) -> float:
        written = words(prediction)
        return min(Levenshtein.distance(written, wanted) / max(1, len(wanted)) for wanted in map(words, alternatives))

    return {"wer": 100 * fmean(map(errors_per_word, predictions, references))}
