"""How a model itself wants to write: what its generation config says beyond token ids and beyond the suite's flags."""

from typing import TYPE_CHECKING, Any

from src.config.arguments import SharedArguments
from src.config.console import say
from src.config.errors import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

SETTINGS = (
    "min_length", "min_new_tokens", "length_penalty", "early_stopping", "repetition_penalty",
    "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "begin_suppress_tokens",
    "exponential_decay_length_penalty", "sequence_bias", "renormalize_logits", "remove_invalid_values", "typical_p",
    "min_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
BEAM_SETTINGS, DEFAULT_BEAMS = {"length_penalty", "early_stopping"}, 4
NEUTRAL = {
    "min_length": 0, "min_new_tokens": 0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "diversity_penalty": 0.0, "num_beam_groups": 1, "guidance_scale": 1.0,
    "renormalize_logits": False, "remove_invalid_values": False, "is_assistant": False, "token_healing": False,
    "use_mtp": False, "low_memory": False, "cache_implementation": "dynamic", "length_penalty": 1.0,
    "early_stopping": False, "min_p": 0.0,
}  # fmt: skip


def settings_of(ids: "GenerationConfig") -> dict[str, Any]:
    """The settings that change what is written, by name."""
    values = {name: getattr(ids, name, None) for name in SETTINGS}
    return {name: value for name, value in values.items() if value not in (None, []) and value != NEUTRAL.get(name)}


def wrong_setting(settings: dict[str, Any]) -> str | None:
    """What is wrong with a setting that should be a number, if one is."""
    for name, value in settings.items():
        neutral = NEUTRAL.get(name)
        if neutral is None or isinstance(neutral, bool):
            continue
        is_number = isinstance(value, int if isinstance(neutral, int) else int | float) and not isinstance(value, bool)
        least = float("-inf") if name == "length_penalty" else 0
        if not is_number or value < least:
            return (
                f"{name}: {value!r} is not {'a whole number' if isinstance(neutral, int) else 'a number'} of at least 0"
            )
    return None


def check_settings(ids: "GenerationConfig", name: str, config: SharedArguments, *, is_encoder_decoder: bool) -> None:
    """Raise UserError if the model must write more tokens than --max_labels_length allows."""
    if not config.model_generation_settings:
        return
    counted = ("min_length", "min_new_tokens") if is_encoder_decoder else ("min_new_tokens",)  # of others: inputs too
    for setting in counted:
        least = settings_of(ids).get(setting, 0)
        if least > config.max_labels_length:
            raise UserError(
                f"{name}: its generation config has {setting} {least}, more than --max_labels_length "
                f"{config.max_labels_length}; raise it, or say --model_generation_settings False"
            )


def apply_settings(model: "PreTrainedModel", name: str, config: SharedArguments) -> None:
    """Say which settings of its own a model writes with, or leave them out if the flag says so."""
    settings = settings_of(model.generation_config)
    if not settings:
        return
    listed = ", ".join(f"{setting} {value}" for setting, value in settings.items())
    if config.model_generation_settings:
        say(f"{name} writes with settings of its own: {listed} (--model_generation_settings False leaves them out)")
        return
    say(f"--model_generation_settings False: {name} writes without {listed}")
    for setting in settings:
        setattr(model.generation_config, setting, None)
