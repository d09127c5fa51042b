"""Teacher tokens to student tokens: which belong together, and what the student's vocabulary keeps of the teacher's.

Both sides are places in one text: a token is the bytes (UTF-8) that it spells, and one that begins a word begins with a
space here, however its tokenizer writes that (`▁cat`, `Ġcat`, `cat` without `##`, the first token of a text).
Alignments are lists with, for each student token, the number of its teacher token or −1; they never cross.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp
from typing import TYPE_CHECKING

from src.api.responses import (
    Completion,
    Span,
    TeacherBytes,
    TeacherTokens,
    add_logs,
    locate_pieces,
    placed_text,
    read_tokens,
)
from src.config.errors import UserError
from src.tokens.token_bytes import ANCHOR, BYTE_TOKEN, TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNALIGNED = -1
WORD_MODELS = ("WordPiece", "WordLevel")  # whose tokens do not say whether a space is before them


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
            their_token_at.setdefault(_without_spaces(text, span)[0], i)
    aligned = [UNALIGNED] * len(ours)
    i = j = 0
    for block in edits.as_matching_blocks():  # the last one is empty, at both ends
        for between in range(j, block.b):
            match = their_token_at.get(_without_spaces(text, student[between])[0], UNALIGNED)
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
    ours = [_without_spaces(text, span) for span in student]
    theirs: dict[Span, int] = {}
    for i, span in enumerate(teacher):
        theirs.setdefault(_without_spaces(text, span), i)
    shared = {one for one, next_one in zip(ours, ours[1:], strict=False) if one == next_one}  # parts of a character
    return [
        UNALIGNED if start == end or (start, end) in shared else theirs.get((start, end), UNALIGNED)
        for start, end in ours
    ]


RULES: dict[str, Callable[[bytes, Sequence[Span], Sequence[Span]], list[int]]] = {
    "edit": align_by_edits,
    "exact": align_by_places,
}


def canonical_tokens(text: bytes, spans: Sequence[Span]) -> list[bytes]:
    """What each token spells, without white space around it, after a space if it begins a word."""
    tokens = []
    for start, end in spans:
        piece = text[start:end]
        body = piece.strip()
        tokens.append(b" " + body if body and begins_word(text, start, end) else body or piece)
    return tokens


def begins_word(text: bytes, start: int, end: int) -> bool:
    """Whether a token there is the first of its word."""
    return start == 0 or text[start - 1 : start].isspace() or text[start:end][:1].isspace()


def _without_spaces(text: bytes, span: Span) -> Span:
    """A span without white space at its ends; one that is nothing else stays as it is."""
    start, end = span
    piece = text[start:end]
    if not piece.strip():
        return span
    return end - len(piece.lstrip()), start + len(piece.rstrip())


# ------------------------------------------------------------------------------------------------- student's vocabulary


class StudentTokens:
    """A student's vocabulary: which token a string is, and where the tokens of a text are.

    end_of_text: how its EOS is written. Raises UserError for a slow tokenizer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError("--student_name: its tokenizer is a slow one (no tokenizer.json), which locates no tokens")
        self._backend = backend
        self._bytes = TokenBytes(tokenizer)
        self.end_of_text = tokenizer.eos_token.encode()
        self._eos = tokenizer.eos_token_id
        model = json.loads(backend.to_str())["model"]
        self._spells_spaces = model["type"] not in WORD_MODELS  # in its tokens, as `▁cat` and `Ġcat`
        vocabulary = {token: name for name, token in tokenizer.get_vocab().items() if token not in self._bytes.special}
        ids = sorted(vocabulary, key=lambda token: (BYTE_TOKEN.fullmatch(vocabulary[token]) is not None, token))
        if self._spells_spaces:
            spelled = self._bytes.of(ids)
        else:
            goes_on = model.get("continuing_subword_prefix")
            spelled = [_spelled_word(vocabulary[token], goes_on) for token in ids]
        self._id_of: dict[bytes, int] = {}
        for token, one in zip(ids, spelled, strict=True):
            self._id_of.setdefault(one, token)  # a byte's token only where it is the only one
        self._id_of.pop(b"", None)

    def id_of(self, spelled: bytes) -> int | None:
        """The token that spells this by itself, after the tokenizer's own normalization; None if there is none.

        Of the special tokens only EOS is found, by its name: something a teacher, too, may say.
        """
        if spelled == self.end_of_text:
            return self._eos
        if self._spells_spaces and spelled in self._id_of:
            return self._id_of[spelled]
        return self._id_of.get(self._normalized(spelled))

    def _normalized(self, spelled: bytes) -> bytes:
        """As it is inside a text after the tokenizer's normalization; nothing where that leaves no single token."""
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            return b""  # a part of a character
        body = text.lstrip(" ")
        head = text[: len(text) - len(body)]
        if self._spells_spaces:
            body = self._in_normal_form(body).replace("▁", " ").strip(" ")
            return (head + body).encode() if body else b""
        words = self._words(ANCHOR + body)
        if words and words[0] == ANCHOR:  # a word of its own, without a space before it: punctuation
            return f" {words[1]}".encode() if len(words) == 2 else b""
        return (head + words[0].removeprefix(ANCHOR)).encode() if len(words) == 1 else b""

    def _in_normal_form(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def _words(self, text: str) -> list[str]:
        text = self._in_normal_form(text)
        splitter = self._backend.pre_tokenizer
        return text.split() if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]

    def begins_with_space(self, token: int, text: bytes, span: Span) -> bool:
        """Whether a token of a text includes the space before it, or stands for a word's beginning without one."""
        if self._spells_spaces:
            return self._bytes.of([token])[0][:1] == b" "
        return begins_word(text, *span)

    def locate(self, tokens: Sequence[int], characters: Sequence[Span], target: str) -> list[Span]:
        """The bytes of `placed_text(target)` that each token spells, from the characters that the tokenizer says.

        Exact where the tokens spell the target themselves, parts of characters too.
        """
        text = placed_text(target)
        special = self._bytes.special
        pieces = [b"" if token in special else one for token, one in zip(tokens, self._bytes.of(tokens), strict=True)]
        spans = locate_pieces(pieces, text) if self._spells_spaces else None
        if spans is not None:
            return spans
        starts = [0, *accumulate(len(character.encode()) for character in target)]
        n_before = len(text) - starts[-1]
        places = [(starts[start] + n_before, starts[end] + n_before) for start, end in characters]
        # A word's beginning `▁` has its first letter's place.
        is_space = [self._spells_spaces and one.isspace() for one in pieces]
        return [
            (start, start) if space and text[start:end].strip() else (start, end)
            for (start, end), space in zip(places, is_space, strict=True)
        ]


