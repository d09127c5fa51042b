"""Demo corpus: determinism, one target per text, the language on both sides, rare words, and speed."""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from src.data.corpora.demo import lexicon
from src.data.corpora.demo.grammar import demo_rows, sentence
from src.data.corpora.demo.lexicon import Choice, Kind, Verb, inflected, plural, with_s

ARCHAIC = {
    old
    for old, _ in lexicon.pairs("""thou, thee, thy, thine, ye, hath, doth, hast, dost, art, wert, wast,
    shalt, wilt, canst, didst, hadst, wouldst, unto, 'tis, 'twas, 'twere, whither, whence, wherefore, ere, anon,
    mayhap, perchance, methinks, betimes, nigh, hither, thither, yon, yonder, prithee, forsooth, sith, albeit,
    whilst, lest, o'er, ne'er, oft, alway, divers, sundry, saith, liketh, repenteth, knave, swain, chide, slay,
    slain, smite, cozen, bodkin, kirtle, naught, nought, betwixt, hark, certes, presently""")
}
WORD = re.compile(r"[\w'-]+")


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def is_lexical(entry: object) -> bool:
    return isinstance(entry, Verb) or (type(entry) is tuple and len(entry) == 2 and isinstance(entry[0], str))


def lexical_tables() -> list[Choice]:
    """Every table of words and of verbs in the module, those of kinds included."""
    found: dict[int, Choice] = {}
    for value in vars(lexicon).values():
        for table in (value.nouns, value.adjectives) if isinstance(value, Kind) else (value,):
            if isinstance(table, Choice) and is_lexical(table.entries[0]):
                found[id(table)] = table
    assert len(found) > 60
    return list(found.values())


@pytest.fixture(scope="module")
def rows() -> tuple[list[str], list[str]]:
    return demo_rows(50_000, seed=7)


@pytest.fixture
def lent_tables() -> Iterator[list[Choice]]:
    """The lexical tables, to change: they are put back when the test is done."""
    tables = lexical_tables()
    kept = [(table.entries, table.bounds) for table in tables]
    yield tables
    for table, (entries, bounds) in zip(tables, kept, strict=True):
        table.entries, table.bounds = entries, bounds


def test_no_rows() -> None:
    assert demo_rows(0, seed=1) == ([], [])


def test_one_seed_gives_the_same_rows_and_another_gives_others() -> None:
    texts, targets = demo_rows(300, seed=3)
    assert (texts, targets) == demo_rows(300, seed=3)
    assert len(texts) == len(targets) == 300
    assert not set(texts) & set(demo_rows(300, seed=4)[0])


def test_more_rows_begin_with_fewer() -> None:
    texts, targets = demo_rows(700, seed=11)
    few_texts, few_targets = demo_rows(40, seed=11)
    assert few_texts == texts[:40]
    assert few_targets == targets[:40]


def test_rows_do_not_depend_on_the_hash_seed() -> None:
    program = "import hashlib; from src.data.corpora.demo.grammar import demo_rows as d; " \
              "print(hashlib.sha256(repr(d(2000, seed=5)).encode()).hexdigest())"  # fmt: skip
    prints = {
        subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": value, "PYTHONPATH": "."},
                       check=True, capture_output=True, text=True).stdout
        for value in ("0", "1")
    }  # fmt: skip
    assert len(prints) == 1


def test_texts_are_distinct_sentences_of_4_to_12_words(rows: tuple[list[str], list[str]]) -> None:
    texts, targets = rows
    assert len(set(texts)) == len(texts)
    for side in rows:
        for text in side:
            assert text.isascii()
            assert re.fullmatch(r"'?[A-Z][a-zA-Z',-]*( [a-zA-Z',-]+)+[.!?]", text), text
    assert {len(text.split()) for text in texts} == set(range(4, 13))
    assert all(text[-1] == target[-1] for text, target in zip(texts, targets, strict=True))


def test_the_target_is_in_present_day_words_and_never_the_text(rows: tuple[list[str], list[str]]) -> None:
    texts, targets = rows
    assert all(text != target for text, target in zip(texts, targets, strict=True))
    assert not ARCHAIC & {word for target in targets for word in words(target)}
    assert len(ARCHAIC & {word for text in texts for word in words(text)}) > 0.8 * len(ARCHAIC)


def test_a_text_has_one_target_over_seeds(rows: tuple[list[str], list[str]]) -> None:
    target_of = dict(zip(*rows, strict=True))
    repeated = 0
    for seed in (8, 9):
        for text, target in zip(*demo_rows(20_000, seed=seed), strict=True):
            repeated += text in target_of
            assert target_of.setdefault(text, target) == target
    assert repeated


def test_a_text_has_one_target_where_words_are_few(lent_tables: list[Choice]) -> None:
    """With one or two entries a table, texts recur by the thousand, in every part of the grammar."""
    pick, repeated = random.Random(0), 0
    full = [table.entries for table in lent_tables]
    for trial in range(12):
        for table, entries in zip(lent_tables, full, strict=True):
            table.entries = pick.sample(entries, min(1 + trial % 2, len(entries)))
            table.bounds = [(k + 1) / len(table.entries) for k in range(len(table.entries))]
        r, target_of = random.Random(trial).random, dict[str, str]()
        for _ in range(8_000):
            text, target = sentence(r)
            repeated += text in target_of
            assert target_of.setdefault(text, target) == target
    assert repeated > 1000


