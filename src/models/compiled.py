"""Compile a model's layers with torch.compile for training; generation runs them eagerly."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from src.config.errors import UserError
from src.models.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BACKEND = "inductor"
RECOMPILE_LIMIT = 256  # of one function, which all layers share: with and without gradients, mask, dropout, …

_compiled: WeakSet[PreTrainedModel] = WeakSet()


def check_can_compile(config: "PreTrainedConfig") -> None:
    """Raise UserError for a model type without a family, and without a C++ compiler, which every device needs."""
    family_of(config)
    if shutil.which(os.environ.get("CXX") or "c++") is None and shutil.which("g++") is None:
        raise UserError("--compile True: needs a C++ compiler, and there is no g++ on this machine")


def compile_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Compile each layer at its first call, for any batch size and length; returns the same model.

    Only layers: the loss has its own chunks, and a whole model would be compiled again for new lengths. Raises
    UserError for a model type without a family.
    """
    family = family_of(model.config)
    torch.compiler.config.recompile_limit = RECOMPILE_LIMIT
    for path in filter(None, (family.encoder_layers, family.decoder_layers)):
        layers: Any = model.get_submodule(path)
        for layer in layers:
            layer.compile(dynamic=True, backend=BACKEND)
    _compiled.add(model)
    return model


@contextmanager
def run_eagerly(model: PreTrainedModel) -> Iterator[None]:
    """Within: compiled layers run eagerly; otherwise generation would compile them for each length of the cache."""
    if model not in _compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
