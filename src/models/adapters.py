"""LoRA adapters (Hu et al., 2022): merge a folder of one into its base model, and train one."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from src.config.console import say
from src.config.errors import UserError
from src.models.library_errors import in_one_line, quiet, read_json_object
from src.models.names import ADAPTER_CONFIG
from src.models.weights import read_state_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX, ADAPTER = "base_model.model.", "default"  # of the names in a file of weights; its name in memory
INSTALL = "pip install -r requirements-extras.txt"


@dataclass(frozen=True)
class Lora:
    """An adapter to train: the rank of its matrices, and alpha; their product is scaled by alpha / rank."""

    rank: int
    alpha: float


def check_adapter(folder: Path) -> None:
    """Raise UserError if an adapter cannot be merged: the package is missing, its file, or it is of another kind."""
    if find_spec("peft") is None:
        raise UserError(f"{folder}: is an adapter, which needs the package peft; run {INSTALL}")
    kind = read_json_object(str(folder), str(folder), ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder}: {ADAPTER_CONFIG}: peft_type is {kind!r}; only LORA can be merged into its base")
    if not any((folder / file).is_file() for file in ADAPTER_FILES):
        raise UserError(f"{folder}: holds no {ADAPTER_FILES[0]}, the weights of the adapter")


def merge_adapter(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """The model with a folder's adapter added to its weights. Changes the model; nothing in the folder is executed.

    Raises UserError for an adapter of another model.
    """
    check_adapter(folder)
    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    problem = "the adapter does not fit its base model"
    with quiet(), warnings.catch_warnings(action="ignore"), in_one_line(str(folder), problem):
        adapted: Any = PeftModel(model, PeftConfig.from_pretrained(str(folder)))
        report = adapted.load_adapter(str(folder), ADAPTER, torch_device=str(model.device))
        misfits = [*(f"{key} is missing" for key in report.missing_keys), *report.unexpected_keys]
        if misfits:
            raise ValueError(f"{misfits[0].removeprefix(PREFIX)} (and {len(misfits) - 1} more)")
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if model.config.tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
            raise ValueError("it changes only one of the tied input and output embeddings")
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    return merged


def add_lora(model: "PreTrainedModel", name: str, lora: Lora, *, seed: int) -> None:
    """Freeze a model and add an adapter to its linear layers, except the output projection. `name`: the model's.

    Its first values depend on `seed` alone, and change nothing; torch's random state is kept.
    """
    from peft import LoraConfig

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear")  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(seed)
        with in_one_line(name, "no adapter can be added"):
            model.add_adapter(config)
    config.base_model_name_or_path, config.target_modules = name, sorted(config.target_modules or ())
    n_trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    say(f"LoRA of rank {lora.rank}: {n_trained:,} of {model.num_parameters():,} parameters are trained")


def has_lora(model: "PreTrainedModel") -> bool:
    """Whether `add_lora` has added an adapter."""
    return model._hf_peft_config_loaded


def save_lora(model: "PreTrainedModel", folder: Path) -> None:
    """Fill a folder with the adapter that `add_lora` added, as peft writes it but without asking the hub."""
    save_file({name: value.detach() for name, value in _values(model).items()}, folder / ADAPTER_FILES[0])
    model.peft_config[ADAPTER].save_pretrained(folder)


@torch.no_grad()
def load_lora(model: "PreTrainedModel", folder: Path) -> None:
    """Restore the adapter's values from a folder of `save_lora`, in place. Raises UserError for another model's."""
    file = folder / ADAPTER_FILES[0]
    saved = read_state_dict(file)
    for name, value in _values(model).items():
        if name not in saved or saved[name].shape != value.shape:
            raise UserError(f"{file}: has no '{name}' of this shape; the adapter is of another model or --lora_rank")
        value.copy_(saved[name])


def _values(model: "PreTrainedModel") -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters, by their names in files."""
    parameters = (each for each in model.named_parameters() if each[1].requires_grad)
    return {PREFIX + name.replace(f".{ADAPTER}.", "."): value for name, value in parameters}


def merge_lora(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model with the adapter that `add_lora` added merged into its weights; the same object, changed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config
    return model