def test_a_verb_form_tells_its_tense_and_its_wording() -> None:
    """ "thou hidest" and "thou hiddest" differ; where tables may stand in one place, a form has one wording."""
    for table in lexical_tables():
        if isinstance(table.entries[0], Verb):
            for verb in table.entries:
                for key in range(4):
                    assert verb.past[key] not in verb.present[key].entries
    wording = {verb.base: verb.new for verb in lexicon.BELIEVING.entries}
    assert all(wording.get(verb.base, verb.new) == verb.new for verb in lexicon.WONDERING.entries)
    for name in ("ABOUT_PEOPLE", "ABOUT_THINGS", "GIVING", "TELLING", "ACTING", "GOING", "INTENDING", "BELIEVING"):
        bases = [verb.base for verb in getattr(lexicon, name).entries]
        assert len(set(bases)) == len(bases), name


def test_tables_name_an_entry_once_and_a_noun_has_one_kind() -> None:
    for table in lexical_tables():
        assert len(table.entries) == len(table.bounds)
        if table is not lexicon.JOINTS and not isinstance(table.entries[0], Verb):
            assert len({old for old, _ in table.entries}) == len(table.entries), table.entries[:3]
    kinds = [value for value in vars(lexicon).values() if isinstance(value, Kind)]
    nouns = [old for each in kinds for old, _ in each.nouns.entries]
    assert len(set(nouns)) == len(nouns)


@pytest.mark.parametrize(
    ("pattern", "wording"),
    [
        (r"^Know(est|'st) thou ", "Do you know "),
        (r"(?i)\b(weepest|weep'st|goest|comest|laughest) thou\b(?! not).*\?$", "are you "),
        (r" is come ", " has come "),
        (r"^I would (love|know|fear|see|take|find|give|send|come|go)\b(?!.* if )", "I want to "),
        (r"^I would (she|he) were ", "I wish "),
        (r"^Had (I|he|she|we|they) .*, (I|he|she|we|they) had ", "would have "),
        (r"(He|She) wanteth not ", " does not lack "),
        (r"\ba fair (man|lady|king|queen)\b", "a beautiful "),
        (r"\bfair (judgment|bargain)\b", "just "),
        (r"\bfair (day|sky)\b", "clear "),
        (r"\bfond (brother|father|mother)\b", "loving "),
        (r"\bfond (knave|judge|traitor)\b", "foolish "),
        (r"(He|She) still ", " always "),
        (r" weary still\b", "still tired"),
        (r"^An (he|she|I) ", "If "),
        (r"^Nor ", "Neither "),
        (r"^None save ", "except "),
        (r" shall let (me|thee|him|her) from ", "will keep "),
        (r" must to (London|York)", "must go to "),
        (r"^Let .*, and ", "Let "),
    ],
)
def test_a_construction_decides_the_wording(rows: tuple[list[str], list[str]], pattern: str, wording: str) -> None:
    matched = [pair for pair in zip(*rows, strict=True) if re.search(pattern, pair[0])]
    assert matched
    assert all(wording.lower() in target.lower() for _, target in matched), matched[0]


@pytest.mark.parametrize(
    ("base", "ending", "spelled"),
    [("shun", "eth", "shunneth"), ("lie", "ing", "lying"), ("flee", "ing", "fleeing"), ("tarry", "est", "tarriest"),
     ("obey", "ed", "obeyed"), ("love", "est", "lovest"), ("beg", "ing", "begging")],
)  # fmt: skip
def test_endings(base: str, ending: str, spelled: str) -> None:
    assert inflected(base, ending) == spelled


def test_plurals_third_persons_and_articles() -> None:
    nouns = [plural(noun) for noun in ("young man", "old fool", "thief", "lady", "boy", "lass")]
    assert nouns == ["young men", "old fools", "thieves", "ladies", "boys", "lasses"]
    assert [with_s(verb) for verb in ("go", "wish", "cry", "buy")] == ["goes", "wishes", "cries", "buys"]
    assert not re.search(r"\b([Aa] [aeio]|[Aa]n [^aeiouh])", " ".join(demo_rows(3000, seed=2)[1]))


def test_the_lexicon_has_a_long_tail() -> None:
    """2,000 rows leave many words unseen or rare, and more rows bring them."""
    texts, _ = demo_rows(8000, seed=0)
    first = [word for text in texts[:2000] for word in words(text)]
    types, all_types = set(first), {word for text in texts for word in words(text)}
    assert len(all_types) > 1100
    assert len(all_types - types) / len(all_types) > 0.12


def test_copying_the_text_scores_low() -> None:
    from sacrebleu import corpus_bleu

    texts, targets = demo_rows(2000, seed=1)
    assert 15 < corpus_bleu(texts, [targets]).score < 45
    assert 8 < sum(len(text.split()) for text in texts) / len(texts) < 13


def test_twenty_thousand_rows_take_about_a_second() -> None:
    start = time.process_time()
    demo_rows(10_000, seed=0)
    assert time.process_time() - start < 2.0  # half of that on a slow machine
