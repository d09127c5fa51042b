"""WER, GLEU and ROUGE: metrics that compare words, in every script.

A character of a script without spaces between words counts as a word.
"""

import unicodedata
from collections.abc import Callable, Sequence
from statistics import fmean

from src.evaluation.metrics.metric import Metric

# Scripts without spaces between words, by the first letters of their characters' Unicode names.
WITHOUT_SPACES = (
    "CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ",
)  # fmt: skip
ROUGE_CHARACTERS = set("abcdefghijklmnopqrstuvwxyz0123456789")
LAST_LATIN_ACCENT = "\u036f"  # all letters up to here are Latin
GLEU_ORDERS = (1, 2, 4)
ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
ROUGE_SIDES = {"p": "precision", "r": "recall", "f": "fmeasure"}


def wer(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Word error rate: mean over rows of 100 × edits / words of the reference; 0 is best, and it may exceed 100.

    A reference without words counts as one word: 0 for an empty prediction, else 100 per word of the prediction.
    Of several references of a row, the one with the lowest rate counts.
    """
    from rapidfuzz.distance import Levenshtein

    def errors_per_word(prediction: str, alternatives: Sequence[str]) -> float:
        written = wer_words(prediction)
        distances = ((Levenshtein.distance(written, wanted), len(wanted)) for wanted in map(wer_words, alternatives))
        return min(edits / max(1, n_words) for edits, n_words in distances)

    return {"wer": 100 * fmean(map(errors_per_word, predictions, references))}


def gleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus GLEU (Wu et al., 2016), 0 to 100: the smaller of precision and recall of n-grams up to each order.

    Of several references of a row, the best counts.
    """
    from nltk.translate.gleu_score import corpus_gleu

    hypotheses = [gleu_words(prediction) for prediction in predictions]
    candidates = [list(map(gleu_words, alternatives)) for alternatives in references]
    return {f"gleu_{order}": 100 * corpus_gleu(candidates, hypotheses, 1, order) for order in GLEU_ORDERS}


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) without stemming: means over rows, 0 to 100.

    Of several references of a row, each kind takes the one with the highest F1.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_KINDS), tokenizer=RougeTokenizer())
    rows = [scorer.score_multi(each, prediction) for prediction, each in zip(predictions, references, strict=True)]
    return {
        f"{kind}_{side}": 100 * fmean(getattr(row[kind], attribute) for row in rows)
        for kind in ROUGE_KINDS
        for side, attribute in ROUGE_SIDES.items()
    }


class _Table(dict[int, str]):
    """A `str.translate` table that computes a character's replacement when it first occurs."""

    def __init__(self, replacement: Callable[[str], str]) -> None:
        super().__init__()
        self._replacement = replacement

    def __missing__(self, code: int) -> str:
        self[code] = self._replacement(chr(code))
        return self[code]


def _apart(character: str) -> str:
    """White space around a character of a script without spaces."""
    return f" {character} " if _is_word(character) and _name_starts(character, WITHOUT_SPACES) else character


def _signs_apart(character: str) -> str:
    """White space also around punctuation and symbols."""
    return f" {character} " if unicodedata.category(character)[0] in "PS" else _apart(character)


def _for_rouge(character: str) -> str:
    """A space for every character that ROUGE drops."""
    if character in ROUGE_CHARACTERS:
        return character
    if character <= LAST_LATIN_ACCENT or not _is_word(character) or _name_starts(character, ("LATIN",)):
        return " "
    return _apart(character)


def _is_word(character: str) -> bool:
    """Whether it is a letter, a mark (a vowel sign, an accent) or a digit."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd"


def _name_starts(character: str, beginnings: tuple[str, ...]) -> bool:
    return unicodedata.name(character, "").startswith(beginnings)


_APART, _SIGNS_APART, _FOR_ROUGE = _Table(_apart), _Table(_signs_apart), _Table(_for_rouge)


def gleu_words(text: str) -> list[str]:
    """White-space words."""
    return text.translate(_APART).split()


def wer_words(text: str) -> list[str]:
    """Case-folded words; a punctuation mark or a symbol is a word of its own."""
    return text.casefold().translate(_SIGNS_APART).split()


class RougeTokenizer:
    """Latin script as in the ROUGE package (runs of a-z and 0-9), and words of the scripts that the package drops."""

    def tokenize(self, text: str) -> list[str]:
        return text.lower().translate(_FOR_ROUGE).split()


WER = Metric(
    "wer",
    ("wer",),
    wer,
    "edits per word of the reference, mean over rows; case-folded words or characters, signs apart",
    ("rapidfuzz",),
)
GLEU = Metric(
    "gleu",
    tuple(f"gleu_{order}" for order in GLEU_ORDERS),
    gleu,
    "nltk corpus_gleu, white-space words, characters of scripts without spaces",
    ("nltk",),
)
ROUGE = Metric(
    "rouge",
    tuple(f"{kind}_{side}" for kind in ROUGE_KINDS for side in ROUGE_SIDES),
    rouge,
    "rouge_score without stemming, mean over rows; runs of a-z0-9, other scripts by word or character",
    ("rouge_score",),
)
