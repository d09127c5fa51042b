"""Early-modern English sentences and their present-day wording, made without end from a small grammar and a seed.

A pair is (old, new); a production draws its choices from r and returns a pair. What an old word means hangs on what is
around it: the kind of noun beside an adjective, the complement of a verb, the order of the words. To tune the
difficulty: the range of words and the weights in SENTENCES and PREDICATES here, the tables in `lexicon.py`.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from src.data.corpora.demo.lexicon import (
    ABOUT_PEOPLE,
    ABOUT_THINGS,
    ACTING,
    ADDRESS,
    ALLOW,
    ANYTHING,
    ASIDES,
    BE_VERB,
    BELIEVING,
    CALLED,
    CITIES,
    COMPARED,
    CONDITIONS,
    DEGREES,
    DISCOVER,
    DWELLING,
    EMPTY,
    ENCLOSED,
    ENDURE,
    FAMILY,
    FOLLY,
    FUTURE_TIMES,
    GIVING,
    GOING,
    HARDSHIPS,
    HAVE_VERB,
    HEADED,
    HINDRANCES,
    HUMANS,
    INSIDE,
    INTENDING,
    IT_IS,
    JOINTS,
    LACK,
    LEADING,
    MANNER,
    MOODS,
    NATURE,
    NEGATED,
    NOBODY,
    OATHS,
    OCCASIONS,
    OFTEN,
    OPEN,
    OUTSIDERS,
    OWE,
    OWN,
    OWNABLE,
    PAST_TIMES,
    PERHAPS,
    PLEASE,
    PRESENT_TIMES,
    PROPERTY,
    PURPOSES,
    QUALITIES,
    REASONS,
    REVEAL,
    SAVE,
    SCORES,
    SECRETS,
    SEE,
    SPEECH,
    SUMS,
    TELLING,
    TENS,
    THINGS,
    TO,
    UNDERGONE,
    UNITS,
    UPON,
    WISHES,
    WONDERING,
    Choice,
    Draw,
    Kind,
    Pair,
    Verb,
    begins_with_vowel,
    pairs,
    plural,
)

MIN_WORDS, MAX_WORDS = 4, 12  # of a text, divided at blanks


# --- Persons, pronouns and auxiliaries

I, THOU, HE, THEY = range(4)  # noqa: E741  what a verb agrees with; "we", "ye", "you" and plurals are THEY
PRESENT, SUBJUNCTIVE, PAST, PERFECT, PLUPERFECT, SHALL, MUST, WISH = range(8)

BE, BE_NOW = ("am", "art", "is", "are"), ("am", "are", "is", "are")
WAS, WAS_NOW = ("was", "wast", "was", "were"), ("was", "were", "was", "were")
WERE = ("were", "wert", "were", "were")
HAVE, HAVE_NOW = ("have", "hast", "hath", "have"), ("have", "have", "has", "have")
HAD, WOULD = ("had", "hadst", "had", "had"), ("would", "wouldst", "would", "would")
DO, DO_NOW, DID = ("do", "dost", "doth", "do"), ("do", "do", "does", "do"), ("did", "didst", "did", "did")
WILL = Choice([("shall", "shalt", "shall", "shall"), ("will", "wilt", "will", "will")], [3, 2])  # both are "will" now
MODALS = Choice([
    ("must", "must", "must", "must"), ("may", "mayst", "may", "may"), ("can", "canst", "can", "can"),
    ("might", "mightst", "might", "might"), ("should", "shouldst", "should", "should"),
], [3, 2, 2, 1, 1])  # fmt: skip
TIMES = {PRESENT: PRESENT_TIMES, PAST: PAST_TIMES, SHALL: FUTURE_TIMES}

Determiner = tuple[str, str, str, str]  # old before a consonant, old before a vowel, new before each


def determiners(table: str, weights: Sequence[float]) -> Choice[Determiner]:
    rows = [(old.split("/"), new.split("/")) for old, new in pairs(table)]
    return Choice([(old[0], old[-1], new[0], new[-1]) for old, new in rows], weights)


OWNED = determiners("my/mine=my, thy/thine=your, his, her, our, their", [5, 5, 4, 2, 2, 1])
DEFINITE = determiners("the, my/mine=my, thy/thine=your, this, his, yon=that, yonder=that, her",
                       [10, 3, 3, 2, 2, 1.5, 1, 1])  # fmt: skip
SINGULAR = Choice([("a", "an", "a", "an"), *DEFINITE.entries], [8, 10, 3, 3, 2, 2, 1.5, 1, 1])
PLURAL = determiners("the, my/mine=my, thy/thine=your, these, his, our, yon=those, divers=several, sundry=various",
                     [8, 2, 2, 2, 2, 1, 1, 1, 1])  # fmt: skip
PLACED = determiners("the, this, yonder=that, thy/thine=your, my/mine=my, a/an", [12, 2, 2, 1, 1, 2])
INDEFINITE = determiners("a/an", [1])


class Person(NamedTuple):
    name: Pair
    key: int  # I, THOU, HE or THEY
    object: Pair
    possessive: Determiner = ("the", "the", "the", "the")  # pronouns have their own


def pronouns(table: str) -> list[Person]:
    rows = (row.split() for row in table.split(","))
    return [Person((old, new), int(key), (him, now), determiners(his, [1]).entries[0])
            for old, new, key, him, now, his in rows]  # fmt: skip


PRONOUNS = Choice(
    pronouns("""thou you 1 thee you thy/thine=your, I I 0 me me my/mine=my, he he 2 him him his, she she 2 her her her,
    they they 3 them them their, we we 3 us us our, ye you 3 you you your, you you 3 you you your"""),
    [9, 8, 6, 4, 3, 2.5, 1.5, 2],
)
NOMINATIVES = Choice(PRONOUNS.entries[:-1], [9, 8, 6, 4, 3, 2, 1])  # all but "you", which may be an object too
OTHERS = {"you": Choice([PRONOUNS.entries[k] for k in (1, 2, 3, 4, 5)], [6, 4, 3, 2, 1]),
          "I": Choice([PRONOUNS.entries[k] for k in (0, 2, 3, 4, 7)], [5, 4, 3, 2, 1])}  # fmt: skip
OTHERS["we"] = OTHERS["I"]


# --- Putting pairs together


def weave(pattern: str, *parts: Pair) -> Pair:
    """The pattern with the old parts and with the new."""
    old, new = zip(*parts, strict=True)
    return pattern % old, pattern % new


def rest(*parts: Pair) -> Pair:
    """What follows a verb: each part after its blank, so that nothing is ""."""
    return "".join([" " + old for old, _ in parts if old]), "".join([" " + new for _, new in parts if new])


def sometimes(r: Draw, probability: float, production: Callable[[Draw], Pair]) -> Pair:
    return production(r) if r() < probability else EMPTY


# --- Noun phrases


def determined(determiner: Determiner, noun: Pair) -> Pair:
    old, new = noun
    return f"{determiner[begins_with_vowel(old)]} {old}", f"{determiner[2 + begins_with_vowel(new)]} {new}"


def noun_phrase(r: Draw, of: Kind, determiner: Choice[Determiner] = SINGULAR) -> Pair:
    noun = of.nouns(r)
    if r() < 0.45:
        noun = weave("%s %s", of.adjectives(r), noun)
    return determined((OWNED if of is FAMILY else determiner)(r), noun)


def people(r: Draw) -> Pair:
    of = OUTSIDERS(r)
    old, new = of.nouns(r)
    nouns = plural(old), plural(new)
    return determined(PLURAL(r), weave("%s %s", of.adjectives(r), nouns) if r() < 0.4 else nouns)


def number(r: Draw) -> Pair:
    """Counted the old way: "five and thirty", "three score"."""
    if r() < 0.3:
        return SCORES(r)
    unit, ten = UNITS[int(9 * r())], TENS[int(4 * r())]
    return f"{unit} and {ten}", f"{ten}-{unit}"


def named(r: Draw) -> Person:
    """Anyone but a pronoun."""
    x = r()
    if x < 0.2:
        name, key = CALLED(r), HE
    elif x < 0.45:
        name, key = people(r), THEY
    elif x < 0.53:  # "the king his son"
        (old, new), (kin, kin_now) = noun_phrase(r, OUTSIDERS(r), DEFINITE), FAMILY.nouns(r)
        name, key = (f"{old} his {kin}", f"{new}'s {kin_now}"), HE
    else:
        name, key = noun_phrase(r, HUMANS(r)), HE
    return Person(name, key, name)


def anyone(r: Draw) -> Person:
    return PRONOUNS(r) if r() < 0.62 else named(r)


def objective(r: Draw, s: Person) -> Pair:
    """A pronoun object of another person than the subject, with its blank."""
    old, new = (OTHERS.get(s.name[1]) or PRONOUNS)(r).object
    return " " + old, " " + new


def place(r: Draw) -> Pair:
    if r() < 0.6:
        return weave("%s %s", INSIDE(r), noun_phrase(r, ENCLOSED, PLACED))
    return weave("%s %s", UPON(r), noun_phrase(r, OPEN, PLACED))


def destination(r: Draw) -> Pair:
    x = r()
    if x < 0.3:
        return HEADED(r)
    return weave("%s %s", TO(r), CITIES(r) if x < 0.6 else noun_phrase(r, ENCLOSED, PLACED))


# --- Predicates: a verb and what follows it


class Predicate(NamedTuple):
    verb: Verb
    rest: Pair
    clitic: Pair = EMPTY  # a pronoun object: the old one comes before "not"


def minding(r: Draw, s: Person) -> Predicate:
    if r() < 0.5:
        return Predicate(ABOUT_PEOPLE(r), rest(sometimes(r, 0.3, place)), objective(r, s))
    return Predicate(ABOUT_PEOPLE(r), rest(named(r).name))


def handling(r: Draw, s: Person) -> Predicate:
    return Predicate(ABOUT_THINGS(r), rest(noun_phrase(r, THINGS), sometimes(r, 0.4, place)))


def giving(r: Draw, s: Person) -> Predicate:
    if r() < 0.6:
        return Predicate(GIVING(r), rest(noun_phrase(r, THINGS)), objective(r, s))
    return Predicate(GIVING(r), rest(named(r).name, noun_phrase(r, THINGS)))


def telling(r: Draw, s: Person) -> Predicate:
    return Predicate(TELLING(r), rest(noun_phrase(r, SPEECH)))


def acting(r: Draw, s: Person) -> Predicate:
    return Predicate(ACTING(r), rest(sometimes(r, 0.5, MANNER), sometimes(r, 0.6, place)))


def dwelling(r: Draw, s: Person) -> Predicate:
    return Predicate(DWELLING(r), rest(place(r)))


def going(r: Draw, s: Person) -> Predicate:
    return Predicate(GOING(r), rest(destination(r), sometimes(r, 0.3, MANNER)))


def intending(r: Draw, s: Person) -> Predicate:
    return Predicate(INTENDING(r), rest(infinitive(r, s)))


def lacking(r: Draw, s: Person) -> Predicate:
    """ "want" is "lack"."""
    return Predicate(LACK, rest(QUALITIES(r), sometimes(r, 0.4, place)))


def having(r: Draw, s: Person) -> Predicate:
    return Predicate(HAVE_VERB, rest(noun_phrase(r, OWNABLE(r), INDEFINITE)))


def owing(r: Draw, s: Person) -> Predicate:
    """ "owe" is "own", but "owe" if it is to someone."""
    if r() < 0.5:
        return Predicate(OWN, rest(determined(DEFINITE(r), PROPERTY(r)), sometimes(r, 0.6, place)))
    if r() < 0.5:
        return Predicate(OWE, rest(SUMS(r)), objective(r, s))
    return Predicate(OWE, rest(named(r).name, SUMS(r)))


def suffering(r: Draw, s: Person) -> Predicate:
    """ "suffer" is "endure", but "allow" if it is someone to do something."""
    if r() < 0.4:
        return Predicate(ENDURE, rest(HARDSHIPS(r), sometimes(r, 0.6, place)))
    other = named(r)
    return Predicate(ALLOW, rest(other.name, infinitive(r, other)))


def discovering(r: Draw, s: Person) -> Predicate:
    """ "discover" is "reveal" if it is to someone."""
    found = noun_phrase(r, SECRETS, DEFINITE)
    if r() < 0.5:
        return Predicate(REVEAL, rest(found, weave("to %s", named(r).name)))
    return Predicate(DISCOVER, rest(found, place(r)))


SIMPLE: Choice[Callable[[Draw, Person], Predicate]] = Choice(
    [minding, handling, giving, going, acting, telling, dwelling], [7, 4, 3, 4, 3, 2, 2]
)
PREDICATES: Choice[Callable[[Draw, Person], Predicate]] = Choice(
    [*SIMPLE.entries, intending, lacking, having, owing, suffering, discovering],
    [7, 4, 3, 4, 3, 2, 2, 2, 1.5, 1, 1.5, 1.5, 1],
)


def infinitive(r: Draw, s: Person) -> Pair:
    p = SIMPLE(r)(r, s)
    return weave("to %s", bare(p))


def bare(p: Predicate) -> Pair:
    return f"{p.verb.base}{p.clitic[0]}{p.rest[0]}", f"{p.verb.new[0]}{p.clitic[1]}{p.rest[1]}"


# --- Clauses, in the pieces that the word orders need


class Clause(NamedTuple):
    name: Pair  # the subject
    key: int
    old: str  # finite verb
    clitic: str
    old_rest: str
    new: str  # finite verb of a statement, and all that belongs to it
    helper: str  # finite verb of a question or of a negation, and
    bare: str  # what then follows the subject or "not"
    new_rest: str


def simple(r: Draw, s: Person, p: Predicate, tense: int) -> Clause:
    """Present, subjunctive and past: the old verb asks and denies without "do", and has one at times for no reason."""
    verb, key, new_rest = p.verb, s.key, p.clitic[1] + p.rest[1]
    if tense == PAST:
        old, new, helper, do = verb.past[key], verb.new[2], "did", DID[key]
    else:
        new, helper, do = verb.new[key == HE], DO_NOW[key], DO[key]
        old = verb.base if tense == SUBJUNCTIVE else verb.present[key](r)
    if tense != SUBJUNCTIVE and r() < 0.1:
        return Clause(s.name, key, do, "", " " + bare(p)[0], new, helper, " " + verb.new[0], new_rest)
    return Clause(s.name, key, old, p.clitic[0], p.rest[0], new, helper, " " + verb.new[0], new_rest)


def compound(r: Draw, s: Person, p: Predicate, tense: int) -> Clause:
    """Perfects, which verbs of motion make with "be", and modals."""
    verb, key, form = p.verb, s.key, p.verb.base
    if tense == PERFECT:
        old, form, helper, after = (BE if verb.moves else HAVE)[key], verb.participle, HAVE_NOW[key], verb.new[3]
    elif tense == PLUPERFECT:
        old, form, helper, after = (WAS if verb.moves else HAD)[key], verb.participle, "had", verb.new[3]
    elif tense == WISH:  # "I would speak" is "I want to speak"
        old, helper, after = WOULD[key], DO_NOW[key], "want to " + verb.new[0]
    else:
        modal = (WILL if tense == SHALL else MODALS)(r)
        old, helper, after = modal[key], "will" if tense == SHALL else modal[I], verb.new[0]
    new = f"{'wants' if key == HE else 'want'} to {verb.new[0]}" if tense == WISH else f"{helper} {after}"
    old_rest, new_rest = f" {form}{p.clitic[0]}{p.rest[0]}", p.clitic[1] + p.rest[1]
    return Clause(s.name, key, old, "", old_rest, new, helper, " " + after, new_rest)


def conjugated(r: Draw, s: Person, p: Predicate, tense: int) -> Clause:
    return simple(r, s, p, tense) if tense <= PAST else compound(r, s, p, tense)


def being(r: Draw, s: Person, tense: int) -> Clause:
    """ "be" with an adjective, a noun or a place."""
    x = r()
    if x < 0.4:
        state = weave("%s %s", DEGREES(r), MOODS(r)) if r() < 0.4 else MOODS(r)
    elif x < 0.5:
        old, new = MOODS(r)
        state = f"{old} still", f"still {new}"
    elif x < 0.7 and s.key in (I, HE):
        state = noun_phrase(r, OUTSIDERS(r), INDEFINITE)
    else:
        state = place(r)
    old, new = rest(state)
    if tense > PAST:
        return compound(r, s, Predicate(BE_VERB, (old, new)), tense)
    was, now = (WAS, WAS_NOW[s.key]) if tense == PAST else (BE, BE_NOW[s.key])
    return Clause(s.name, s.key, "be" if tense == SUBJUNCTIVE else was[s.key], "", old, now, now, "", new)


def clause(r: Draw, tense: int, s: Person | None = None) -> Clause:
    """Any clause; of any subject if none is given."""
    s = s or anyone(r)
    if r() < 0.17:
        return being(r, s, tense)
    p = (SIMPLE if tense == WISH else PREDICATES)(r)(r, s)
    if tense in TIMES and r() < 0.3:
        old, new = TIMES[tense](r)
        p = p._replace(rest=(f"{p.rest[0]} {old}", f"{p.rest[1]} {new}"))
    return conjugated(r, s, p, tense)


# --- Word orders


def statement(c: Clause) -> Pair:
    return f"{c.name[0]} {c.old}{c.clitic}{c.old_rest}", f"{c.name[1]} {c.new}{c.new_rest}"


def negation(c: Clause) -> Pair:
    """ "I know him not", "I know not the man"."""
    denied = "cannot" if c.helper == "can" else c.helper + " not"
    return f"{c.name[0]} {c.old}{c.clitic} not{c.old_rest}", f"{c.name[1]} {denied}{c.bare}{c.new_rest}"


def question(c: Clause) -> Pair:
    return f"{c.old} {c.name[0]}{c.clitic}{c.old_rest}", f"{c.helper} {c.name[1]}{c.bare}{c.new_rest}"


def negative_question(c: Clause) -> Pair:
    return f"{c.old} {c.name[0]}{c.clitic} not{c.old_rest}", f"{c.helper} {c.name[1]} not{c.bare}{c.new_rest}"


def either(r: Draw, c: Clause, probability: float = 0.7) -> Pair:
    """A statement with this probability, or else a negation."""
    return statement(c) if r() < probability else negation(c)


def asked(r: Draw, s: Person, p: Predicate) -> Clause:
    """A clause for a question: "Weepest thou?" is "Are you weeping?"; no "shall I", which asks something else."""
    tense = ASKED(r)
    if tense == SHALL and s.name[0] in ("I", "we"):
        tense = PAST
    c = conjugated(r, s, p, tense)
    if tense == PRESENT and p.verb.lasts:
        c = c._replace(helper=BE_NOW[s.key], bare=f" {p.verb.new[4]}")
    return c


ASKED = Choice([PRESENT, PAST, PERFECT, SHALL], [4, 2, 2, 1])
TOLD = Choice([PRESENT, PAST, PERFECT, SHALL, MUST, WISH], [4, 4, 3, 3, 1.5, 1])
REPORTED = {PRESENT: TOLD, PAST: Choice([PAST, PLUPERFECT], [2, 1])}


# --- Sentences


def told(r: Draw) -> Pair:
    return either(r, clause(r, TOLD(r)), 0.6)


def told_perhaps(r: Draw) -> Pair:
    return weave("%s %s", PERHAPS(r), told(r))


def told_only(r: Draw) -> Pair:
    """ "but" is "only" before a noun."""
    s, tense, only = anyone(r), PRESENT if r() < 0.6 else PAST, ("but", "only")
    if s.key != HE or r() < 0.5:
        owned = noun_phrase(r, OWNABLE(r), INDEFINITE)
        return statement(simple(r, s, Predicate(HAVE_VERB, rest(only, owned, sometimes(r, 0.5, place))), tense))
    is_but = ("is but", "is only") if tense == PRESENT else ("was but", "was only")
    return weave("%s %s %s %s", s.name, is_but, noun_phrase(r, OUTSIDERS(r), INDEFINITE), place(r))


def told_often(r: Draw) -> Pair:
    """ "He still praiseth her", "Never saw I the man": the new adverb goes before its verb; "still" is "always"."""
    s, (adverb, now) = anyone(r), OFTEN(r)
    p, x = PREDICATES(r)(r, s), r()
    if x < 0.4:
        c = compound(r, s, p, PERFECT)
        return f"{s.name[0]} {c.old} {adverb}{c.old_rest}", f"{s.name[1]} {c.helper} {now}{c.bare}{c.new_rest}"
    c = simple(r, s, p, PRESENT if r() < 0.6 else PAST)
    new = f"{s.name[1]} {now} {c.new}{c.new_rest}"
    if x > 0.7 and adverb in LEADING:
        return f"{adverb} {question(c)[0]}", new
    return f"{s.name[0]} {adverb} {c.old}{c.clitic}{c.old_rest}", new


def told_twice(r: Draw) -> Pair:
    if r() < 0.2:  # "nor know I the man"
        return weave("%s, nor %s", negation(clause(r, TOLD(r))), question(clause(r, TOLD(r))))
    return weave("%s, %s %s", told(r), JOINTS(r), either(r, clause(r, TOLD(r))))


def if_ever(r: Draw) -> Pair:
    """ "if he come": the subjunctive becomes an indicative."""
    word, c, main = CONDITIONS(r), clause(r, SUBJUNCTIVE), either(r, clause(r, SHALL if r() < 0.7 else MUST), 0.6)
    condition = either(r, c) if word[0] in NEGATED else statement(c)
    return weave("%s %s, %s", word, condition, main) if r() < 0.6 else weave("%s %s %s", main, word, condition)


def when_it_was(r: Draw) -> Pair:
    word, occasion = OCCASIONS(r), statement(clause(r, PAST))
    main = either(r, clause(r, PLUPERFECT if word[0] in ("when", "ere") and r() < 0.6 else PAST))
    return weave("%s %s, %s", word, occasion, main) if r() < 0.6 else weave("%s %s %s", main, word, occasion)


def for_fear(r: Draw) -> Pair:
    """ "lest he come" is "so that he does not come"."""
    main, c = statement(clause(r, SHALL if r() < 0.6 else MUST)), clause(r, SUBJUNCTIVE)
    return weave("%s %s", main, (f"lest {statement(c)[0]}", f"so that {negation(c)[1]}"))


def had_it_been(r: Draw) -> Pair:
    """Unreal conditions: "Had he come, I had gone" is "If he had come, I would have gone"."""
    s, t = anyone(r), anyone(r)
    p = SIMPLE(r)(r, t)
    if r() < 0.5:
        c = being(r, s, PAST)._replace(old=WERE[s.key], new="were")
        old, new = f"{WOULD[t.key]} {p.verb.base}", f"would {p.verb.new[0]}"
    else:
        c = clause(r, PLUPERFECT, s)._replace(old=HAD[s.key])
        old, new = f"{HAD[t.key]} {p.verb.participle}", f"would have {p.verb.new[3]}"
    main = f"{t.name[0]} {old}{p.clitic[0]}{p.rest[0]}", f"{t.name[1]} {new}{p.clitic[1]}{p.rest[1]}"
    if r() < 0.3:
        return weave("%s if %s", main, statement(c))
    return weave("%s, %s", (question(c)[0], f"if {statement(c)[1]}"), main)


def wishing(r: Draw) -> Pair:
    s = anyone(r)
    if r() < 0.5:
        c = being(r, s, PAST)._replace(old=WERE[s.key], new="were")
    else:
        c = clause(r, PLUPERFECT, s)._replace(old=HAD[s.key])
    return weave("%s %s", WISHES(r), statement(c))


def asking(r: Draw) -> Pair:
    s = anyone(r)
    c = being(r, s, PRESENT if r() < 0.7 else PAST) if r() < 0.17 else asked(r, s, PREDICATES(r)(r, s))
    return question(c) if r() < 0.75 else negative_question(c)


def asking_why(r: Draw) -> Pair:
    return weave("%s %s", REASONS(r), asking(r))


def asking_where(r: Draw) -> Pair:
    s, x = anyone(r), r()
    if x < 0.3:
        return weave("where %s", question(asked(r, s, Predicate(DWELLING(r), rest(sometimes(r, 0.5, MANNER))))))
    went = question(asked(r, s, Predicate(GOING(r), rest(sometimes(r, 0.6, MANNER)))))
    return weave("%s %s", ("whither", "where") if x < 0.75 else ("whence", "from where"), went)


def asking_whom(r: Draw) -> Pair:
    return weave("%s %s", ("whom", "who"), question(asked(r, anyone(r), Predicate(ABOUT_PEOPLE(r), rest(place(r))))))


def asking_who(r: Draw) -> Pair:
    return statement(clause(r, ASKED(r), Person(("who", "who"), HE, EMPTY)))


def object_first(r: Draw) -> Pair:
    """ "This ring gave he me"."""
    s = NOMINATIVES(r)
    if r() < 0.5:
        (old, new), p = noun_phrase(r, THINGS), Predicate(GIVING(r), EMPTY, objective(r, s))
        p = p._replace(rest=("", f" {new}"))
    else:
        (old, new), (where, where_now) = named(r).name, rest(sometimes(r, 0.6, place))
        p = Predicate(ABOUT_PEOPLE(r), (where, f" {new}{where_now}"))
    c = conjugated(r, s, p, TOLD(r))
    if r() < 0.6:
        return f"{old} {question(c)[0]}", statement(c)[1]
    return f"{old} {negative_question(c)[0]}", negation(c)[1]


def state_first(r: Draw) -> Pair:
    """ "Gone is the king", "Weary art thou", each with a reason."""
    (old, new), key, _, _ = anyone(r)
    if r() < 0.5:
        verb, (where, where_now) = GOING(r), destination(r)
        state = f"{verb.participle} {BE[key]} {old} {where}", f"{new} {HAVE_NOW[key]} {verb.new[3]} {where_now}"
    else:
        mood, now = MOODS(r)
        state = f"{mood} {BE[key]} {old}", f"{new} {BE_NOW[key]} {now}"
    return weave("%s, %s %s", state, JOINTS(r), statement(clause(r, TOLD(r))))


def sense_first(r: Draw) -> Pair:
    """ "fair" is clear, just, polite, handsome or fine, by what is fair."""
    of, was, x = ANYTHING[int(6 * r())], r() < 0.4, r()
    (old, new), (quality, sense) = determined(DEFINITE(r), of.nouns(r)), of.adjectives(r)
    finite, now = ("was", "was") if was else ("is", "is")
    if x < 0.5:
        (degree, degree_now) = DEGREES(r)
        quality, sense = f"{degree} {quality}", f"{degree_now} {sense}"
    state = f"{old} {finite} {quality}" if r() < 0.5 else f"{quality} {finite} {old}", f"{new} {now} {sense}"
    return weave("%s, %s %s", state, JOINTS(r), told(r))


def undergoing(r: Draw) -> Pair:
    """ "is slain of him" has happened: "has been killed by him"."""
    s, verb, x = anyone(r), UNDERGONE(r), r()
    old, new = ((BE[s.key], f"{HAVE_NOW[s.key]} been") if x < 0.5 else
                (WAS[s.key], WAS_NOW[s.key]) if x < 0.8 else (f"{WILL(r)[s.key]} be", "will be"))  # fmt: skip
    did = f"{old} {verb.participle} {'of' if r() < 0.4 else 'by'}", f"{new} {verb.new[3]} by"
    return weave("%s %s %s %s", s.name, did, named(r).name, place(r))


def who_did(r: Draw) -> Pair:
    """A relative clause between a subject and its verb, which agree over the distance."""
    x, which, key = r(), ("which" if r() < 0.4 else "that", "who"), HE
    if x < 0.2:
        name = "he", "anyone"
    elif x < 0.3:
        name, key = ("thou", "you"), THOU
    elif x < 0.6:
        name, key = people(r), THEY
    else:
        name = noun_phrase(r, OUTSIDERS(r), DEFINITE)
    did = statement(clause(r, (PRESENT, PAST, PERFECT)[int(3 * r())], Person(which, key, EMPTY)))
    return either(r, clause(r, PRESENT if r() < 0.5 else SHALL, Person(weave("%s %s", name, did), key, EMPTY)))


def which_was_given(r: Draw) -> Pair:
    s, x = PRONOUNS(r), r()
    given = statement(conjugated(r, s, Predicate(GIVING(r), EMPTY, objective(r, s)), PAST))
    verb = ABOUT_THINGS(r)
    fate = ((f"is {verb.participle}", f"has been {verb.new[3]}") if x < 0.5 else ("lies", "lies") if x < 0.8 else
            ("shall be", "will be"))  # fmt: skip
    which = "which" if r() < 0.7 else "that", "that"
    return weave("%s %s %s %s %s", noun_phrase(r, THINGS, DEFINITE), which, given, fate, place(r))


def knowing(r: Draw) -> Pair:
    """A clause in a clause: "I know not whither he is gone"."""
    s, tense, x = anyone(r), PRESENT if r() < 0.6 else PAST, r()
    said = clause(r, REPORTED[tense](r))
    if x < 0.5:
        return statement(conjugated(r, s, Predicate(BELIEVING(r), rest(("that", "that"), either(r, said))), tense))
    if x < 0.7:
        gone = conjugated(r, anyone(r), Predicate(GOING(r), EMPTY), PERFECT if tense == PRESENT else PLUPERFECT)
        aside = rest(("whither", "where"), statement(gone))
    else:
        aside = rest(ASIDES(r), statement(said))
    return either(r, conjugated(r, s, Predicate(WONDERING(r), aside), tense), 0.3)


def bidding(r: Draw) -> Pair:
    p, thou = SIMPLE(r)(r, PRONOUNS.entries[0]), " thou" if r() < 0.25 else ""
    if r() < 0.35:
        order = f"{p.verb.base}{thou}{p.clitic[0]} not{p.rest[0]}", f"do not {bare(p)[1]}"
    else:
        order = f"{p.verb.base}{thou}{p.clitic[0]}{p.rest[0]}", bare(p)[1]
    return weave("%s, %s", PLEASE(r), order) if r() < 0.5 else weave("%s, and %s", order, statement(clause(r, SHALL)))


def pleasing(r: Draw) -> Pair:
    """Impersonal verbs: who is pleased was the object. "This ring likes me well" is "I like this ring very much"."""
    (s, key, (it, _), _), x = (person := PRONOUNS(r)), r()
    like, dislike = f"{s[1]} {'likes' if key == HE else 'like'}", f"{s[1]} {DO_NOW[key]} not like"
    if x < 0.5:
        (old, new), (where, where_now) = noun_phrase(r, OWNABLE(r), DEFINITE), rest(sometimes(r, 0.6, place))
        likes = f"{old} {'liketh' if r() < 0.6 else 'likes'} {it}"
        if r() < 0.5:
            return f"{likes} well{where}", f"{like} {new} very much{where_now}"
        return f"{likes} not{where}", f"{dislike} {new}{where_now}"
    if x < 0.75:
        to_do = infinitive(r, person)
        return weave("%s %s", (f"it liketh {it} not", dislike) if r() < 0.5 else (f"it liketh {it} well", like), to_do)
    regret = f"it repenteth {it} that", f"{s[1]} {'regrets' if key == HE else 'regret'} that"
    return weave("%s %s", regret, statement(clause(r, PERFECT if r() < 0.5 else PAST, person)))


def such_it_is(r: Draw) -> Pair:
    x, to_do = r(), infinitive(r, PRONOUNS(r))
    if x < 0.3:
        return weave("%s %s %s", IT_IS(r), FOLLY(r), to_do)
    if x < 0.55:
        return weave("%s %s %s", ("'tis", "it is"), determined(OWNED(r), NATURE(r)), to_do)
    it_is = ("'twas", "it was") if x < 0.75 else ("'tis", "it is")
    of = ANYTHING[int(3 * r())]
    it = determined(INDEFINITE(r), weave("%s %s", of.adjectives(r), of.nouns(r)))
    return weave("%s %s, %s %s", it_is, it, JOINTS(r), told(r))


def comparing(r: Draw) -> Pair:
    s, t, more = anyone(r), PRONOUNS(r), COMPARED(r)
    if r() < 0.5:
        than = f"{BE[s.key]} {more[0]} than {t.name[0]}", f"{BE_NOW[s.key]} {more[1]} than {t.name[1]} {BE_NOW[t.key]}"
        return weave("%s %s in the eyes of %s", s.name, than, named(r).name)
    seen = determined(INDEFINITE(r), weave("%s %s", more, OUTSIDERS(r).nouns(r)))
    c = compound(r, s, Predicate(SEE, rest(seen, place(r))), PERFECT)
    return f"never {question(c)[0]}", f"{s.name[1]} {c.helper} never{c.bare}{c.new_rest}"


def neither_nor(r: Draw) -> Pair:
    words = [("nor", "neither"), ("nor", "nor")] if r() < 0.6 else [("or", "either"), ("or", "or")]
    both = [noun_phrase(r, HUMANS(r), DEFINITE) for _ in words]
    name = weave("%s %s %s %s", words[0], both[0], words[1], both[1])
    return statement(clause(r, TOLD(r), Person(name, HE, name)))


def none_but(r: Draw) -> Pair:
    name = weave("%s %s %s", NOBODY(r), SAVE(r), named(r).name)
    return statement(clause(r, TOLD(r), Person(name, HE, name)))


def hindering(r: Draw) -> Pair:
    """ "let" is hinder before "from", and "let" elsewhere."""
    if r() < 0.5:
        s, (purpose, aim) = PRONOUNS(r), PURPOSES(r)
        (old, new), (yours, now) = s.object, determined(s.possessive, (purpose, aim))
        let = f"shall let {old} from {yours}", f"will keep {new} from {now}"
        return weave("%s %s %s", HINDRANCES(r), let, place(r))
    other = named(r)
    return weave("let %s %s, and %s", other.name, bare(SIMPLE(r)(r, other)), statement(clause(r, SHALL)))


def must_away(r: Draw) -> Pair:
    """ "I must to London": no verb of motion is needed."""
    s, going_to, must = anyone(r), destination(r), r() < 0.5
    modal = (MODALS.entries[0] if must else WILL(r))[s.key], "must go" if must else "will go"
    return weave("%s %s %s %s %s", s.name, modal, going_to, CONDITIONS(r), statement(clause(r, SUBJUNCTIVE)))


def counting(r: Draw) -> Pair:
    (many, count), (noun, now) = number(r), OUTSIDERS(r).nouns(r)
    name = f"{many} {plural(noun)}", f"{count} {plural(now)}"
    return either(r, clause(r, TOLD(r), Person(name, THEY, name)), 0.8)


# --- The corpus

SENTENCES: list[tuple[Callable[[Draw], Pair], float, str]] = [  # production, weight, end
    (told, 8, "."), (told_perhaps, 3, "."), (told_only, 2, "."), (told_often, 7, "."), (told_twice, 9, "."),
    (if_ever, 8, "."), (when_it_was, 6, "."), (for_fear, 3, "."), (had_it_been, 7, "."), (wishing, 4, "!"),
    (asking, 9, "?"), (asking_why, 6, "?"), (asking_where, 4, "?"), (asking_whom, 3, "?"), (asking_who, 2, "?"),
    (object_first, 6, "."), (state_first, 5, "."), (sense_first, 5, "."), (undergoing, 4, "."), (who_did, 5, "."),
    (which_was_given, 3, "."), (knowing, 7, "."), (bidding, 6, "."), (pleasing, 4, "."), (such_it_is, 5, "."),
    (comparing, 3, "."), (neither_nor, 2, "."), (none_but, 2, "."), (hindering, 2, "."), (must_away, 2, "."),
    (counting, 3, "."),
]  # fmt: skip
PRODUCTIONS = Choice([(production, end) for production, _, end in SENTENCES], [weight for _, weight, _ in SENTENCES])


def capitalised(text: str) -> str:
    letter = text[0] == "'"  # "'Tis"
    return text[: letter + 1].upper() + text[letter + 1 :]


def sentence(r: Draw) -> Pair:
    """One sentence of any length, at times with an oath or an address."""
    production, end = PRODUCTIONS(r)
    pair, x = production(r), r()
    if x < 0.14:
        pair = weave("%s, %s", OATHS(r), pair)
    elif x < 0.26:
        pair = weave("%s, %s", pair, ADDRESS(r))
    return capitalised(pair[0]) + end, capitalised(pair[1]) + end


def sentences(seed: int) -> Iterator[Pair]:
    """Pairs without end, no text twice."""
    r, seen = random.Random(seed).random, set[str]()
    while True:
        old, new = sentence(r)
        if MIN_WORDS <= old.count(" ") + 1 <= MAX_WORDS and old != new and old not in seen:
            seen.add(old)
            yield old, new


def demo_rows(n: int, *, seed: int) -> tuple[list[str], list[str]]:
    """The first n texts of a seed and their targets: a larger n begins with the rows of a smaller one."""
    rows = list(islice(sentences(seed), n))
    return [old for old, _ in rows], [new for _, new in rows]