def _spelled_word(name: str, goes_on: str | None) -> bytes:
    """A word's token, or the token that goes on with one: without the prefix that says so."""
    return name.removeprefix(goes_on).encode() if goes_on and name.startswith(goes_on) else f" {name}".encode()


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


class _Ids(dict[str, int | None]):
    """Student tokens by the teacher's token strings, each worked out once; `respell` adapts the space before them."""

    def __init__(self, student: StudentTokens, teacher_bytes: TeacherBytes, respell: Callable[[bytes], bytes]) -> None:
        self._student, self._teacher_bytes, self._respell = student, teacher_bytes, respell

    def __missing__(self, name: str) -> int | None:
        spelled = self._teacher_bytes[name]
        if spelled != self._student.end_of_text:
            spelled = self._respell(spelled)
        self[name] = token = self._student.id_of(spelled)
        return token


def _as_it_is(spelled: bytes) -> bytes:
    return spelled


def _with_space(spelled: bytes) -> bytes:
    return spelled if spelled[:1] == b" " else b" " + spelled


def _without_space(spelled: bytes) -> bytes:
    return spelled[1:] if spelled[:1] == b" " else b""


class Aligner:
    """Turns completions into what the student learns from: at each label token, student tokens and log-probabilities.

    rule: one of RULES. `counted` grows with every completion.
    """

    def __init__(self, student: StudentTokens, teacher_bytes: TeacherBytes, rule: str) -> None:
        self.counted = Alignment()
        self._student, self._teacher_bytes, self._align = student, teacher_bytes, RULES[rule]
        self._ids = _Ids(student, teacher_bytes, _as_it_is)
        self._spaced_ids = _Ids(student, teacher_bytes, _with_space)
        self._unspaced_ids = _Ids(student, teacher_bytes, _without_space)

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
