"""Generate with a server that has the OpenAI-compatible completions API: vLLM, SGLang, llama.cpp, TGI, …

The server has the model; this process has its tokenizer. An input is one request for its K targets.
Shapes: B inputs, S source tokens, K targets per input, T tokens of a target.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from src.api.client import ServerClient
from src.api.completions import COMPLETIONS, Answer, Choice, names_ids, read_answer, server_model, spell
from src.api.responses import CUT_OFF
from src.config.console import say
from src.config.constants import LENGTH, STOP, TEXT
from src.config.errors import UserError
from src.config.flags.generate import GenerateArguments
from src.config.parsing import shown
from src.data.schema import Datasets, some_texts
from src.decoding.settings import Decoding
from src.models.folders import warn_if_prompt_differs
from src.models.generation_config import BEAM_SETTINGS, apply_settings, changed_settings
from src.models.library_errors import in_one_line, quiet
from src.models.loading import load_tokenizer
from src.models.multilingual import set_languages, target_language_token
from src.models.names import file_exists, find_model, parse_model_name
from src.tokens.batch import Batch
from src.tokens.continuation import n_closing_tokens, opening_tokens
from src.tokens.preprocessing import Preprocessor
from src.tokens.token_bytes import TokenBytes
from src.tokens.unknown_characters import check_characters_known

LARGEST_SEED = 2**31 - 2**16  # the seeds of an input's K targets follow each other; some servers read 32 bits
PROBE_TOKENS = 8
AHEAD = 4  # requests that wait for a free thread, for each thread: the server never waits for the slowest of a batch
SENT = {"repetition_penalty", "min_p", "min_new_tokens"}  # a model's own settings that servers know
OF_TOKENS = ("forced_bos_token_id", "bad_words_ids", "suppress_tokens")

Target = tuple  # text, finish reason, and with --top_logprobs the log-probabilities as a completion API gives them


class Started:
    """A batch of which the server is writing the targets."""

    def __init__(self, inputs: "Sequence[Future[list[Target]]]") -> None:
        self._inputs = inputs

    def is_complete(self) -> bool:
        """Whether all targets are there."""
        return all(each.done() and not each.cancelled() and each.exception() is None for each in self._inputs)

    def result(self) -> list[Target]:
        """(B * K) targets, the K of one input adjacent; waits for them. Raises UserError as `ServerClient.request`."""
        return [target for each in self._inputs for target in each.result()]


@dataclass(eq=False)
class ServerEngine:
    """A served model that generates K targets for each input of a batch.

    model: its name at the server. settings: the fields of a request that are the same for all. n_ahead: batches to
    start before the first one is complete. top_logprobs: log-probabilities to keep of each token; None: none.
    `probe` finds out the rest: sends_ids: prompts are sent as token ids. has_ids: answers name tokens by ids. takes_n:
    the server writes several targets for one request.
    """

    preprocessor: Preprocessor
    client: ServerClient
    model: str
    settings: Mapping[str, Any]
    n_ahead: int = 0
    top_logprobs: int | None = None
    sends_ids: bool = False
    has_ids: bool = False
    takes_n: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._n_opening = len(opening_tokens(self.tokenizer))
        self._n_closing = n_closing_tokens(self.tokenizer) if self.preprocessor.is_encoder_decoder else 0
        self._bytes = TokenBytes(self.tokenizer)

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
        if not self.has_ids:
            return choice.text.strip(), reason, {name: known[name] for name in known if name != "text_offset"}
        with self._lock:
            text, spelled = spell(known, self._bytes)
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
        short = {**self.settings, "temperature": 0.0, "max_tokens": PROBE_TOKENS, "seed": 0, "n": 1}
        by_ids = self._tried({**short, "prompt": ids, "return_token_ids": True})
        if by_ids is not None and by_ids.choices[0].token_ids is not None:
            self._check_tokenizer(by_ids.choices[0].text, by_ids.choices[0].token_ids)
            self.sends_ids = True
        else:
            by_text = self._ask({**short, "prompt": self.text_of(ids)}, give_up_after=0.0)
            self.sends_ids = by_ids is not None and by_ids.choices[0].text == by_text.choices[0].text
            n_read = by_text.usage.prompt_tokens if by_text.usage else None
            if not self.sends_ids and n_read not in (None, len(ids)):
                say(
                    f"warning: {self.client.url} reads {n_read} tokens where the tokenizer of --model_name makes "
                    f"{len(ids)}: is it that of {self.model}?"
                )
        self.has_ids = self.sends_ids and names_ids(by_ids)
        prompt = ids if self.sends_ids else self.text_of(ids)
        self.takes_n = k == 1 or self._tried({**short, "prompt": prompt, "n": 2, "temperature": 1.0}) is not None

    def _tried(self, request: dict[str, Any]) -> Answer | None:
        """The answer, or None if the server refuses or fails."""
        try:
            return self._ask(request, give_up_after=0.0)
        except UserError:
            return None

    def _check_tokenizer(self, text: str, ids: list[int]) -> None:
        """Raise UserError if the ids that the server wrote do not spell its text."""
        here = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if here.strip() != text.strip():
            raise UserError(
                f"--model_name: its tokenizer is not that of {self.model} at {self.client.url}: tokens that spell "
                f"{shown(text)} there are {shown(here)} here"
            )


def request_settings(decoding: Decoding, own: Mapping[str, Any], ends: Sequence[int]) -> dict[str, Any]:
    """The fields of a request that say how to generate; each is named, as servers have defaults of their own.

    own: the model's own settings. ends: the tokens that end a target.
    """
    nucleus = decoding.nucleus
    minimum = {"min_tokens": own["min_new_tokens"]} if "min_new_tokens" in own else {}
    return {
        "max_tokens": decoding.max_new_tokens,
        "temperature": 0.0 if nucleus is None else nucleus.temperature,
        "top_p": 1.0 if nucleus is None else nucleus.top_p,
        "top_k": -1 if nucleus is None else nucleus.top_k or -1,
        "min_p": own.get("min_p", 0.0),
        "repetition_penalty": own.get("repetition_penalty", 1.0),
        "stop_token_ids": list(ends),
        **minimum,
    }


def load_server_engine(config: GenerateArguments, decoding: Decoding, datasets: Datasets) -> ServerEngine:
    """Check the tokenizer of --model_name and the inputs in `datasets`, then ask the server what it does.

    Raises UserError for what is wrong with the tokenizer, flags, data or server.
    """
    name = config.model_name
    base, *layers = parse_model_name(name)
    if layers != [None, None]:
        raise UserError(f"--model_name {name}: the model at the server has all of its layers; give {base}")
    warn_if_prompt_differs(config.task_prompt, name, "model_name")
    tokenizer = load_tokenizer(name, some_texts(datasets))
    set_languages(tokenizer, name, config.source_language, config.target_language)
    if target_language_token(tokenizer) is not None:
        raise UserError(f"--generation_engine server: {name} is multilingual, and a request names no target language")
    kind, own = _kind_and_settings(base, config)
    preprocessor = Preprocessor.of(config, tokenizer, is_encoder_decoder=kind)
    check_characters_known(
        preprocessor, {name: {TEXT: columns[TEXT]} for name, columns in datasets.items()}, config.dataset_path
    )
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    settings = request_settings(
        decoding, changed_settings(own), [id for id in dict.fromkeys((tokenizer.eos_token_id, *ends)) if id is not None]
    )
    assert config.server_url is not None  # as `check` of the flags ensures
    client = ServerClient(config.server_url, config.server_concurrency)
    model = server_model(client, config.server_model)
    if config.top_logprobs:
        settings |= {"logprobs": config.top_logprobs, "return_tokens_as_token_ids": True}
    n_ahead = 1 + AHEAD * config.server_concurrency // config.batch_size
    engine = ServerEngine(preprocessor, client, model, settings, n_ahead, config.top_logprobs)
    text = next(columns[TEXT][0] for columns in datasets.values())
    engine.probe(text, decoding.targets_per_input)
    return engine


def _kind_and_settings(base: str, config: GenerateArguments) -> tuple[bool, GenerationConfig]:
    """Whether the model has an encoder, and its own generation settings: from its two config files, if they are there.

    transformers need not know the model. Raises UserError for settings that a request cannot ask for.
    """
    source = find_model(base)
    with quiet(), in_one_line(base, "its config files cannot be read"):
        kind = bool(PreTrainedConfig.get_config_dict(source)[0].get("is_encoder_decoder"))
        has_own = file_exists(source, "generation_config.json")
        own = GenerationConfig.from_pretrained(source) if has_own else GenerationConfig()
    apply_settings(SimpleNamespace(generation_config=own), base, config)  # type: ignore[arg-type]
    fields = [name for name in changed_settings(own) if name not in SENT | BEAM_SETTINGS]
    fields += [name for name in OF_TOKENS if getattr(own, name) not in (None, [])]
    if fields:
        raise UserError(
            f"--generation_engine server: the model's generation config sets {' '.join(fields)}, for which a request "
            "has no field; --model_generation_settings False leaves settings out"
        )
    return kind, own
