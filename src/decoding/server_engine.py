"""Generate with a server that has the OpenAI-compatible completions API: vLLM, SGLang, llama.cpp, TGI, …

The server has the model; this process has its tokenizer. An input is one request for its K targets.
Shapes: B inputs, S source tokens, K targets per input, T tokens of a target.
"""

import string
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from src.api.client import RefusedError, ServerClient
from src.api.completions import COMPLETIONS, Answer, Choice, Spelling, names_ids, read_answer
from src.api.responses import CUT_OFF
from src.config.console import say
from src.config.constants import LENGTH, STOP
from src.config.errors import UserError
from src.config.parsing import shown
from src.tokens.batch import Batch
from src.tokens.continuation import n_closing_tokens, opening_tokens
from src.tokens.preprocessing import Preprocessor
from src.tokens.token_bytes import REPLACEMENT, TokenBytes

LARGEST_SEED = 2**31 - 2**16  # the seeds of an input's K targets follow each other; some servers read 32 bits
LONGEST_WAIT = 0.5  # seconds
PROBE_TOKENS, PROBE_PATIENCE = 8, 30.0  # seconds
PROBE_TEMPERATURE = 2.0  # two targets that are equal have the same seed: the server cannot give each its own
WHITE_SPACE_OR_UNKNOWN = f"{string.whitespace}{REPLACEMENT}"  # a last character may lack its end

Target = tuple  # text, finish reason, and with --top_logprobs the log-probabilities as a completion API gives them


class Started:
    """A batch of which the server is writing the targets."""

    def __init__(self, inputs: "Sequence[Future[list[Target]]]") -> None:
        self._inputs = inputs

    def is_complete(self) -> bool:
        """Whether all targets are there."""
        return all(each.done() and not each.cancelled() and each.exception() is None for each in self._inputs)

    def result(self) -> list[Target]:
        """(B * K) targets, the K of one input adjacent; waits for them. Raises UserError as `ServerClient.request`.

        The waits are short, because Python handles a signal that arrives just before a wait only when the wait ends.
        """
        targets: list[Target] = []
        for each in self._inputs:
            while not each.done():
                wait([each], timeout=LONGEST_WAIT)
            targets += each.result()
        return targets


@dataclass(eq=False)
class ServerEngine:
    """A served model that generates K targets for each input of a batch.

    model: its name at the server. settings: the fields of a request that are the same for all. n_ahead: batches to
    start before the first one is complete. top_logprobs: log-probabilities to keep of each token; None: none.
    `probe` finds out the rest: sends_ids: prompts are sent as token ids. takes_n: the server writes several targets for
    one request.
    """

    preprocessor: Preprocessor
    client: ServerClient
    model: str
    settings: Mapping[str, Any]
    n_ahead: int = 0
    top_logprobs: int | None = None
    sends_ids: bool = False
    takes_n: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._n_opening = len(opening_tokens(self.tokenizer))
        self._n_closing = n_closing_tokens(self.tokenizer) if self.preprocessor.is_encoder_decoder else 0
        self._spelling = Spelling(TokenBytes(self.tokenizer))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.preprocessor.tokenizer

    def write(self, batch: Batch, k: int) -> Started:
        """Ask for the targets of a batch. torch's seed chooses a seed for each input."""
        seeds = torch.randint(LARGEST_SEED, (len(batch.rows),)).tolist()
        read = zip(batch.input_ids, batch.attention_mask.bool(), seeds, batch.rows, strict=True)
        return Started(
            [self.client.submit(self._targets, ids[mask].tolist(), k, seed, row) for ids, mask, seed, row in read]
        )

    def _targets(self, ids: list[int], k: int, seed: int, row: int) -> list[Target]:
        """The K targets of one input, from as many requests as the server needs."""
        prompt = ids if self.sends_ids else self.text_of(ids)
        targets: list[Target] = []
        while len(targets) < k:
            n = k - len(targets) if self.takes_n else 1
            request = {**self.settings, "prompt": prompt, "n": n, "seed": seed + len(targets)}
            try:
                choices = self._ask(request).choices
            except UserError as error:
                raise UserError(f"row {row}: {error}") from None
            targets += map(self._target, choices[:n])
        return targets

    def _ask(self, request: dict[str, Any], **how: float) -> Answer:
        return self.client.request(COMPLETIONS, {"model": self.model} | request, self._read, **how)

    def _read(self, data: bytes) -> Answer:
        return read_answer(data, needs_logprobs=self.top_logprobs is not None)

    def _target(self, choice: Choice) -> Target:
        reason = LENGTH if choice.finish_reason in CUT_OFF else STOP
        if not self.top_logprobs:
            return choice.text.strip(), reason
        known = choice.logprobs or {}
        if not (self.sends_ids and names_ids(known)):
            return choice.text.strip(), reason, {name: known[name] for name in known if name != "text_offset"}
        with self._lock:
            text, spelled = self._spelling.of(known)
        return text, reason, spelled

    def text_of(self, ids: list[int]) -> str:
        """The text of an input without the special tokens around it, which the server adds."""
        inner = ids[self._n_opening : len(ids) - self._n_closing]
        return str(self.tokenizer.decode(inner, clean_up_tokenization_spaces=False))

    def probe(self, text: str, k: int) -> None:
        """Find out what the server does, with an input of the data and a few short requests.

        Prompts are sent as ids if the server's ids are the tokenizer's: the ids that it writes spell its text or, from
        a server that names none, the same text follows ids and text. Raises UserError for a server that cannot be used.
        """
        ids = self.preprocessor.encode_inputs([text]).tokens[0].tolist()
        short = {**self.settings, "temperature": 0.0, "seed": 0, "n": 1}
        short |= {"max_tokens": PROBE_TOKENS, "min_tokens": PROBE_TOKENS}
        by_ids = self._tried({**short, "prompt": ids, "return_token_ids": True})
        if by_ids is not None and by_ids.choices[0].token_ids is not None:
            self._check_tokenizer(by_ids.choices[0].text, by_ids.choices[0].token_ids)
            self.sends_ids = True
        else:
            by_text = self._ask({**short, "prompt": self.text_of(ids)}, give_up_after=PROBE_PATIENCE)
            self.sends_ids = by_ids is not None and by_ids.choices[0].text == by_text.choices[0].text != ""
            n_read = by_text.usage.prompt_tokens if by_text.usage else None
            if not self.sends_ids and n_read not in (None, len(ids)):
                say(
                    f"warning: {self.client.url} reads {n_read} tokens where the tokenizer of --model_name makes "
                    f"{len(ids)}: is it that of {self.model}?"
                )
        if k > 1:
            prompt = ids if self.sends_ids else self.text_of(ids)
            two = self._tried({**short, "prompt": prompt, "n": 2, "temperature": PROBE_TEMPERATURE})
            self.takes_n = two is not None and len({choice.text for choice in two.choices}) == 2

    def _tried(self, request: dict[str, Any]) -> Answer | None:
        """The answer, or None if the server refuses the request."""
        try:
            return self._ask(request, give_up_after=PROBE_PATIENCE)
        except RefusedError:
            return None

    def _check_tokenizer(self, text: str, ids: list[int]) -> None:
        """Raise UserError if the ids that the server wrote do not spell its text."""
        here = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if not here.strip().startswith(text.strip(WHITE_SPACE_OR_UNKNOWN)):
            raise UserError(
                f"--model_name: its tokenizer is not that of {self.model} at {self.client.url}: tokens that spell "
                f"{shown(text)} there are {shown(here)} here"
            )
