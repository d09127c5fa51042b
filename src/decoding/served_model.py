"""Open the model at a server: the tokenizer and settings from its files, and what a request says of them."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from src.api.client import ServerClient
from src.api.completions import server_model
from src.config.constants import TEXT
from src.config.errors import UserError
from src.config.flags.generate import GenerateArguments
from src.data.schema import Datasets, some_texts
from src.decoding.server_engine import ServerEngine
from src.decoding.settings import Decoding
from src.models.folders import warn_if_prompt_differs
from src.models.generation_config import BEAM_SETTINGS, apply_settings, changed_settings
from src.models.library_errors import in_one_line, quiet
from src.models.loading import load_tokenizer
from src.models.multilingual import set_languages, target_language_token
from src.models.names import file_exists, find_model, parse_model_name
from src.tokens.chat_preprocessing import preprocessor_of
from src.tokens.unknown_characters import check_characters_known

AHEAD = 4  # requests that wait for a free thread, for each thread: the server never waits for the slowest of a batch
SENT = {"repetition_penalty", "min_p", "min_new_tokens"}  # a model's own settings that servers know
OF_TOKENS = ("forced_bos_token_id", "bad_words_ids", "suppress_tokens")


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
    warn_if_prompt_differs(config, name, "model_name")
    tokenizer = load_tokenizer(name, some_texts(datasets))
    set_languages(tokenizer, name, config.source_language, config.target_language)
    if target_language_token(tokenizer) is not None:
        raise UserError(f"--generation_engine server: {name} is multilingual, and a request names no target language")
    kind, own = _kind_and_settings(base, config)
    preprocessor = preprocessor_of(config, tokenizer, datasets, is_encoder_decoder=kind)
    check_characters_known(
        preprocessor, {name: {TEXT: columns[TEXT]} for name, columns in datasets.items()}, config.dataset_path
    )
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = [token for token in dict.fromkeys((preprocessor.end, tokenizer.eos_token_id, *ends)) if token is not None]
    settings = request_settings(decoding, changed_settings(own), ends)
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
            f"has no field; remove it from {base}/generation_config.json, or pass --model_generation_settings False"
        )
    return kind, own
