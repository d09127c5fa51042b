"""A tokenizer's chat template: how it opens and ends the assistant's turn, and conversations as it writes them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError, one_line
from src.config.parsing import shown
from src.data.conversations import ASSISTANT, SYSTEM, USER, Message
from src.tokens.special_token_names import added_names, pattern_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FLAG = "--chat_template True"
MARK = "\ue002"  # a private use character, in the place of a message
SPACE = "\n \n"
TRIMS: tuple[dict[str, Callable[[str], str]], ...] = (  # by what a template leaves of SPACE: before and after a message
    {SPACE: str, " \n": lambda text: text.lstrip("\n"), "": str.lstrip},
    {SPACE: str, "\n ": lambda text: text.rstrip("\n"), "": str.rstrip},
)


class ChatTemplate:
    """The chat template of a tokenizer, with thinking off if it has the switch.

    opening: the text before an answer, from the last added token on. gap: the white space between opening and answer,
    which the model writes. closing: the text behind an answer up to `end`, the token that ends the assistant's turn;
    the tokenizer's EOS for a template without one. names: of the added tokens in the template. Raises UserError for a
    template that cannot be used.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", system_prompt: str) -> None:
        self._tokenizer = tokenizer
        self.system = [{"role": SYSTEM, "content": system_prompt}] if system_prompt else []
        user = [*self.system, {"role": USER, "content": MARK}]
        answers = [MARK, SPACE + MARK + SPACE]
        [opened] = self.opened([user])
        whole = self.whole([[*user, {"role": ASSISTANT, "content": answer}] for answer in answers])
        (before, _, ended), (before_spaces, _, ended_spaces) = (text.rpartition(MARK) for text in whole)
        if MARK not in opened or MARK not in before:
            raise UserError(f"{FLAG}: the tokenizer's chat template leaves out a message")
        kept = before_spaces.removeprefix(before), ended_spaces.removesuffix(ended)
        if kept[0] not in TRIMS[0] or kept[1] not in TRIMS[1]:
            raise UserError(f"{FLAG}: the tokenizer's chat template changes an answer")
        self._trims = TRIMS[0][kept[0]], TRIMS[1][kept[1]]
        # If the opened turn is not the beginning of a whole one (an opened thought), an answer follows it directly.
        self.is_regular = before.startswith(opened)
        self.gap = before.removeprefix(opened) if self.is_regular else ""
        if self.gap.strip():
            raise UserError(f"{FLAG}: the tokenizer's chat template does not open a turn: {shown(self.gap)} is missing")
        added = pattern_of(added_names(tokenizer, special_only=False))
        after = opened.rpartition(MARK)[2]
        self.opening = after[max((found.start() for found in added.finditer(after)), default=0) :]
        end = added.search(ended)
        self.end_name = end.group() if end else str(tokenizer.eos_token)
        self.closing = ended[: end.end()] if end else self.end_name
        self.end = int(tokenizer.convert_tokens_to_ids(self.end_name))  # type: ignore[arg-type]
        self.names = set(added.findall(opened + ended))

    def warnings(self) -> list[str]:
        """What a user should know of the template."""
        warnings = []
        if not self.is_regular:
            opening = f"opens the assistant's turn with {shown(self.opening)}, as whole conversations do not"
            warnings.append(f"{FLAG}: the tokenizer's chat template {opening}; answers follow it all the same")
        if "strftime_now" in self._tokenizer.get_chat_template():
            warnings.append(f"{FLAG}: the tokenizer's chat template may write today's date into prompts")
        return warnings

    def trim(self, answer: str) -> str:
        """An answer as the template writes it."""
        left, right = self._trims
        return right(left(answer))

    def opened(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """Each conversation as text, with the assistant's turn opened."""
        return self._render(conversations, add_generation_prompt=True)

    def whole(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """Each conversation as text."""
        return self._render(conversations, add_generation_prompt=False)

    def _render(self, conversations: Sequence[Sequence[Message]], **settings: bool) -> list[str]:
        from jinja2 import TemplateError

        render: Any = self._tokenizer.apply_chat_template
        try:
            return render(list(map(list, conversations)), tokenize=False, enable_thinking=False, **settings)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise UserError(f"{FLAG}: the tokenizer's chat template fails: {one_line(error)}") from None
