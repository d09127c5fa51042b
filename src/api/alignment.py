"""Align a teacher's tokens with the student's, and store the teacher's log-probabilities by student token.

Tokens of both sides are spans of one text: the bytes (UTF-8) that they spell. A token that begins a word begins with
a space here, however its tokenizer writes that (`▁cat`, `Ġcat`, the first token of a text). An alignment is a list
with the index of the teacher's token for each student token, or −1; alignments never cross.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import exp

from src.api.logprobs import add_logs, read_tokens
from src.api.responses import Completion
from src.api.spelling import Span, encode_with_leading_space, token_bytes
from src.api.student_vocabulary import StudentTokens

UNALIGNED = -1

# ------------------------------------------------------------------------------------------------------------- rules


def align_by_edits(text: bytes, teacher: Sequence[Span], student: Sequence[Span]) -> list[int]:
    """The rule of KD4Gen (Calderon et al., ACL 2023): edit distance over the token strings.

    Equal tokens align. Between them, tokens align that begin at the same byte if one is the other's prefix (` walk`,
    ` walking`).
    """
    from rapidfuzz.distance import Levenshtein

    ours, theirs = canonical_tokens(text, student), canonical_tokens(text, teacher)
    number: dict[bytes, int] = {}
    for token in (*theirs, *ours):
        number.setdefault(token, len(number) + 2)
    edits = Levenshtein.editops(
        [number[token] if token else 0 for token in theirs],  # a token that spells nothing equals none
        [number[token] if token else 1 for token in ours],
    )
    their_token_at: dict[int, int] = {}
    for i, span in enumerate(teacher):
        if theirs[i]:
            their_token_at.setdefault(strip_span(text, span)[0], i)
    aligned = [UNALIGNED] * len(ours)
    i = j = 0
    for block in edits.as_matching_blocks():  # the last block is empty and ends both sides
        for between in range(j, block.b):
            match = their_token_at.get(strip_span(text, student[between])[0], UNALIGNED)
            if i <= match < block.a and ours[between] and _is_prefix(theirs[match], ours[between]):
                aligned[between] = match
                i = match + 1
        i, j = block.a + block.size, block.b + block.size
        aligned[block.b : j] = range(block.a, i)
    return aligned


def _is_prefix(one: bytes, other: bytes) -> bool:
    """Whether one of two tokens begins with the other."""
    return one.startswith(other) or other.startswith(one)


def canonical_tokens(text: bytes, spans: Sequence[Span]) -> list[bytes]:
    """The bytes of each span of `text` without white space around them, after one space if they begin a word."""
    tokens = []
    for start, end in spans:
        piece = text[start:end]
        body = piece.strip()
        begins_word = start == 0 or text[start - 1 : start].isspace() or piece[:1].isspace()
        tokens.append(b" " + body if body and begins_word else body or piece)
    return tokens


def strip_span(text: bytes, span: Span) -> Span:
    """A span without white space at its ends; a span of nothing else is returned unchanged."""
    start, end = span
    piece = text[start:end]
    if not piece.strip():
        return span
    return end - len(piece.lstrip()), start + len(piece.rstrip())


def align_by_spans(text: bytes, teacher: Sequence[Span], student: Sequence[Span]) -> list[int]:
    """The exact rule: tokens align that spell the same bytes of the text, apart from white space at their ends."""
    ours = [strip_span(text, span) for span in student]
    theirs: dict[Span, int] = {}
    for i, span in enumerate(teacher):
        theirs.setdefault(strip_span(text, span), i)
    shared = {
        one for one, next_one in zip(ours, ours[1:], strict=False) if one == next_one
    }  # parts of one character, whose bytes are unknown
    return [
        UNALIGNED if start == end or (start, end) in shared else theirs.get((start, end), UNALIGNED)
        for start, end in ours
    ]


RULES: dict[str, Callable[[bytes, Sequence[Span], Sequence[Span]], list[int]]] = {
    "edit": align_by_edits,
    "exact": align_by_spans,
}


@dataclass
class Alignment:
    """Counts over a dataset of how well the teacher's tokens fit the student's.

    completions: all; cut_off, empty: of these. positions: label tokens that stand for text (EOS does not); aligned: of
    these, with a teacher token; hard: of these, learned from the label alone. mass: sum over the aligned positions of
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
    """Turn completions into the student tokens and log-probabilities to learn at each label token.

    rule: one of RULES; new_word_char: see `token_bytes`. `counted` is updated with every completion.
    """

    def __init__(self, student: StudentTokens, rule: str, new_word_char: str = " ") -> None:
        self.counted = Alignment()
        self._student, self._align, self._new_word_char = student, RULES[rule], new_word_char
        self._id_of = {space: cache(partial(self._lookup, space)) for space in (-1, 0, 1)}

    def _lookup(self, space: int, name: str) -> int | None:
        """The student's token for a teacher's token string, if there is one.

        space: 1 looks for it with a space before it, −1 without the one that it has, 0 as it is.
        """
        spelled = token_bytes(name, self._new_word_char)
        if spelled != self._student.end_of_text:
            if space > 0 and spelled[:1] != b" ":
                spelled = b" " + spelled
            elif space < 0:
                spelled = spelled[1:] if spelled[:1] == b" " else b""  # b"" is no token
        return self._student.id_of(spelled)

    def align(
        self, completion: Completion, labels: Sequence[int], characters: Sequence[Span]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Student token ids and the teacher's log-probabilities: for each of T labels a list of K entries, K ≥ 0.

        labels: token ids of the completion's text, EOS last; characters: the T spans of the text, in characters, that
        they stand for. EOS, a label without a teacher token and one of whose teacher token nothing is kept get a hard
        label: [label] and [0.0]. The EOS of a text that was cut off gets nothing. Raises UserError, naming the place,
        for tokens that cannot be used.
        """
        teacher = read_tokens(completion, self._new_word_char)
        text = encode_with_leading_space(completion.prediction)
        spans = self._student.locate(labels, characters, completion.prediction)
        tokens: list[list[int]] = []
        logs: list[list[float]] = []
        for label, span, i in zip(labels, spans, self._align(text, teacher.spans, spans), strict=True):
            top = None if i == UNALIGNED else teacher.top[i]
            kept = {} if top is None else self._kept(top, teacher.names[i], label)
            self._count(top, kept, span)
            tokens.append(list(kept) or [label])
            logs.append(list(kept.values()) or [0.0])
        if completion.is_cut_off:
            tokens[-1], logs[-1] = [], []
        self.counted.completions += 1
        self.counted.cut_off += completion.is_cut_off
        self.counted.empty += not completion.prediction.strip()
        return tokens, logs

    def _kept(self, top: dict[str, float], chosen: str, label: int) -> dict[int, float]:
        """Log-probability by student token; the token that was written, `chosen`, becomes the label.

        If only one of the two includes the space before its word, the teacher's other tokens get or lose theirs.
        """
        chosen_has_space = token_bytes(chosen, self._new_word_char)[:1] == b" "
        id_of = self._id_of[self._student.begins_with_space(label) - chosen_has_space]
        kept: dict[int, float] = {}
        for name, value in top.items():
            token = label if name == chosen else id_of(name)
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
