"""Make sure that a tokenizer produces the tokens of its tokenizer.json.

transformers 5 rebuilds many tokenizers by their class, and may replace the normalizer, the pre-tokenizer or the options
of the model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError
from src.config.parsing import shown
from src.models.library_errors import quiet
from src.models.multilingual import language_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PROBE = (
    "The cat's 3 hats cost $12,345.67 in 2023, don't they?",
    "  two spaces,\ttabs\n\nand lines\r\n",
    "ALL CAPS camelCase snake_case x=[1, 2]; {\"key\": 'value'} <b>",
    "naïve Ångström cafe\u0301 ﬁne ２３ ½ Straße",
    "Привет, мир! Γειά σου. مرحبا بالعالم שלום नमस्ते สวัสดี",
    "你好，世界。こんにちは 안녕하세요 🙂👩‍👩‍👧🇩🇪",
)


def match_tokenizer_file(
    tokenizer: "PreTrainedTokenizerBase", name: str, source: str, texts: Sequence[str]
) -> "PreTrainedTokenizerBase":
    """The tokenizer, or one rebuilt from its tokenizer.json if their tokens of PROBE or `texts` differ.

    Raises UserError if the rebuilt one differs too.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import cached_file

    file = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if file is None or not tokenizer.is_fast:
        return tokenizer
    own = Tokenizer.from_file(file)
    text = _read_differently(tokenizer, own, texts)
    if text is None:
        return tokenizer
    if language_tokens(tokenizer):  # only their class can set languages
        tokenizer._tokenizer = own
    else:
        named: dict[str, Any] = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
        named = {role: token for role, token in named.items() if own.token_to_id(token) is not None}
        with quiet():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **named, trust_remote_code=False)
    if _read_differently(tokenizer, own, texts) is not None:
        raise UserError(f"{name}: transformers and its tokenizer.json make different tokens of {shown(text)}")
    return tokenizer


def _read_differently(tokenizer: "PreTrainedTokenizerBase", own: "Tokenizer", texts: Sequence[str]) -> str | None:
    """The first text that the two tokenize differently, or None."""
    probe = [*PROBE, *texts]
    ours = tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"]
    own.no_truncation()
    own.no_padding()
    theirs = (encoding.ids for encoding in own.encode_batch(probe, add_special_tokens=False))
    return next((text for text, a, b in zip(probe, ours, theirs, strict=True) if a != b), None)
