"""Tiny tokenizers with chat templates like those of three families of instruct models."""

from tiny_students import byte_level, unigram
from transformers import PreTrainedTokenizerFast

CHATML = (  # as Qwen's: a system message of its own, and a switch for thinking
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (  # as Llama 3's: BOS, trimmed texts, an end of turn that is not EOS
    "{{ bos_token }}{% for message in messages %}<|header|>{{ message.role }}<|/header|>\n\n"
    "{{ message.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
TURNS = (  # as Gemma's: the assistant is the model, there is no system message, roles alternate
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<turn>{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
BRACKETS = (  # as Mistral's: no special tokens around a turn, EOS behind an answer
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content | trim }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
)
PIECES = ["Ġmodern", "Ġcat", "cat", "assistant", "Ġthe", "user", "Ġthee", "model"]


def chatml() -> PreTrainedTokenizerFast:
    return with_chat(byte_level(PIECES), CHATML, ["<|im_start|>", "<|im_end|>"], ("<think>", "</think>"))


def headers() -> PreTrainedTokenizerFast:
    return with_chat(byte_level(PIECES), HEADERS, ["<s>", "<|header|>", "<|/header|>", "<|eot|>"], bos_token="<s>")


def turns() -> PreTrainedTokenizerFast:
    """Its turn's tokens are not special ones, and its vocabulary is SentencePiece's."""
    return with_chat(
        unigram(["▁cat", "▁the"], byte_fallback=True), TURNS, ["<s>"], ("<turn>", "<end>"), bos_token="<s>"
    )


def brackets() -> PreTrainedTokenizerFast:
    return with_chat(byte_level(PIECES), BRACKETS, ["<s>"], bos_token="<s>")


CHATS = {"chatml": chatml, "headers": headers, "turns": turns, "brackets": brackets}


def with_chat(
    tokenizer: PreTrainedTokenizerFast, template: str, special: list[str], others: tuple[str, ...] = (), **named: str
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens({"extra_special_tokens": special, **named})
    tokenizer.add_tokens(list(others))
    tokenizer.chat_template = template
    return tokenizer
