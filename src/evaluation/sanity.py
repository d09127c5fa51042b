"""Is something wrong that scores alone do not say? Each check returns a line for the user, or None if all is well."""

from collections.abc import Sequence
from math import log

from src.evaluation.metrics import score_texts

REPEATED = 4  # times that the same words stand behind each other at a text's end
LONGEST_LOOP = 8  # words
SHARE = 0.05  # of texts that may repeat themselves
NEAR_RANDOM = 0.95  # of the NLL of a uniform distribution
BLEU = "sacrebleu"


def repeats_itself(text: str) -> bool:
    """Whether a text ends in a loop: up to LONGEST_LOOP words, REPEATED times or more."""
    words = text.split()
    for length in range(1, min(LONGEST_LOOP, len(words) // REPEATED) + 1):
        end = words[-length:]
        if all(words[-(i + 1) * length : len(words) - i * length] == end for i in range(REPEATED)):
            return True
    return False


def of_loops(predictions: Sequence[str]) -> str | None:
    """Texts that repeat themselves, while the loss looks fine."""
    count = sum(map(repeats_itself, predictions))
    if count <= SHARE * len(predictions):
        return None
    return f"{count} of {len(predictions)} predictions repeat the same words at their end"


def of_likelihood(nll: float, vocab_size: int) -> str | None:
    """A model that knows as little as one that has never been trained."""
    uniform = log(vocab_size)
    if nll < NEAR_RANDOM * uniform:
        return None
    return f"nll {nll:.2f} is that of a model that knows nothing (log of {vocab_size:,} tokens: {uniform:.2f})"


def of_copying(score: float, texts: Sequence[str], references: Sequence[str]) -> str | None:
    """Inputs that would score higher than the predictions, taken as they are; `score` is the predictions' BLEU."""
    copied = score_texts(texts, references, [BLEU], final=False)[BLEU]
    return f"copying the input would score {copied:.1f} {BLEU}, the model {score:.1f}" if copied > score else None
