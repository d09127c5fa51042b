"""The words of the demo corpus: tables of early-modern words beside their present-day ones, commoner entries first.

To tune the difficulty: TAIL_EXPONENT and the number of words here; the range of words and the weights in `grammar.py`.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

TAIL_EXPONENT, TAIL_SHIFT = 1.1, 3.0  # a table's entry of rank k = 0, 1, ... weighs (k + shift) ** -exponent

Draw = Callable[[], float]  # uniform in [0, 1); the only source of chance
Pair = tuple[str, str]  # (old, new)
T = TypeVar("T")
EMPTY: Pair = ("", "")

# fmt: off


class Choice(Generic[T]):
    """A table that is called with a `Draw` for one entry, by the weights given or else by rank, with a long tail."""

    def __init__(self, entries: Iterable[T], weights: Sequence[float] = ()) -> None:
        self.entries = list(entries)
        if not weights:
            weights = [(rank + TAIL_SHIFT) ** -TAIL_EXPONENT for rank in range(len(self.entries))]
        sums = list(accumulate(weights))
        self.bounds = [bound / sums[-1] for bound in sums]  # ends in 1.0, which no draw reaches

    def __call__(self, r: Draw) -> T:
        return self.entries[bisect(self.bounds, r())]


# --- How tables are written: "old=new, same, ..."; verbs "base past participle=new/particle, regular, ..."


def pairs(table: str) -> list[Pair]:
    sides = (" ".join(entry.split()).partition("=") for entry in table.split(","))
    return [(old, new or old) for old, _, new in sides]


def choice(table: str) -> Choice[Pair]:
    return Choice(pairs(table))


def begins_with_vowel(word: str) -> bool:
    """As it sounds: "an honest", "a usurer"."""
    if word[0] == "h":
        return word.startswith(("honest", "honour", "heir", "hour"))
    return word[0] in "aeiou" and not word.startswith(("usur", "one", "ewe", "uni", "use"))


DOUBLED = ("beg", "shun", "forget", "begin", "wed", "mar", "sup", "con", "abhor", "aver", "extol", "plan", "travel",
           "revel", "set", "hid", "forgot")  # before an ending: "begging"
IRREGULAR_PLURALS = dict(pairs("child=children, thief=thieves, wolf=wolves, calf=calves"))


def with_s(word: str) -> str:
    """The -s of the plural and of the third person."""
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        return word + "es"
    return word[:-1] + "ies" if word[-1] == "y" and word[-2] not in "aeou" else word + "s"


def plural(noun: str) -> str:
    before, blank, last = noun.rpartition(" ")
    return before + blank + (last[:-2] + "en" if last.endswith("man") else IRREGULAR_PLURALS.get(last) or with_s(last))


def inflected(base: str, ending: str) -> str:
    """Base and ending (-ed, -eth, -est, -ing), spelled."""
    if ending == "ing" and base.endswith("ie"):
        return base[:-2] + "ying"
    if base[-1] == "e" and not (ending == "ing" and base.endswith("ee")):
        return base[:-1] + ending
    if base[-1] == "y" and base[-2] not in "aeou" and ending != "ing":
        return base[:-1] + "i" + ending
    return base + (base[-1] if base in DOUBLED else "") + ending


class Verb(NamedTuple):
    base: str
    present: Sequence[Choice[str]]  # by person: I, THOU, HE, THEY
    past: Sequence[str]  # by person
    participle: str
    new: Sequence[str]  # base, third person, past, participle, -ing
    moves: bool  # its perfect is made with "be"
    lasts: bool  # in a present question it is going on: "are you weeping"


LASTING = ("seek", "follow", "bear", "wear", "burn", "hide", "mock", "chide", "curse", "serve", "rehearse", "write")


def make_verb(old_side: str, new_side: str, moves: bool, lasts: bool) -> Verb:
    def parts(side: str) -> list[str]:
        return side.split() if " " in side else [side] + 2 * [inflected(side, "ed")]

    base, past, participle = parts(old_side)
    new_side, slash, particle = new_side.partition("/")
    new_base, new_past, new_participle = parts(new_side)
    forms = (new_base, with_s(new_base), new_past, new_participle, inflected(new_base, "ing"))
    seconds = [inflected(base, "est")]
    if base[-1] in "klmnprvw" or base.endswith(("ve", "ke", "re")):
        seconds.append(base.removesuffix("e") + "'st")
    second_past = past + "st" if past.endswith("ed") else inflected(past, "est")
    same, third = Choice([base], [1]), Choice([inflected(base, "eth"), with_s(base)], [2, 1])
    new = [form + slash.replace("/", " ") + particle for form in forms]
    return Verb(base, (same, Choice(seconds, [2, 1][: len(seconds)]), third, same), (past, second_past, past, past),
                participle, new, moves, lasts or base in LASTING)  # fmt: skip


def verbs(table: str, *, moves: bool = False, lasts: bool = False) -> Choice[Verb]:
    return Choice([make_verb(old, new, moves, lasts) for old, new in pairs(table)])


class Kind(NamedTuple):
    """Nouns of one kind, and adjectives in the sense that they have beside these."""

    nouns: Choice[Pair]
    adjectives: Choice[Pair]


def kind(nouns: str, adjectives: str) -> Kind:
    return Kind(choice(nouns), choice(adjectives))


# --- Lexicon, commoner entries first. A noun is of one kind only.

PEOPLE = kind(
    """king, man, queen, lady, soldier, lord, friend, maid=girl, master, servant, knight, page, priest, shepherd,
    merchant, sailor, captain, prince, princess, duke, stranger, woman, child, neighbour, widow, gentleman""",
    """good, old, young, fair=beautiful, poor, noble, true=faithful, gentle, brave, honest, proud, wise,
    rude=uneducated, weary=tired, cunning=skilful""",
)
GRAVE = kind(
    "judge, bishop, counsellor=adviser, scholar, lawyer, alderman=councillor, magistrate, abbot, chancellor, cardinal",
    """wise, sad=serious, fond=foolish, learned, just, old, nice=fussy, reverend=respected, quick=sharp-witted,
    fair=impartial""",
)
FAMILY = kind(
    "brother, father, mother, sister, wife, daughter, son, cousin, uncle, husband",
    "dear, fond=loving, kind, old, sad=unhappy, poor, sweet, fair=lovely, tender, unkind",
)
ROGUES = kind(
    "knave=rogue, traitor, villain, thief, fool, liar, rascal, caitiff=wretch, coward, tyrant",
    """false, naughty=wicked, fond=foolish, cunning=sly, idle=worthless, bold, rude=violent, arrant=utter, vile,
    lewd=vulgar""",
)
BEASTS = kind(
    "horse, hound, hawk, sheep, wolf, dog, ox, steed=horse, lamb, fox",
    "quick=fast, poor, wild, silly=helpless, brave=fine, lusty=strong, gentle=tame, white, black, foul=filthy",
)
THINGS = kind(
    """ring, sword, letter, book, cup, purse, crown, cloak, key, gold chain, lute, dagger, jewel, bow, shield,
    glove, sack, lamp, picture, basket, coat, bell, looking-glass=mirror""",
    "old, fair=fine, brave=splendid, golden, mean=cheap, silver, rich=costly, broken, quaint=elegant, little",
)
SPEECH = kind(
    "tale=story, song, word, promise, oath, answer, jest=joke, prayer, speech, riddle",
    "sad, fair=polite, fond=foolish, idle=empty, sweet, quick=witty, rude, plain=frank, false=untrue, merry=cheerful",
)
SECRETS = kind(
    """secret, plot, theft, treason, marriage, stratagem=scheme, privity=secret, hiding-place, contrivance=scheme,
    malady=illness""",
    "false=deceitful, dark, foul=wicked, secret=hidden, fond=foolish, cunning=clever, base=shameful, privy=private",
)
SKIES = kind(
    "day, night, morning, evening, sky, wind, season, summer, winter, dawn",
    "fair=clear, cold, dark, foul=stormy, still=quiet, bitter, rude=rough, sweet=pleasant, heavy=gloomy, wild",
)
DEALINGS = kind(
    "bargain, judgment, sentence, cause=case, quarrel, law, trial, suit=request, match, verdict",
    """fair=just, foul=unjust, hard, nice=precise, sad=serious, plain=clear, idle=pointless, mean=shabby,
    naughty=corrupt, weighty=important""",
)
ENCLOSED = kind(
    "church, castle, garden, house, tavern, tower, abbey, chamber=bedroom, hall, mill, inn",
    "old, great=large, dark, new, fair=handsome, mean=humble, foul=filthy, royal, ancient, ruined",
)
OPEN = kind(
    "bridge, hill, river, heath=moor, road, shore, strand=beach, field, mead=meadow, highway",
    "old, long, green, broad=wide, high, steep, wild, straight, cold, stony",
)
OWNABLE = Choice([THINGS, BEASTS], [3, 2])
ANYTHING = (SKIES, DEALINGS, SPEECH, ENCLOSED, BEASTS, THINGS)
HUMANS = Choice([PEOPLE, FAMILY, ROGUES, GRAVE], [6, 2.5, 2, 1.5])
OUTSIDERS = Choice([PEOPLE, ROGUES, GRAVE], [6, 2, 2])
CALLED = choice("Hugh, Margery, Robert, Agnes, Walter, Joan, Gilbert, Isabel, Piers, Alice, Roger, Beatrice")
CITIES = choice("London, York, Dover, Kent, Oxford, Paris, Bristol, Rome, Lincoln, Venice")
QUALITIES = choice("""courage, wit=intelligence, patience, mercy, gold, faith, money, hope, wisdom, honour,
    counsel=advice, meat=food""")
HARDSHIPS = choice("pain, hunger, wrong=injustice, grief, shame, dole=sorrow, cold, thirst, poverty, torment")
PROPERTY = choice("house, land, mill, castle, farm, ship, orchard, field, vineyard, manor=estate")
SUMS = choice("""ten crowns, a hundred pounds, five shillings, nothing, a great sum, nought=nothing, ten marks,
    twenty ducats, a groat=fourpence, three nobles""")

ABOUT_PEOPLE = verbs("""love, know knew known, fear, praise, see saw seen, trust, serve, follow, hate, slay slew
    slain=kill, save, seek sought sought=look/for, forsake forsook forsaken=abandon, honour, chide=scold, betray,
    mock, greet, help, behold beheld beheld=see saw seen""")
UNDERGONE = verbs("""slay slew slain=kill, forsake forsook forsaken=abandon, betray, smite smote smitten=strike
    struck struck, banish, chide=scold, cozen=cheat, wrong, attach=arrest, pardon""")
ABOUT_THINGS = verbs("""take took taken, find found found, keep kept kept, lose lost lost, bear bore borne=carry,
    steal stole stolen, hide hid hidden, break broke broken, covet=desire, desire, fetch, burn""")
GIVING = verbs("""give gave given, send sent sent, show showed shown, bring brought brought, lend lent lent,
    promise, sell sold sold, tender=offer, proffer=offer, grant""")
TELLING = verbs("""tell told told, sing sang sung, hear heard heard, believe, remember, forget forgot forgotten,
    despise, credit=believe, mark=notice, repeat""")
ACTING = verbs("""weep wept wept, sing sang sung, laugh, tarry=wait, labour=work, sleep slept slept, speak spoke
    spoken, dance, wait, prate=chatter""", lasts=True)
DWELLING = verbs("""dwell dwelt dwelt=live, lodge=stay, lie lay lain, stand stood stood, abide abode abode=live,
    sojourn=stay""")
GOING = verbs("""come came come, go went gone, flee fled fled=escape, return, ride rode ridden, depart=set set
    set/off, journey=travel, hasten=hurry, repair=go went gone, wander""", moves=True, lasts=True)
INTENDING = verbs("""mean meant meant=intend, hope, purpose=plan, long, learn, essay=try, begin began begun,
    disdain=refuse, strive strove striven=try, scorn=refuse""")
BELIEVING = verbs("""know knew known, believe, say said said, think thought thought, hope, swear swore sworn, fear,
    doubt=suspect, deny, trow=believe""")
WONDERING = verbs("""know knew known, hear heard heard, tell told told, perceive=notice, remember,
    discern=see saw seen, conceive=understand understood understood, reck=care""")
LACK, OWN, ENDURE, REVEAL, ALLOW, OWE, DISCOVER, SEE = verbs(
    "want=lack, owe=own, suffer=endure, discover=reveal, suffer=allow, owe, discover, see saw seen").entries
HAVE_VERB = Verb("have", [Choice([form]) for form in ("have", "hast", "hath", "have")], ("had", "hadst", "had", "had"),
                 "had", ("have", "has", "had", "had", "having"), moves=False, lasts=False)  # fmt: skip
BE_VERB = Verb("be", (), (), "been", ("be", "is", "was", "been", "being"), moves=False, lasts=False)

MOODS = choice("""weary=tired, glad, merry=cheerful, sick=ill, wroth=angry, poor, sad, afeard=afraid,
    fair=beautiful, wise, abed=in bed, proud""")
DEGREES = choice("""right=very, full=very, passing=extremely, so, sore=very, exceeding=extremely,
    something=somewhat, wondrous=amazingly, too""")
COMPARED = choice("""fairer=more beautiful, wiser, more braver=braver, prouder, truer=more faithful, more
    richer=richer, gentler, more kinder=kinder, comelier=more handsome, more falser=more deceitful""")
OFTEN = choice("""oft=often, still=always, never, ever=always, seldom=rarely, ne'er=never, oft-times=often,
    scarce=hardly, alway=always, aye=always""")
LEADING = ("oft", "never", "seldom", "ne'er", "scarce")  # of these, those that may begin: "Never saw I the man"
MANNER = choice("""privily=secretly, right gladly=very gladly, apace=quickly, in good earnest=seriously, with all
    speed=as fast as possible, in jest=as a joke, openly=in public, perforce=out of necessity, in secret, amain=with
    full force""")
PRESENT_TIMES = choice("""each day=every day, o' nights=at night, at all hours, in these days=nowadays, every
    Sunday, of a morning=in the morning, in winter, at eventide=in the evening, at noontide=at noon, on holy days=on
    holidays""")
PAST_TIMES = choice("""yesternight=last night, of late=recently, long since=long ago, yesterday, erewhile=a while
    ago, whilom=once, in my youth, a sennight since=a week ago, at cock-crow=at dawn, on Midsummer Eve""")
FUTURE_TIMES = choice("""anon=soon, presently=at once, tomorrow, straight=at once, this night=tonight,
    betimes=early, ere nightfall=before nightfall, forthwith=immediately, by and by=before long, ere long=before
    long""")
OATHS = choice("""alas, marry=indeed, forsooth=truly, nay=no, in faith=truly, by my troth=on my word, yea=yes,
    fie=shame, good sooth=truly, lo=look""")
PERHAPS = choice("""perchance=perhaps, mayhap=maybe, belike=probably, haply=perhaps, peradventure=perhaps,
    happily=perhaps, methinks=I think, methinks that=I think that, sure=surely, no doubt""")
ADDRESS = choice("""my lord, good sir, madam, sirrah=fellow, coz=cousin, good my lord=my good lord, sweet lady, good
    master, gentle friend, masters=gentlemen""")
REASONS = choice("wherefore=why, why, for what cause=why, on what ground=why")
PLEASE = choice("""prithee=please, I pray thee=please, pray you=please, I beseech you=I beg you,
    of your courtesy=kindly, an it please you=if you please, so please you=if you please""")
FOLLY = choice("""folly=foolish, better, meet=fitting, shame=shameful, madness=mad, vain=useless, pity=a pity, kind,
    wisdom=wise, sin=sinful""")
NATURE = choice("""humour=habit, kind=nature, wont=custom, will=wish, use=practice, hap=luck, fashion=way,
    purpose=intention, lot=fate, bounden duty=duty""")
PURPOSES = choice("purpose, journey, revenge, duty, right, vow, prayers, suit=request, quest, throne")
HINDRANCES = choice("""nothing, no man=no one, nought=nothing, none=no one, no power on earth,
    neither fear nor love, naught=nothing""")
NOBODY = choice("none=no one, no man=no one, not a soul, nobody, never a one=not one")
SAVE = choice("save=except, but, saving=except for")
INSIDE = choice("in, within=inside, hard by=close to, without=outside, nigh=near, behind, beyond, fast by=right beside")
UPON = choice("upon=on, by, nigh=near, on, beyond, hard by=close to, o'er=over, athwart=across, anigh=near")
TO = choice("to, unto=to, toward=towards, from")
HEADED = choice("""home, hither=this way, thither=there, hence=away, homeward=home, to bed, to church,
    to the wars=to war, to supper""")
JOINTS = choice("and, but, yet=but, for=because, since, and, for that=because, sith=since, albeit=although")
CONDITIONS = choice("if, an=if, though, till=until, ere=before, unless, albeit=although, so=provided, except=unless")
OCCASIONS = choice("""when, ere=before, what time=when, after that=after, whilst=while, because, sith=since,
    till=until, as soon as, albeit=although""")
NEGATED = ("if", "an", "though", "albeit", "so")  # the conditions that go with a negative
WISHES = choice("would=I wish, I would=I wish, would God=I wish, O that=if only, would that=I wish")
ASIDES = choice("wherefore=why, that, whether, why, in what wise=how, if")
IT_IS = choice("'tis=it is, 'twere=it would be, it were=it would be, 'twas=it was, it is")
SCORES = choice("two score=forty, three score=sixty, a score of=twenty, four score=eighty, three score and ten=seventy")
UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TENS = ("twenty", "thirty", "forty", "fifty")
