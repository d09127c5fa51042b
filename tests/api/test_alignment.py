"""Align teacher tokens with student tokens: worked examples, every kind of student tokenizer, and properties."""

import random
import time
from math import exp, log

import pytest
from conftest import WORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_students import byte_level, preprocessor, unigram, wordpiece

from src.api.alignment import RULES, UNALIGNED, Aligner, canonical_tokens
from src.api.responses import Completion
from src.api.spelling import encode_with_leading_space, locate_pieces
from src.api.student_vocabulary import StudentTokens
from src.config.errors import UserError
from src.tokens.continuation import LocatedTokens

PIECES = [f"▁{word}" for word in WORDS] + ["ing", "▁walk", "▁The", "▁don", "..."]
STUDENTS = {
    "unigram": unigram(PIECES),
    "fallback": unigram(PIECES, byte_fallback=True),
    "bytes": byte_level([piece.replace("▁", "Ġ") for piece in PIECES] + ["The"]),
}
IS_ENCODER_DECODER = {"unigram": True, "fallback": True, "bytes": False}


def spans_of(tokens: list[str], text: str) -> list[tuple[int, int]]:
    spans = locate_pieces([token.encode() for token in tokens], text.encode())
    assert spans is not None
    return spans


def aligned(rule: str, text: str, teacher: list[str], student: list[str]) -> list[int]:
    return RULES[rule](text.encode(), spans_of(teacher, text), spans_of(student, text))


def stored(
    kind: str, completion: Completion, rule: str = "edit", new_word_char: str = " "
) -> tuple[list, list, Aligner]:
    """Label tokens by name, what is stored at each as {name: log-probability}, and the aligner."""
    tokenizer = STUDENTS[kind]
    made = preprocessor(tokenizer, is_encoder_decoder=IS_ENCODER_DECODER[kind])
    ((labels, characters),) = made.locate_labels([completion.prediction])
    assert labels == made.encode_labels([completion.prediction]).tokens[0].tolist()
    aligner = Aligner(StudentTokens(tokenizer), rule, new_word_char)
    tokens, logs = aligner.align(completion, labels, characters)
    assert [len(entry) for entry in tokens] == [len(entry) for entry in logs]
    named = [
        dict(zip(tokenizer.convert_ids_to_tokens(entry), values, strict=True))
        for entry, values in zip(tokens, logs, strict=True)
    ]
    return tokenizer.convert_ids_to_tokens(labels), named, aligner


def published(text: str, *positions: dict) -> Completion:
    """A completion whose tokens are the first of each position."""
    return Completion("row 0", text, False, [next(iter(top)) for top in positions], list(positions))


# ------------------------------------------------------------------------------------------------------------ the rules


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("text", "teacher", "student"),
    [
        ("", [], []),
        ("cat", ["cat"], ["cat"]),
        ("the cat", ["the", " cat"], ["the", " cat"]),
        ("the cat", [" the", " cat"], ["the", " cat"]),
    ],
)
def test_equal_tokens_align_one_to_one(rule, text, teacher, student):
    assert aligned(rule, text, teacher, student) == list(range(len(student)))


@pytest.mark.parametrize(
    ("text", "teacher", "student", "edit", "exact"),
    [
        ("he walking on", ["he", " walking", " on"], ["he", " walk", "ing", " on"], [0, 1, -1, 2], [0, -1, -1, 2]),
        ("he walking on", ["he", " walk", "ing", " on"], ["he", " walking", " on"], [0, 1, 3], [0, -1, 3]),
        ("walking", ["wal", "king"], ["walk", "ing"], [0, -1], [-1, -1]),
        ("a b a b", ["a", " b", " a", " b"], ["a b", " a", " b"], [0, 2, 3], [-1, 2, 3]),
        # edit distance sees strings, not places: it may take one `the` for another
        ("the then", ["the", " then"], ["th", "e", " the", "n"], [-1, -1, 0, -1], [-1] * 4),
        ("aé", ["a", "é"], ["aé"], [0], [-1]),
        ("x\ny", ["x", "\n", "y"], ["x", "\n", "y"], [0, 1, 2], [0, 1, 2]),
        ("x y", ["x", " ", "y"], ["x", " y"], [0, 2], [0, 2]),
    ],
)  # fmt: skip
def test_prefixes_align_by_edits_and_equal_places_exactly(text, teacher, student, edit, exact):
    assert aligned("edit", text, teacher, student) == edit
    assert aligned("exact", text, teacher, student) == exact


