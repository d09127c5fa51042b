"""Teacher tokens to student tokens: which belong together, and what the student's vocabulary keeps of the teacher's.

Both sides are places in one text: a token is the bytes (UTF-8) that it spells, and one that begins a word begins with a
space here, however its tokenizer writes that (`▁cat`, `Ġcat`, `cat` without `##`, the first token of a text).
Alignments are lists with, for each student token, the number of its teacher token or −1; they never cross.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from src.api.responses import Completion, add_logs, read_tokens
from src.api.spelling import Span, TeacherBytes, TeacherTokens, placed_text

if TYPE_CHECKING:
    pass
from src.api.student_vocabulary import (
    Ids,
    StudentTokens,
    as_it_is,
    canonical_tokens,
    with_space,
    without_space,
    without_spaces,
)

UNALIGNED = -1


# ------------------------------------------------------------------------------------------------ which belong together


def align_by_edits(text: bytes, teacher: Sequence[Span], student: Sequence[Span]) -> list[int]:
    """The published rule: edit distance over the token strings. Equal tokens align, and in the stretches between them
    tokens that begin at one place and of which one is the other's prefix (` walk`, ` walking`).
    """
    from rapidfuzz.distance import Levenshtein

    ours, theirs = canonical_tokens(text, student), canonical_tokens(text, teacher)
    number: dict[bytes, int] = {}
    for token in (*theirs, *ours):
        number.setdefault(token, len(number) + 2)
    edits = Levenshtein.editops(
        [number[token] if token else 0 for token in theirs],  # what spells nothing equals nothing
        [number[token] if token else 1 for token in ours],
    )
    their_token_at: dict[int, int] = {}
    for i, span in enumerate(teacher):
        if theirs[i]:
            their_token_at.setdefault(without_spaces(text, span)[0], i)
    aligned = [UNALIGNED] * len(ours)
    i = j = 0
    for block in edits.as_matching_blocks():  # the last one is empty, at both ends
        for between in range(j, block.b):
            match = their_token_at.get(without_spaces(text, student[between])[0], UNALIGNED)
            if i <= match < block.a and _is_prefix(theirs[match], ours[between]):
                aligned[between] = match
                i = match + 1
        i, j = block.a + block.size, block.b + block.size
        aligned[block.b : j] = range(block.a, i)
    return aligned


def _is_prefix(one: bytes, other: bytes) -> bool:
    """Whether one of them begins with the other, which is not empty."""
    return bool(one) and bool(other) and (one.startswith(other) or other.startswith(one))


def align_by_places(text: bytes, teacher: Sequence[Span], student: Sequence[Span]) -> list[int]:
    """The exact rule: tokens align that spell the same bytes of the text, white space at their ends aside."""
    ours = [without_spaces(text, span) for span in student]
    theirs: dict[Span, int] = {}
    for i, span in enumerate(teacher):
        theirs.setdefault(without_spaces(text, span), i)
    shared = {one for one, next_one in zip(ours, ours[1:], strict=False) if one == next_one}  # parts of a character
    return [
        UNALIGNED if start == end or (start, end) in shared else theirs.get((start, end), UNALIGNED)
        for start, end in ours
    ]


RULES: dict[str, Callable[[bytes, Sequence[Span], Sequence[Span]], list[int]]] = {
    "edit": align_by_edits,
    "exact": align_by_places,
}


# -------------------------------------------------------------------------------------------------- stored for training


@dataclass
class Alignment:
    """How well a data set's tokens fit the student's, counted over label tokens that stand for text (EOS does not).

    positions: these; aligned: with a teacher token; hard: learned from the label alone; mass: sum over the aligned of
    the share of the teacher's stored probability that is kept.
    """

    completions: int = 0
    positions: int = 0
    aligned: int = 0
    hard: int = 0
    mass: float = 0.0
    cut_off: int = 0
    empty: int = 0


class Aligner:
    """Turns completions into what the student learns from: at each label token, student tokens and log-probabilities.

    rule: one of RULES. `counted` grows with every completion.
    """

    def __init__(self, student: StudentTokens, teacher_bytes: TeacherBytes, rule: str) -> None:
        self.counted = Alignment()
        self._student, self._teacher_bytes, self._align = student, teacher_bytes, RULES[rule]
        self._ids = Ids(student, teacher_bytes, as_it_is)
        self._spaced_ids = Ids(student, teacher_bytes, with_space)
        self._unspaced_ids = Ids(student, teacher_bytes, without_space)

    def stored(
        self, completion: Completion, labels: Sequence[int], characters: Sequence[Span]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and raw log-probabilities, an entry for each of `labels` (EOS last).

        characters: where the labels are in the completion's text. A label that aligns with no token, or of whose token
        nothing is kept, and EOS get a hard label, [label] and [0.0]; the EOS of a text that was cut off gets nothing.
        Raises UserError, naming the place, for tokens that cannot be used.
        """
        teacher = read_tokens(completion, self._teacher_bytes)
        text = placed_text(completion.prediction)
        spans = self._student.locate(labels, characters, completion.prediction)
        tokens: list[list[int]] = []
        logs: list[list[float]] = []
        for label, span, i in zip(labels, spans, self._align(text, teacher.spans, spans), strict=True):
            kept = (
                {}
                if i == UNALIGNED
                else self._kept(teacher, i, label, self._student.begins_with_space(label, text, span))
            )
            self._count(teacher.top[i] if i != UNALIGNED else None, kept, span)
            tokens.append(list(kept) or [label])
            logs.append(list(kept.values()) or [0.0])
        if completion.is_cut_off:
            tokens[-1], logs[-1] = [], []
        self.counted.completions += 1
        self.counted.cut_off += completion.is_cut_off
        self.counted.empty += not completion.prediction.strip()
        return tokens, logs

    def _kept(self, teacher: TeacherTokens, i: int, label: int, label_has_space: bool) -> dict[int, float]:
        """Log-probability by student token at a position; the token that was written stands for the label.

        Where only one side's token has the space before its word, the teacher's other tokens are given or lose theirs.
        """
        chosen = teacher.names[i]
        chosen_has_space = self._teacher_bytes[chosen][:1] == b" "
        ids = self._ids
        if label_has_space != chosen_has_space:
            ids = self._spaced_ids if label_has_space else self._unspaced_ids
        kept: dict[int, float] = {}
        for name, value in teacher.top[i].items():
            token = label if name == chosen else ids[name]
            if token is not None:
                kept[token] = add_logs(kept[token], value) if token in kept else value
        return kept

    def _count(self, top: dict[str, float] | None, kept: dict[int, float], span: Span) -> None:
        if span[0] == span[1]:
            return
        self.counted.positions += 1
        self.counted.hard += not kept
        if top is not None:
            self.counted.aligned += 1
            given = sum(map(exp, top.values()))
            self.counted.mass += min(1.0, sum(map(exp, kept.values())) / given) if given else 0.0
