"""Compare the maximum lengths of the flags with the positions that a model has."""

from typing import TYPE_CHECKING

from src.config.flags.shared import SharedArguments
from src.models.families import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def has_position_table(config: "PreTrainedConfig") -> bool:
    """Whether the model's family has a table of learned positions, beyond which the model fails."""
    return any(family.has_position_table and config.model_type in family.model_types for family in FAMILIES)


def beyond_positions(config: "PreTrainedConfig", flags: SharedArguments) -> list[tuple[str, int, int]]:
    """(flags, the length they allow, the model's positions) for encoder and decoder, where the length is too large."""
    if config.is_encoder_decoder:
        lengths = {
            "encoder": ("--max_input_length", flags.max_input_length),
            "decoder": ("--max_labels_length", flags.max_labels_length),
        }
    else:
        together = flags.max_input_length + flags.max_labels_length
        lengths = {"decoder": ("--max_input_length plus --max_labels_length", together)}
    limits = {side: _stated_positions(config, side) for side in lengths}
    return [(*asked, limit) for side, asked in lengths.items() if (limit := limits[side]) and asked[1] > limit]


def _stated_positions(config: "PreTrainedConfig", side: str) -> int | None:
    """The maximum length of a sequence in the config, in tokens; None if it names none (relative positions)."""
    part = config.get_text_config(encoder=side == "encoder", decoder=side == "decoder")
    names = (f"max_{side}_position_embeddings", "max_position_embeddings", "max_seq_len")
    limits = (getattr(each, name, None) for each in (part, config) for name in names)
    return next((limit for limit in limits if isinstance(limit, int)), None)
