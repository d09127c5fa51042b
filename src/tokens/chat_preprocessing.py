"""Conversations as model inputs and labels, as a tokenizer's chat template writes them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.config.console import say
from src.config.constants import TEXT
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.data.conversations import SYSTEM, USER, Message, is_conversation, messages_of
from src.data.schema import Datasets
from src.tokens.chat_template import FLAG, MARK, ChatTemplate
from src.tokens.continuation import LocatedTokens, plain_ids
from src.tokens.preprocessing import Preprocessor
from src.tokens.ragged import Encoded, Ragged, lengths_of
from src.tokens.special_token_names import SpecialTokenNames, added_names

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


@dataclass(eq=False)
class ChatPreprocessor(Preprocessor):
    """Turns texts into the user's last message and targets into the assistant's answer.

    Together they are, token for token, the whole conversation by the template (thinking off), up to the token that ends
    the answer. task_prompt: after the text, in the same message. An input that is too long first loses its oldest
    messages, but not the system message and the last one, then a part of the last one's text.
    """

    system_prompt: str = ""

    def _read_template(self) -> None:
        self.template = ChatTemplate(self.tokenizer, self.system_prompt)
        if self.template.end_name not in added_names(self.tokenizer, special_only=True):
            # Otherwise its name would be a part of every text that is generated.
            self.tokenizer.add_tokens([self.template.end_name], special_tokens=True)
        self.end = self.template.end
        self._names = SpecialTokenNames(self.tokenizer, self.template.names)

    @property
    def fixed_parts(self) -> str:
        return "the chat template, --system_prompt and --task_prompt"

    @property
    def targets_follow_space(self) -> bool:
        return True  # stored tokens are made by the template too

    def _n_fixed_tokens(self) -> int:
        [rendered] = self.template.opened([self._conversation(messages_of(""), is_literal=False)])
        return len(plain_ids(self.tokenizer, rendered))

    def _conversation(self, messages: list[Message], *, is_literal: bool) -> list[Message]:
        """Messages of the data with --system_prompt, unless they have their own, and with the prompt in the last.

        is_literal: names of special tokens in the data are text (`SpecialTokenNames.broken`).
        """
        if is_literal:
            messages = [{**message, "content": self._names.broken(message["content"])} for message in messages]
        system = [] if messages[0]["role"] == SYSTEM else self.template.system
        return [*system, *messages[:-1], {"role": USER, "content": messages[-1]["content"] + self.prompt}]

    def _inputs(self, texts: list[str]) -> Encoded:
        tokenizer = self._tokenizer_for(texts)
        data = [messages_of(text) for text in texts]
        conversations = [self._conversation(each, is_literal=tokenizer is not self.tokenizer) for each in data]
        rendered = [self._for(tokenizer, text) for text in self.template.opened(conversations)]
        made = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        inputs = [
            ids if len(ids) <= self.max_input_length else self._shortened(tokenizer, messages)
            for ids, messages in zip(made, data, strict=True)
        ]
        return Encoded(Ragged.of(inputs), lengths_of(made))

    def _for(self, tokenizer: "PreTrainedTokenizerBase", rendered: str) -> str:
        """A text of the template for the tokenizer of `_tokenizer_for`."""
        return rendered if tokenizer is self.tokenizer else self._names.guarded(rendered)

    def _shortened(self, tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> list[int]:
        """The tokens within the limit of a conversation that is too long: those of a shorter one, as it is written."""
        n_system = int(messages[0]["role"] == SYSTEM)
        while True:
            encoding, before, text = self._located(tokenizer, messages)
            excess = len(encoding.ids) - self.max_input_length
            if excess <= 0:
                return encoding.ids
            later = [i for i, message in enumerate(messages) if message["role"] == USER and i > n_system]
            if later:
                messages = [*messages[:n_system], *messages[later[0] :]]
            elif text:
                places = [(start - len(before), end - len(before)) for start, end in encoding.offsets]
                messages = [*messages[:-1], {"role": USER, "content": self._without_tokens(text, places, excess)}]
            else:
                raise UserError(
                    f"--max_input_length {self.max_input_length}: an input has {len(encoding.ids)} tokens besides its "
                    "last message: system message, prompt and chat template; raise the limit"
                )

    def _located(self, tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> "tuple[Encoding, str, str]":
        """The tokens of a conversation, the text before its last message, and that message without the prompt."""
        conversation = self._conversation(messages, is_literal=tokenizer is not self.tokenizer)
        last = {"role": USER, "content": MARK + self.prompt}
        rendered, frame = self.template.opened([conversation, [*conversation[:-1], last]])
        before, _, after = frame.rpartition(MARK)
        if not messages[-1]["content"].strip():  # a template may trim the prompt behind it
            before, after = rendered, ""
        if not (rendered.startswith(before) and rendered.endswith(after)):
            raise UserError(f"{FLAG}: the tokenizer's chat template changes a text, which therefore cannot be cut")
        parts = before, rendered[len(before) : len(rendered) - len(after)], after
        before, text, after = (self._for(tokenizer, part) for part in parts)
        encoding = tokenizer([before + text + after], add_special_tokens=False, verbose=False).encodings[0]
        return encoding, before, text

    def _without_tokens(self, text: str, places: list[tuple[int, int]], excess: int) -> str:
        """A text without its last (or first) `excess` tokens, whose characters (start, end) are among `places`.

        Without that many characters if the tokenizer does not locate so many tokens.
        """
        inside = [(start, end) for start, end in places if 0 <= start < end <= len(text)]
        is_located = excess <= len(inside)
        if self.truncation_side == "left":
            return text[inside[excess - 1][1] if is_located else excess :]
        return text[: inside[-excess][0] if is_located else max(0, len(text) - excess)]

    def _targets(self, targets: list[str]) -> list[LocatedTokens]:
        """The tokens of each answer up to the one that ends it, as they follow the template's opened turn."""
        template, tokenizer = self.template, self._tokenizer_for(targets)
        opening, closing = (self._for(tokenizer, part) for part in (template.opening, template.closing))
        before, opened = opening + template.gap, plain_ids(tokenizer, opening)
        answers = [template.trim(target) if target.strip() else "" for target in targets]
        if self.special_tokens_in_text:
            answers = [answer.removesuffix(closing) for answer in answers]
        joined = tokenizer([before + answer + closing for answer in answers], add_special_tokens=False, verbose=False)
        located = []
        for target, answer, ids, encoding in zip(targets, answers, joined["input_ids"], joined.encodings, strict=True):
            first, n_before = len(opened), len(before)
            if ids[:first] != opened:  # a token spans opening and answer; the model reads the opening alone
                alone = tokenizer([template.gap + answer + closing], add_special_tokens=False, verbose=False)
                ids, encoding, first, n_before = alone["input_ids"][0], alone.encodings[0], 0, len(template.gap)
            n_before -= target.find(answer)
            located.append(LocatedTokens(ids[first:], encoding, first, n_before))
        return located


