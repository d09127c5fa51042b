"""Source and target languages of multilingual models (mBART, M2M-100, NLLB, PLBart)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from src.config.console import say
from src.config.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE, TARGET = "src_lang", "tgt_lang"  # as tokenizer_config.json names them


def language_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Language code → token id of a multilingual tokenizer; empty for other tokenizers."""
    if not hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        return {}
    codes = getattr(tokenizer, "lang_code_to_id", None)
    if codes is None:
        codes = {str(token): tokenizer.convert_tokens_to_ids(str(token)) for token in tokenizer.extra_special_tokens}
    return {code: token for code, token in codes.items() if token != tokenizer.unk_token_id}


def saved_languages(tokenizer_config: Mapping[str, Any]) -> tuple[str, str]:
    """Source and target language in a tokenizer_config.json; ("", "") without a target: the source has a default."""
    source, target = tokenizer_config.get(SOURCE), tokenizer_config.get(TARGET)
    return (source, target) if isinstance(source, str) and isinstance(target, str) else ("", "")


def set_languages(tokenizer: "PreTrainedTokenizerBase", name: str, source: str, target: str) -> None:
    """Set the languages of a multilingual tokenizer: those of the flags, or else those that were saved with it.

    Raises UserError if a language is missing or unknown, and if one is given for a tokenizer without languages.
    """
    languages = language_tokens(tokenizer)
    if not languages:
        if source or target:
            raise UserError(
                f"--source_language, --target_language: the tokenizer of {name} has no languages; remove the flags"
            )
        return
    known = saved_languages(tokenizer.init_kwargs)
    chosen = {"source_language": source or known[0], "target_language": target or known[1]}
    for flag, language in chosen.items():
        if not language:
            raise UserError(f"--{flag}: {name} is multilingual; give one of {' '.join(languages)}")
        if _code(language, languages) is None:
            raise UserError(f"--{flag}: {name} does not know {language!r}; possible: {' '.join(languages)}")
    tokenizer.init_kwargs |= {SOURCE: chosen["source_language"], TARGET: chosen["target_language"]}
    tokenizer.src_lang, tokenizer.tgt_lang = chosen["source_language"], chosen["target_language"]
    say(f"languages: {chosen['source_language']} → {chosen['target_language']}")


def target_language_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token id of a multilingual tokenizer's target language; None for other tokenizers."""
    languages = language_tokens(tokenizer)
    code = _code(saved_languages(tokenizer.init_kwargs)[1], languages)
    return None if code is None else languages[code]


def _code(language: str, languages: dict[str, int]) -> str | None:
    """The code of a language in the tokenizer, or None. PLBart writes `python` as `__python__`."""
    return next((code for code in (language, f"__{language}__") if code in languages), None)
