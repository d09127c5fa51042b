"""Find the names of special tokens (`</s>`, `<pad>`, `<unk>`) in texts, and tokenize them as ordinary text."""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNREACHABLE = "\ue000"  # private use characters: no text has the first before a token's name, or the other inside
BREAK = "\ue001"


def added_names(tokenizer: "PreTrainedTokenizerBase", *, special_only: bool) -> set[str]:
    """The names of the tokens that a tokenizer finds in a text before it splits it: its special and added ones."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {str(token) for token in added if token.special or not special_only}
    return names.union(map(str, tokenizer.all_special_tokens))


def pattern_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds these names, the longest first."""
    return re.compile("|".join(sorted(map(re.escape, names), key=len, reverse=True)) or r"(?!)")


class SpecialTokenNames:
    """The names of a tokenizer's special tokens, and of `others` that are to be treated like them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", others: Iterable[str] = ()) -> None:
        self._original = tokenizer
        self._all = added_names(tokenizer, special_only=True).union(others)
        self._names = pattern_of(self._all)

    def first_in(self, texts: Sequence[str]) -> str | None:
        """The first name in the texts, or None."""
        found = self._names.search("\n".join(texts))
        return None if found is None else found.group()

    def at_start(self, text: str) -> bool:
        """Whether a text begins with a name."""
        return self._names.match(text) is not None

    def at_end(self, text: str) -> bool:
        """Whether a text ends with a name."""
        return any(found.end() == len(text) for found in self._names.finditer(text))

    def broken(self, text: str) -> str:
        """A text whose names `guarded` does not find."""
        return self._names.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)

    def guarded(self, text: str) -> str:
        """A text for `literal_tokenizer` in which its names mean tokens; those of its `broken` parts are text."""
        return self._names.sub(lambda found: UNREACHABLE + found[0], text).replace(BREAK, "")

    @cached_property
    def literal_tokenizer(self) -> "PreTrainedTokenizerBase":
        """A copy of the tokenizer that reads names in texts as text; it still adds special tokens around a text.

        A name after UNREACHABLE is that token.
        """
        from tokenizers import Tokenizer

        made = copy.deepcopy(self._original)
        if not made.is_fast:
            made.split_special_tokens = True
            return made
        backend = json.loads(made.backend_tokenizer.to_str())
        vocabulary, unknown = backend["model"]["vocab"], backend["model"].get("unk_token")
        hidden = self._all - {unknown} if isinstance(vocabulary, dict) else self._all
        added = [token for token in backend["added_tokens"] if token["content"] in hidden or not token["special"]]
        for token in added:
            token["content"] = UNREACHABLE * (token["content"] in hidden) + token["content"]
        backend["added_tokens"] = added
        if isinstance(vocabulary, dict):
            backend["model"]["vocab"] = {UNREACHABLE * (name in hidden) + name: i for name, i in vocabulary.items()}
        else:
            backend["model"]["vocab"] = [[UNREACHABLE * (name in hidden) + name, score] for name, score in vocabulary]
        made._tokenizer = Tokenizer.from_str(json.dumps(backend))
        vars(made).update(convert_tokens_to_ids=self._original.convert_tokens_to_ids)  # for the tokens around a text
        return made