def preprocessor_of(
    config: SharedArguments, tokenizer: "PreTrainedTokenizerBase", datasets: Datasets, *, is_encoder_decoder: bool
) -> Preprocessor:
    """The preprocessor that the flags ask for.

    Warns of a chat template that is not used. Raises UserError for one that cannot be used, and for conversations in
    the data without one.
    """
    arguments = (
        tokenizer,
        is_encoder_decoder,
        config.max_input_length,
        config.max_labels_length,
        config.task_prompt,
        config.truncation_side,
        config.special_tokens_in_text,
    )
    if config.chat_template:
        check_chat_template(tokenizer, is_encoder_decoder=is_encoder_decoder)
        made = ChatPreprocessor(*arguments, system_prompt=config.system_prompt or "")
        for warning in made.template.warnings():
            say(f"warning: {warning}")
        return made
    for split, columns in datasets.items():
        row = next((row for row, text in enumerate(columns[TEXT]) if is_conversation(text)), None)
        if row is not None:
            raise UserError(
                f"{config.dataset_path}: split '{split}', row {row}: has several messages, which need {FLAG}"
            )
    if tokenizer.chat_template and not is_encoder_decoder and not config.special_tokens_in_text:
        say(f"warning: the tokenizer has a chat template, which is not used; {FLAG} builds the prompts by it")
    return Preprocessor(*arguments)


def check_chat_template(
    tokenizer: "PreTrainedTokenizerBase", *, is_encoder_decoder: bool, whose: str = "model"
) -> None:
    """Raise UserError for a model that --chat_template cannot serve."""
    if is_encoder_decoder:
        raise UserError(f"{FLAG}: the {whose} is an encoder-decoder; only decoder-only models have chat templates")
    if not tokenizer.chat_template:
        raise UserError(f"{FLAG}: the {whose}'s tokenizer has no chat template (chat_template.jinja); leave it out")
    if not tokenizer.is_fast:
        raise UserError(f"{FLAG}: the {whose}'s tokenizer is a slow one (no tokenizer.json), which locates no tokens")
