"""Find the names of special tokens (`</s>`, `<pad>`, `<unk>`) in texts, and tokenize them as ordinary text."""

import copy
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNREACHABLE = "\ue000"  # a private use character: no text has it before a token's name


class SpecialTokenNames:
    """The names of a tokenizer's special tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._original = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {str(token) for token in added if token.special}.union(map(str, tokenizer.all_special_tokens))
        names = sorted(map(re.escape, special), key=len, reverse=True)
        self._names = re.compile("|".join(names) or r"(?!)")

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

    @cached_property
    def literal_tokenizer(self) -> "PreTrainedTokenizerBase":
        """A copy of the tokenizer that reads names in texts as text; it still adds special tokens around a text."""
        from tokenizers import Tokenizer

        made = copy.deepcopy(self._original)
        if not made.is_fast:
            made.split_special_tokens = True
            return made
        backend = json.loads(made.backend_tokenizer.to_str())
        special = {token["content"] for token in backend["added_tokens"] if token["special"]}
        backend["added_tokens"] = [token for token in backend["added_tokens"] if not token["special"]]
        vocabulary, unknown = backend["model"]["vocab"], backend["model"].get("unk_token")
        hidden = special - {unknown}
        if isinstance(vocabulary, dict):
            backend["model"]["vocab"] = {UNREACHABLE * (name in hidden) + name: i for name, i in vocabulary.items()}
        else:
            backend["model"]["vocab"] = [[UNREACHABLE * (name in special) + name, score] for name, score in vocabulary]
        made._tokenizer = Tokenizer.from_str(json.dumps(backend))
        vars(made).update(convert_tokens_to_ids=self._original.convert_tokens_to_ids)  # for the tokens around a text
        return made
