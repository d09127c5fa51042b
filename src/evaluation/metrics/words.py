"""Words of texts in any script: what the metrics count that compare words."""

import unicodedata
from collections.abc import Callable

# Scripts that are written without spaces between words, by how the Unicode names of their characters begin.
WITHOUT_SPACES = (
    "CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ",
)  # fmt: skip
KEPT_BY_ROUGE = set("abcdefghijklmnopqrstuvwxyz0123456789")
BEFORE_GREEK = "\u036f"  # up to here there are Latin letters, their accents and symbols alone


class Table(dict[int, str]):
    """A `str.translate` table that is filled as characters come up."""

    def __init__(self, replacement: Callable[[str], str]) -> None:
        super().__init__()
        self._replacement = replacement

    def __missing__(self, code: int) -> str:
        self[code] = self._replacement(chr(code))
        return self[code]


def characters_apart(character: str) -> str:
    """A character of a script without spaces gets white space around it."""
    return f" {character} " if _is_word(character) and _has_name(character, WITHOUT_SPACES) else character


def _for_rouge(character: str) -> str:
    if character in KEPT_BY_ROUGE:
        return character
    if character <= BEFORE_GREEK or not _is_word(character) or _has_name(character, ("LATIN",)):
        return " "
    return characters_apart(character)


def _is_word(character: str) -> bool:
    """Whether it is a letter, a mark (a vowel sign, an accent) or a digit."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd"


def _has_name(character: str, beginnings: tuple[str, ...]) -> bool:
    return unicodedata.name(character, "").startswith(beginnings)


_APART, _FOR_ROUGE = Table(characters_apart), Table(_for_rouge)


def words(text: str) -> list[str]:
    """White-space words; each character of a script without spaces is a word of its own."""
    return text.translate(_APART).split()


class RougeTokenizer:
    """Latin script as the ROUGE package has it, runs of a-z and 0-9; words or characters of the scripts it drops."""

    def tokenize(self, text: str) -> list[str]:
        return text.lower().translate(_FOR_ROUGE).split()
