"""A model's own generation settings: read, checked, fitted to its tokenizer, and applied or left out."""

from typing import TYPE_CHECKING, Any

from src.config.console import say
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.models.library_errors import in_one_line, quiet, read_json_object
from src.models.multilingual import target_language_token
from src.models.names import file_exists

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKEN_KEYS = (  # settings that hold token ids
    "pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "bad_words_ids", "suppress_tokens",
)  # fmt: skip
SETTINGS = (
    "min_length", "min_new_tokens", "length_penalty", "early_stopping", "repetition_penalty",
    "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "begin_suppress_tokens",
    "exponential_decay_length_penalty", "sequence_bias", "renormalize_logits", "remove_invalid_values", "typical_p",
    "min_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
BEAM_SETTINGS, DEFAULT_BEAMS = {"length_penalty", "early_stopping"}, 4
NEUTRAL = {  # values that change nothing
    "min_length": 0, "min_new_tokens": 0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "diversity_penalty": 0.0, "num_beam_groups": 1, "guidance_scale": 1.0,
    "renormalize_logits": False, "remove_invalid_values": False, "is_assistant": False, "token_healing": False,
    "use_mtp": False, "low_memory": False, "cache_implementation": "dynamic", "length_penalty": 1.0,
    "early_stopping": False, "min_p": 0.0,
}  # fmt: skip


def fit_to_tokenizer(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", end_of_labels: int | None = None
) -> None:
    """Fit a model's generation config to its tokenizer.

    The tokenizer's EOS and the token with which labels end also end generation, like the EOS of the config (base and
    instruct models may have different ones). Ids that are not the tokenizer's, which only pad the embeddings, are never
    generated: they are no text, and a teacher may lack them. The target language is the first token generated or, if
    labels have it after EOS (mBART), the decoder's start token.
    """
    ids, language = model.generation_config, target_language_token(tokenizer)
    if language is not None and tokenizer(text_target="")["input_ids"][0] == language:
        ids.forced_bos_token_id = language
    elif language is not None:
        ids.decoder_start_token_id = model.config.decoder_start_token_id = language
    ends = ids.eos_token_id if isinstance(ids.eos_token_id, list) else [ids.eos_token_id]
    for end in (tokenizer.eos_token_id, end_of_labels):
        if end not in (None, *ends):
            ends = [end, *(token for token in ends if token is not None)]
            ids.eos_token_id = ends if len(ends) > 1 else ends[0]
    unknown = set(range(model.config.get_text_config().vocab_size)).difference(tokenizer.get_vocab().values())
    ids.suppress_tokens = sorted(unknown.union(ids.suppress_tokens or ())) or None


def safe_generation_config(config: "PreTrainedConfig", source: str | None = None) -> "GenerationConfig":
    """A model's generation config without maximum lengths, beams and sampling, which flags decide.

    source: the model's folder or hub name; None for a new model. Raises UserError if generation_config.json cannot be
    read, or has a setting or token id that is out of range.
    """
    from transformers import GenerationConfig

    stored = GenerationConfig.from_model_config(config)
    if source and file_exists(source, "generation_config.json"):
        read_json_object(source, source, "generation_config.json")
        with quiet(), in_one_line(source, "generation_config.json cannot be read"):
            stored = GenerationConfig.from_pretrained(source)
    settings = changed_settings(stored)
    for name, value in settings.items():
        if type(NEUTRAL.get(name)) in (int, float) and type(value) not in (int, float):
            raise UserError(f"{source or config.model_type}: generation_config.json: {name}: {value!r} is not a number")
    if settings.keys() & BEAM_SETTINGS:  # transformers does not save these without beams
        settings["num_beams"] = stored.num_beams if (stored.num_beams or 1) > 1 else DEFAULT_BEAMS
    both = {key: (getattr(stored, key, None), getattr(config, key, None)) for key in TOKEN_KEYS}
    ids = {key: next((value for value in values if value not in (None, [])), None) for key, values in both.items()}
    if ids["pad_token_id"] in (None, -1):  # −1 in older models: no padding
        eos = ids["eos_token_id"]
        ids["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
    if not config.is_encoder_decoder:
        ids["decoder_start_token_id"] = None
    elif ids["decoder_start_token_id"] is None:
        ids["decoder_start_token_id"] = ids["pad_token_id"] if ids["bos_token_id"] is None else ids["bos_token_id"]
    n_tokens = config.get_text_config().vocab_size
    for key, value in ids.items():
        if value is not None and not _are_token_ids(value, n_tokens):
            where = f"{source}: generation_config.json" if source else config.model_type
            raise UserError(f"{where}: {key}: {str(value)[:80]!r} is not a token id; ids are 0 to {n_tokens - 1}")
    return GenerationConfig(**ids, **settings)


def _are_token_ids(value: object, n_tokens: int) -> bool:
    """Whether a value is a token id, or a (nested) list of token ids."""
    if isinstance(value, list):
        return all(_are_token_ids(each, n_tokens) for each in value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < n_tokens


def changed_settings(ids: "GenerationConfig") -> dict[str, Any]:
    """The settings (name → value) that change what the model generates."""
    values = {name: getattr(ids, name, None) for name in SETTINGS}
    return {name: value for name, value in values.items() if value not in (None, []) and value != NEUTRAL.get(name)}


def apply_settings(model: "PreTrainedModel", name: str, config: SharedArguments) -> None:
    """Print the model's own settings, or remove them with --model_generation_settings False."""
    settings = changed_settings(model.generation_config)
    if not settings:
        return
    listed = ", ".join(f"{setting} {value}" for setting, value in settings.items())
    if config.model_generation_settings:
        say(f"{name} generates with its own settings: {listed} (--model_generation_settings False leaves them out)")
        return
    say(f"--model_generation_settings False: {name} generates without {listed}")
    for setting in settings:
        setattr(model.generation_config, setting, None)
