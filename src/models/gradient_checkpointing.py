"""Gradient checkpointing: the backward pass computes a layer's states again instead of keeping them."""

from transformers import PreTrainedModel

from src.config.errors import UserError


def compute_layers_again(model: PreTrainedModel, name: str) -> None:
    """Switch gradient checkpointing on (Chen et al., 2016, arXiv 1604.06174); it works while the model trains.

    Raises UserError for a model type that transformers cannot do it for.
    """
    if not model.supports_gradient_checkpointing:
        kind = model.config.model_type
        raise UserError(f"--gradient_checkpointing True: transformers does not support it for {name} ({kind})")
    # Hooks may take states out of a layer, which reentrant checkpointing would cut off from the gradient.
    newer = getattr(model, "activation_checkpointing_enable", None)  # the name in transformers from 5.23 on
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