def test_tokens_that_spell_nothing_align_with_nothing():
    text = b"ab"
    for rule in RULES.values():
        assert rule(text, [(0, 2), (2, 2)], [(0, 0), (0, 2), (0, 0)]) == [UNALIGNED, 0, UNALIGNED]


def test_parts_of_a_character_whose_bytes_are_unknown_do_not_align_exactly():
    text = "é".encode()
    assert RULES["exact"](text, [(0, 2)], [(0, 2), (0, 2)]) == [UNALIGNED, UNALIGNED]


def test_a_word_begins_with_a_space_wherever_it_is():
    text = "The cat\nsat"
    assert canonical_tokens(text.encode(), spans_of(["The", " ca", "t", "\n", "sat"], text)) == [
        b" The", b" ca", b"t", b"\n", b" sat"
    ]  # fmt: skip


def splits(text: str, seed: int, longest: int) -> list[str]:
    rng = random.Random(seed)
    tokens, start = [], 0
    while start < len(text):
        end = start + rng.randint(1, longest)
        tokens.append(text[start:end])
        start = end
    return tokens


@pytest.mark.parametrize("rule", RULES)
@given(text=st.text(alphabet="ab é\n🙂.", max_size=40), seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_an_alignment_never_crosses(rule, text, seeds):
    teacher, student = splits(text, seeds[0], 4), splits(text, seeds[1], 3)
    pairs = [i for i in aligned(rule, text, teacher, student) if i != UNALIGNED]
    assert pairs == sorted(set(pairs))
    assert set(pairs) <= set(range(len(teacher)))


@pytest.mark.parametrize("rule", RULES)
@given(text=st.text(alphabet="ab é\n🙂.", max_size=40), seed=st.integers(0, 99))
def test_equal_tokenizations_align_one_to_one(rule, text, seed):
    tokens = splits(text, seed, 4)
    joined = text.encode()
    spans = spans_of(tokens, text)
    assert b"".join(joined[start:end] for start, end in spans) == joined
    assert RULES[rule](joined, spans, spans) == list(range(len(tokens)))


@pytest.mark.parametrize("rule", RULES)
def test_two_thousand_tokens_take_well_under_a_second(rule):
    """The worst there is: no token of one side is one of the other's, and nothing can be skipped."""
    text = "".join(random.Random(0).choices("abcdefgh ", k=10_000))
    teacher, student = splits(text, 1, 9), splits(text, 2, 9)
    assert min(len(teacher), len(student)) > 1_900
    started = time.process_time()
    aligned(rule, text, teacher, student)
    assert time.process_time() - started < 0.5


# ---------------------------------------------------------------------------------------------- the student's tokenizer


@pytest.mark.parametrize("kind", STUDENTS)
def test_strings_that_are_one_token(kind):
    student, tokenizer = StudentTokens(STUDENTS[kind]), STUDENTS[kind]

    def name(spelled: bytes) -> str | None:
        token = student.id_of(spelled)
        return None if token is None else tokenizer.convert_ids_to_tokens(token)

    space = "Ġ" if kind == "bytes" else "▁"
    assert name(b" cat") == f"{space}cat"
    assert name(b"ing") == "ing"
    assert name(b"x") == "x"
    assert name(b"cat") is None
    assert name(b" catx") is None
    assert name(b"") is None
    assert name(b".") == "."
    assert name(b" ") == space
    assert name(tokenizer.eos_token.encode()) == tokenizer.eos_token
    assert name(b"<pad>") is None
    assert name(tokenizer.pad_token.encode()) in (None, tokenizer.eos_token)
    assert name(b"<unk>") is None


def test_strings_are_normalized_as_the_student_does():
    ellipsis = StudentTokens(STUDENTS["unigram"]).id_of("…".encode())
    assert ellipsis == STUDENTS["unigram"].convert_tokens_to_ids("...")  # NFKC
    assert StudentTokens(STUDENTS["bytes"]).id_of(b" CAT") is None


def test_bytes_are_found_where_the_vocabulary_has_them():
    part = "é".encode()[:1]
    assert StudentTokens(STUDENTS["bytes"]).id_of(part) == STUDENTS["bytes"].convert_tokens_to_ids("Ã")
    assert StudentTokens(STUDENTS["fallback"]).id_of(part) == STUDENTS["fallback"].convert_tokens_to_ids("<0xC3>")
    assert StudentTokens(STUDENTS["unigram"]).id_of(part) is None
    letter = StudentTokens(STUDENTS["fallback"]).id_of(b"a")  # not the byte's token
    assert letter == STUDENTS["fallback"].convert_tokens_to_ids("a")


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
@given(text=st.text(alphabet="The cat é🙂.\n", max_size=30).map(str.strip).filter(bool))
def test_spans_reproduce_the_text(kind, text):
    made = preprocessor(STUDENTS[kind], is_encoder_decoder=IS_ENCODER_DECODER[kind])
    ((labels, characters),) = made.locate_labels([text])
    spans = StudentTokens(STUDENTS[kind]).locate(labels, characters, text)
    assert len(spans) == len(labels)
    placed = encode_with_leading_space(text)
    assert b"".join(placed[start:end] for start, end in spans) == placed == b" " + text.encode()


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("text", ["The cat walking.", "the CAT — 🙂 sees", " a  cat\n", "", "  "])
def test_labels_are_those_that_are_trained_on_and_spans_lie_in_the_text(kind, text):
    made = preprocessor(STUDENTS[kind], is_encoder_decoder=IS_ENCODER_DECODER[kind])
    ((labels, characters),) = made.locate_labels([text])
    assert labels == made.encode_labels([text]).tokens[0].tolist()
    spans = StudentTokens(STUDENTS[kind]).locate(labels, characters, text)
    assert spans[-1][0] == spans[-1][1]  # EOS
    assert all(0 <= start <= end <= len(encode_with_leading_space(text)) for start, end in spans)
    assert spans[:-1] == sorted(spans[:-1])


def test_a_slow_tokenizer_is_refused():
    class Slow:
        eos_token = "</s>"

    with pytest.raises(UserError, match="--student_name: its tokenizer is a slow one"):
        StudentTokens(Slow())


def test_a_tokenizer_without_spaces_in_its_tokens_is_refused():
    with pytest.raises(
        UserError, match="--student_name: the tokens of a WordPiece tokenizer do not include the spaces"
    ):
        StudentTokens(wordpiece([]))


# --------------------------------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_teachers_strings_that_the_student_has_are_kept(kind):
    completion = published(
        "the cat.", {"the": -0.1, "a": -2.5, "zebra": -4.0}, {" cat": -0.2, " dog": -1.8, " zebra": -5.0, "ing": -6.0},
        {".": -0.3, ",": -1.5}
    )  # fmt: skip
    labels, found, aligner = stored(kind, completion)
    the, cat, dog, a = (f"{'Ġ' if kind == 'bytes' else '▁'}{word}" for word in ("the", "cat", "dog", "a"))
    assert labels == [the, cat, ".", STUDENTS[kind].eos_token]
    assert found == [
        {the: -0.1, a: -2.5},  # a first word has no space, and is a word all the same
        {cat: -0.2, dog: -1.8, "ing": -6.0},
        {".": -0.3, ",": -1.5},
        {STUDENTS[kind].eos_token: 0.0},
    ]
    assert (aligner.counted.positions, aligner.counted.aligned, aligner.counted.hard) == (3, 3, 0)
    first = (exp(-0.1) + exp(-2.5)) / (exp(-0.1) + exp(-2.5) + exp(-4))
    second = 1 - exp(-5) / (exp(-0.2) + exp(-1.8) + exp(-5) + exp(-6))
    assert aligner.counted.mass == pytest.approx(first + second + 1)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_prefix_learns_from_the_longer_token(kind):
    completion = published(
        "the walking", {"the": -0.1}, {" walking": -0.5, " cat": -1.5, " walk": -2.0, " running": -3}
    )
    labels, found, aligner = stored(kind, completion)
    assert found[1] == {labels[1]: pytest.approx(log(exp(-0.5) + exp(-2.0))), labels[1].replace("walk", "cat"): -1.5}
    assert found[2] == {labels[2]: 0.0}
    assert (aligner.counted.aligned, aligner.counted.hard) == (2, 1)
    assert stored(kind, completion, rule="exact")[1][1] == {labels[1]: 0.0}


def test_tokens_of_one_id_are_added():
    """The student's normalization (NFKC) turns `…` and `‥.` into `...`."""
    completion = published("the...", {"the": -0.1}, {"...": -0.5, "…": -1.5, "‥.": -2.5})
    labels, found, _ = stored("unigram", completion)
    assert labels[1] == "..."
    assert found[1] == {"...": pytest.approx(log(exp(-0.5) + exp(-1.5) + exp(-2.5)))}


def test_a_word_begun_by_a_token_of_its_own_keeps_the_others_without_their_space():
    labels, found, _ = stored("unigram", published("the x", {"the": -0.1}, {" x": -0.5, " y": -1.0, "z": -2.0}))
    assert labels == ["▁the", "▁", "x", "</s>"]
    assert found[1:] == [{"▁": 0.0}, {"x": -0.5, "y": -1.0}, {"</s>": 0.0}]


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("rule", RULES)
def test_an_unknown_character_hurts_no_other_token(kind, rule):
    """Its token may be unknown, or bytes; those around it learn from the teacher."""
    completion = published("the é cat", {"the": -0.1}, {" é": -0.2}, {" cat": -0.3, " dog": -2.0})
    labels, found, _ = stored(kind, completion, rule)
    assert list(found[0].values()) == [-0.1]
    assert list(found[-2].values()) == [-0.3, -2.0]
    assert len(found) == len(labels)


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_parts_of_a_character_align_where_their_bytes_do(kind):
    name = {"bytes": lambda byte: {0xC3: "Ã", 0xA9: "©", 0xA8: "¨"}[byte], "fallback": "<0x{:02X}>".format}[kind]
    completion = published(
        "the é", {"the": -0.1}, {" ": -0.2}, {"bytes:\\xc3": -0.3}, {"bytes:\\xa9": -0.4, "bytes:\\xa8": -2}
    )
    for rule in RULES:
        labels, found, _ = stored(kind, completion, rule)
        assert labels[2:4] == [name(0xC3), name(0xA9)]
        assert found[2:4] == [{name(0xC3): -0.3}, {name(0xA9): -0.4, name(0xA8): -2.0}]


def test_a_teacher_that_says_the_end_of_text_by_its_name():
    _, found, _ = stored("unigram", published("the cat", {"the": -0.1, "</s>": -3.0, "<pad>": -4.0}, {" cat": -0.1}))
    assert found[0] == {"▁the": -0.1, "</s>": -3.0}


@pytest.mark.parametrize(
    ("char", "tokens"), [("▁", ["▁the", "▁cat", "▁", "<0xC3>", "<0xA9>"]), ("Ġ", ["the", "Ġcat", "Ġ", "Ã", "©"])]
)
def test_teachers_tokens_as_their_vocabulary_has_them(char, tokens):
    completion = published("the cat é", *({token: -0.5} for token in tokens))
    labels, found, _ = stored("fallback", completion, "exact", char)
    assert labels == ["▁the", "▁cat", "▁", "<0xC3>", "<0xA9>", "</s>"]
    assert [list(entry.values()) for entry in found] == [[-0.5]] * 5 + [[0.0]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["unigram", "fallback", "bytes"])
@given(words=st.lists(st.sampled_from([*WORDS, "The", "walking", "é🙂", "x,y", "don't."]), min_size=1, max_size=8))
@settings(max_examples=30)
def test_the_students_own_tokens_align_one_to_one_and_keep_all_mass(kind, rule, words):
    """A teacher with the student's tokenizer and top strings of its vocabulary."""
    tokenizer, text = STUDENTS[kind], " ".join(words)
    if kind == "unigram":
        text = text.replace("é🙂", "e")
    made = preprocessor(tokenizer, is_encoder_decoder=IS_ENCODER_DECODER[kind])
    ids = made.encode_labels([text]).tokens[0].tolist()[:-1]
    char = "Ġ" if kind == "bytes" else "▁"
    others = [char + "cat", char + "dog", "ing"]
    tops = [
        {name: -1.0} | {other: -2.0 for other in others if other != name}
        for name in tokenizer.convert_ids_to_tokens(ids)
    ]
    _, found, aligner = stored(kind, published(text, *tops), rule, char)
    assert found[:-1] == tops
    counted = aligner.counted
    assert counted.aligned == counted.positions
    assert counted.hard == 0
    assert counted.mass == pytest.approx(counted.positions)


def test_what_is_counted():
    _, _, aligner = stored("unigram", Completion("row", "", is_cut_off=False))
    assert (aligner.counted.completions, aligner.counted.empty, aligner.counted.positions) == (1, 1, 0)
    labels, found, aligner = stored("unigram", Completion("row", "the", True, ["the"], [{"the": None}]))
    assert labels == ["▁the", "</s>"]
    assert found == [{"▁the": 0.0}, {}]  # nothing known: a hard label; nothing after a cut: nothing
    assert (aligner.counted.cut_off, aligner.counted.aligned, aligner.counted.hard) == (1, 1, 1)


def test_tokens_of_a_slow_tokenizer_are_not_located():
    with pytest.raises(UserError, match="slow one"):
        LocatedTokens([1, 2]).spans()
