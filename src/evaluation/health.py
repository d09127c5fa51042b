"""Warnings about problems that scores hide, such as looping outputs. Each function returns a line, or None."""

from collections.abc import Mapping, Sequence
from math import log

from src.config.constants import LOWER_IS_BETTER
from src.data.references import Target
from src.evaluation.metrics import METRICS, NO_OPTIONS, Options, score_texts

LOOP_REPEATS, LOOP_WORDS = 4, 8  # a loop: up to 8 words, four times in a row at a text's end
LOOPING_SHARE = 0.05  # of the outputs that may end in a loop
CHANCE_SHARE = 0.95  # of the NLL of a uniform distribution: no better than chance
TEACHER_GAP = 10  # points of 100 that a student may be worse than its teacher
SCALER_WARMUP = 32  # updates that the fp16 loss scaler may take to find its scale, halving it each time
BLEU = "sacrebleu"


def repeats_itself(text: str) -> bool:
    """Whether a text ends in a loop: up to LOOP_WORDS words, LOOP_REPEATS times in a row or more."""
    words = text.split()
    for length in range(1, min(LOOP_WORDS, len(words) // LOOP_REPEATS) + 1):
        end = words[-length:]
        if all(words[-(i + 1) * length : len(words) - i * length] == end for i in range(LOOP_REPEATS)):
            return True
    return False


def looping_texts(predictions: Sequence[str]) -> str | None:
    """Warn if many predictions end in a loop."""
    count = sum(map(repeats_itself, predictions))
    if count <= LOOPING_SHARE * len(predictions):
        return None
    return f"{count} of {len(predictions)} predictions repeat the same words at their end"


def nll_at_chance(nll: float, vocab_size: int) -> str | None:
    """Warn if the NLL is no better than that of an untrained model."""
    uniform = log(vocab_size)
    if nll < CHANCE_SHARE * uniform:
        return None
    return f"nll {nll:.2f} is no better than chance (log of {vocab_size:,} tokens: {uniform:.2f})"


def copying_wins(
    predictions: Sequence[str], texts: Sequence[str], references: Sequence[Target], options: Options = NO_OPTIONS
) -> str | None:
    """Warn if the inputs, copied, would score a higher BLEU than the predictions (needs sacreBLEU, else None)."""
    if METRICS[BLEU].why_unavailable() is not None:
        return None
    score, copied = (
        score_texts(each, references, [BLEU], final=False, options=options)[BLEU] for each in (predictions, texts)
    )
    return f"copying the input would score {copied:.1f} {BLEU}, the model {score:.1f}" if copied > score else None


def zero_scores(scores: Mapping[str, float], predictions: Sequence[str]) -> str | None:
    """Warn of scores that are 0 for all predictions, such as an English metric's on another language."""
    zeros = [name for name, value in scores.items() if value == 0 and name not in LOWER_IS_BETTER]
    n_texts = sum(bool(prediction.strip()) for prediction in predictions)
    if not zeros or not n_texts:
        return None
    return (
        f"{', '.join(zeros)}: 0 for all {n_texts} predictions that are not empty; if it stays 0, the metric may not "
        "fit the language: chrf fits all languages, and sacrebleu has --bleu_tokenize"
    )


def far_below_teacher(student: float, teacher: float, name: str, *, higher_is_better: bool) -> str | None:
    """Warn if a student is far below its teacher after the first epoch, by a score (0 to 100) on the same rows."""
    gap = teacher - student if higher_is_better else student - teacher
    if not gap > TEACHER_GAP:
        return None
    return (
        f"{name} {student:.1f} after the first epoch, the teacher's on the same rows is {teacher:.1f}; if the gap "
        "stays, check --task_prompt (is it the teacher's?), --learning_rate, --max_input_length, --max_labels_length "
        "and the tokenizer"
    )


def skipped_updates(skipped: float, updates: float, updates_so_far: int) -> str | None:
    """Warn if the fp16 loss scaler skipped most updates, after those in which it looks for its scale.

    A single one may be a scale that was too large: the scaler tries a larger one now and then.
    """
    if updates_so_far <= SCALER_WARMUP or skipped < 2 or not skipped > updates / 2:
        return None
    return (
        f"{skipped:.0f} of the last {updates:.0f} updates were skipped, because their gradients overflow fp16; use "
        "--mixed_precision bf16 or no, or a lower --learning_rate"
    )
