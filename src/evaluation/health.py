"""Warnings about problems that scores hide, such as looping output. Each check returns a line, or None."""

from collections.abc import Mapping, Sequence
from math import log

from src.config.constants import LOWER_IS_BETTER
from src.data.references import Target
from src.evaluation.metrics import METRICS, NO_OPTIONS, Options, score_texts

REPEATED = 4  # times that the same words stand behind each other at a text's end
LONGEST_LOOP = 8  # words
SHARE = 0.05  # of texts that may repeat themselves
NEAR_RANDOM = 0.95  # of the NLL of a uniform distribution
FAR_BELOW = 10  # points of 100 that a student may be worse than its teacher
SCALER_WARMUP = 32  # updates in which the scaler of half precision may find its scale, each half of the one before
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


def of_copying(
    predictions: Sequence[str], texts: Sequence[str], references: Sequence[Target], options: Options = NO_OPTIONS
) -> str | None:
    """Inputs that would score a higher BLEU than the predictions, taken as they are (where its package is there)."""
    if METRICS[BLEU].why_unavailable() is not None:
        return None
    score, copied = (
        score_texts(each, references, [BLEU], final=False, options=options)[BLEU] for each in (predictions, texts)
    )
    return f"copying the input would score {copied:.1f} {BLEU}, the model {score:.1f}" if copied > score else None


def of_zeros(scores: Mapping[str, float], predictions: Sequence[str]) -> str | None:
    """Scores that see nothing in the predictions, as those of another language's words do."""
    zeros = [name for name, value in scores.items() if value == 0 and name not in LOWER_IS_BETTER]
    n_texts = sum(bool(prediction.strip()) for prediction in predictions)
    if not zeros or not n_texts:
        return None
    return (
        f"{', '.join(zeros)}: 0 for all {n_texts} predictions that are not empty; if it stays so, the score does not "
        "fit these texts: chrf fits all languages, and sacrebleu has --bleu_tokenize"
    )


def of_teacher(student: float, teacher: float, name: str, *, higher_is_better: bool) -> str | None:
    """A student that is far below its teacher after an epoch, by a score (0 to 100) on the same rows."""
    gap = teacher - student if higher_is_better else student - teacher
    if not gap > FAR_BELOW:
        return None
    return (
        f"{name} {student:.1f} after the first epoch, the teacher's on the same rows is {teacher:.1f}; if it stays so, "
        "look at --task_prompt (is it the teacher's?), --learning_rate, --max_input_length, --max_labels_length and "
        "the tokenizer"
    )


def of_skipped(skipped: float, updates: float, updates_so_far: int) -> str | None:
    """Updates in half precision that the scaler skipped; at a run's start it does so until it has found its scale."""
    if updates_so_far <= SCALER_WARMUP or not skipped > updates / 2:
        return None
    return (
        f"{skipped:.0f} of the last {updates:.0f} updates were skipped, their gradients being too large for fp16; "
        "--mixed_precision bf16 or no has room for them, and a lower --learning_rate may help"
    )
