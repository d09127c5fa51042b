"""Test rows for reading: input, references and the texts of all methods, with marks where they differ."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from rapidfuzz.distance import Levenshtein

from src.reports.comparison import Comparison
from src.reports.methods import OTHER, STUDENT, TEACHER, Method
from src.reports.sources import read_sources
from src.reports.statistics import Bootstrap

MAX_CHARACTERS = 1_000_000  # of all texts of a comparison
MARKED_PAIRS = 1_000_000  # pairs of words to compare for marks

Marked = list[tuple[str, bool]]  # pieces of a text, and whether each differs


@dataclass(frozen=True)
class Written:
    """A method's text for a row: chrF against the references, marks where it differs from the teacher's."""

    method: Method
    pieces: Marked
    score: float


@dataclass(frozen=True)
class Example:
    """A test row. difference: of the students' texts from the teacher's, 0 to 1, the mean."""

    row: int
    source: str | None
    references: list[str]
    texts: list[Written]
    difference: float


def examples_of(comparison: Comparison, n_examples: int, bootstrap: Bootstrap) -> tuple[list[Example], str]:
    """The rows where the students differ most from the teacher, or else from the references; and what to know of them.

    Fewer than `n_examples` if their texts are very long.
    """
    methods = [each for each in comparison.methods if each.role != OTHER] or comparison.methods
    if not n_examples:
        return [], ""
    sources, reason = read_sources(run for method in methods for run in method.runs)
    teacher = next((each for each in methods if each.role == TEACHER), None)
    references = comparison.methods[0].first.references
    goals = teacher.first.predictions if teacher else [texts[0] for texts in references]
    learners = [each for each in methods if each.role == STUDENT] or [each for each in methods if each is not teacher]
    distances = [
        float(np.mean([Levenshtein.normalized_distance(each.first.predictions[i], goal) for each in learners] or [0]))
        for i, goal in enumerate(goals)
    ]
    examples: list[Example] = []
    length = 0
    for i in sorted(range(len(goals)), key=lambda row: -distances[row])[:n_examples]:
        texts = [each.first.predictions[i] for each in methods]
        source = sources[i] if sources else None
        length += sum(map(len, [*texts, *references[i], source or ""]))
        if length > MAX_CHARACTERS and examples:
            break
        written = [
            Written(each, [(text, False)] if each is teacher else marked(text, goals[i]), _score(bootstrap, each, i))
            for each, text in zip(methods, texts, strict=True)
        ]
        examples.append(Example(i, source, references[i], written, distances[i]))
    compared = "the teacher's text" if teacher else "the first reference"
    note = f"{len(examples)} of {len(goals):,} rows, those first where the students' texts differ most from {compared}"
    note += f" (edit distance). Marked: what is not in {compared}. In parentheses: chrF. Of several seeds, the first."
    return examples, note if sources else f"{note} The inputs are not shown: {reason}."


def _score(bootstrap: Bootstrap, method: Method, row: int) -> float:
    return float(bootstrap.row_scores(method.first, "chrf")[row])


def marked(text: str, other: str) -> Marked:
    """Pieces of `text`, marked where they are not in `other`: words, or characters where neither text has spaces."""
    has_words = any(re.search(r"\S\s+\S", each) for each in (text, other))
    parts, others = (re.findall(r"\s+|\S+", each) if has_words else list(each) for each in (text, other))
    if len(parts) * len(others) > MARKED_PAIRS:
        return [(text, False)]
    pieces: Marked = []
    for kind, start, end, _, _ in SequenceMatcher(None, parts, others, autojunk=False).get_opcodes():
        if start < end:
            pieces.append(("".join(parts[start:end]), kind != "equal"))
    return pieces


def plain(pieces: Sequence[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in pieces)
