"""The task prompt: before the inputs of encoder-decoder models, behind those of decoder-only models."""

from src.tokens.special_token_names import SpecialTokenNames

NO_PROMPT = "bart"  # the --task_prompt that means none, as in the published suite


def unescape_prompt(task_prompt: str) -> str:
    r"""A --task_prompt with `\n` and `\t`, two characters each, replaced by a newline and a tab; "" for `bart`."""
    return "" if task_prompt == NO_PROMPT else task_prompt.replace(r"\n", "\n").replace(r"\t", "\t")


def prompt_prefix(task_prompt: str) -> str:
    """The prompt of an encoder-decoder model: without white space around it, and a space."""
    words = "" if task_prompt == NO_PROMPT else task_prompt.strip()
    return f"{words} " if words else ""


def prompt_suffix(task_prompt: str, special: SpecialTokenNames) -> str:
    """The prompt of a decoder-only model: a space before it, unless it begins with white space or a special token."""
    prompt = unescape_prompt(task_prompt)
    if not prompt.strip(" "):
        return ""
    return prompt if prompt[0].isspace() or special.at_start(prompt) else f" {prompt}"


def target_separator(suffix: str, special: SpecialTokenNames) -> str:
    """The text between a decoder-only model's prompt and the target.

    The white space at the end of the prompt, nothing after a special token, otherwise a space.
    """
    space = suffix[len(suffix.rstrip()) :]
    if space:
        return " " if space.endswith(" ") else space
    return "" if special.at_end(suffix) else " "
