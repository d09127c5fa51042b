"""Load configs, tokenizers and models by name: a folder or hub name, with or without a `_prune` suffix."""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from src.config.errors import UserError
from src.models.adapters import merge_adapter
from src.models.forward_check import check_forward_pass
from src.models.generation_config import safe_generation_config
from src.models.library_errors import TokenizersErrors, in_one_line, quiet, read_json_object
from src.models.names import adapter_base, find_model, parse_model_name
from src.models.pruning import prune, pruned_config, use_file_names
from src.models.quantized import forget_quantization, is_gguf, read_by, weights_of
from src.models.tokenizer_file import match_tokenizer_file
from src.models.weights import check_finite, check_keys, read_state_dict

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json", "source.spm")


def is_encoder_decoder(config: "PreTrainedConfig") -> bool:
    return bool(config.is_encoder_decoder)


def load_config(name: str) -> "PreTrainedConfig":
    """The config of a model name, for the layers that a `_prune` suffix keeps. Raises UserError if it is wrong."""
    from transformers import AutoConfig

    base, encoder_layers, decoder_layers = parse_model_name(name)
    under, source = adapter_base(base), find_model(base)
    content = read_json_object(base, source, "config.json")
    _check_no_code(base, content)
    for key, value in content.items():
        if re.match(r"n(um)?_.*layer", key) and isinstance(value, int) and value < 0:  # it would load without layers
            raise UserError(f"{base}: config.json: {key} is {value}; it must be 0 or more")
    if under is not None:
        config = load_config(under)
    else:
        with quiet(), in_one_line(base, "config.json cannot be read as a model's config"):
            config = _text_part(read_by(AutoConfig, source))
    if encoder_layers is None and decoder_layers is None:
        return config
    try:
        return pruned_config(config, encoder_layers, decoder_layers)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _check_no_code(base: str, config: dict) -> None:
    """Raise UserError for a model that only its own code can open. If transformers knows its type, it needs no code."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if config.get("auto_map") and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        raise UserError(
            f"{base}: config.json names its own code (auto_map), which is never run (trust_remote_code stays off); "
            "give a model whose type transformers knows"
        )


def load_tokenizer(name: str, texts: Sequence[str] = ()) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model name. It produces the tokens of its tokenizer.json, which is tested on `texts` too.

    A missing pad token becomes EOS, and decoding does not clean up spaces. Raises UserError if there is no tokenizer,
    it cannot be read, or it has no EOS.
    """
    from transformers import AutoTokenizer

    base = parse_model_name(name)[0]
    source = find_tokenizer(base)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"{base}: holds no tokenizer (tokenizer.json); save it beside the weights with save_pretrained")
    read_json_object(base, source, "tokenizer.json")
    read_json_object(base, source, "tokenizer_config.json")
    with quiet(), in_one_line(base, "tokenizer cannot be read"), TokenizersErrors():
        tokenizer = read_by(AutoTokenizer, source)
        if not is_gguf(source):
            tokenizer = match_tokenizer_file(tokenizer, base, source, texts)
    unknown = tokenizer.unk_token
    if unknown is not None and unknown not in tokenizer.get_vocab():  # transformers would look for it forever
        raise UserError(f"{base}: tokenizer cannot be used: its unk_token {unknown[:40]!r} is not one of its tokens")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{base}: its tokenizer has no EOS token, which marks the end of a target")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def tokenizer_settings(name: str) -> dict[str, Any]:
    """The content of a model's tokenizer_config.json; empty if there is none."""
    base = parse_model_name(name)[0]
    return read_json_object(base, find_tokenizer(base), "tokenizer_config.json")


def find_tokenizer(base: str) -> str:
    """Where a model's tokenizer is: as `find_model`, or in an adapter's folder if that has one."""
    is_adapter = adapter_base(base) is not None and any((Path(base) / file).is_file() for file in TOKENIZER_FILES)
    return base if is_adapter else find_model(base)


def load_model(
    name: str, *, state_dict_path: str | Path | None = None, dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """The model of a name in eval mode, in float32 unless `dtype` is given. Its config says whether it has an encoder.

    state_dict_path: weights to use instead of the model's own, for exactly this (pruned) architecture: a bare state
    dict (.pt), a .safetensors file, or a folder with one (from `save_pretrained` or accelerate's `save_state`).
    Raises UserError for files that are missing, unreadable or of another architecture, for weights that are NaN or
    infinite, and for a model that fails a test forward pass.
    """
    base, encoder_layers, decoder_layers = parse_model_name(name)
    dtype = dtype or torch.float32
    if state_dict_path is not None:
        place, weights = f"{state_dict_path}: not for {name}", read_state_dict(state_dict_path)
        model, report = _from_pretrained(place, load_config(name), dtype, weights=weights)
        check_keys(place, report)
        check_finite(use_file_names(model), str(state_dict_path))
    else:
        under = adapter_base(base)
        if under is not None:
            model = merge_adapter(load_model(under, dtype=dtype), Path(base))
        else:
            model, report = _from_pretrained(base, load_config(base), dtype, source=find_model(base))
            check_keys(base, {**report, "unexpected_keys": ()})  # a hub model may have other heads too
        check_finite(model, base)
        if encoder_layers is not None or decoder_layers is not None:
            model = prune(model, encoder_layers, decoder_layers)
    model.config._name_or_path = base
    model.generation_config = safe_generation_config(model.config, find_model(base))
    start = model.generation_config.decoder_start_token_id
    if model.config.is_encoder_decoder and isinstance(start, int):  # the same for teacher forcing and generation
        model.config.decoder_start_token_id = start
    model = fuse_gelu(model).eval()
    with in_one_line(base, "a test forward pass failed"):
        check_forward_pass(model, base)
    return model


def fuse_gelu(model: "PreTrainedModel") -> "PreTrainedModel":
    """Replace the activation `gelu_new` by the same function in one kernel instead of eight; returns the same model."""
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh").train(child.training))
    return model


def load_saved(folder: Path, config: "PreTrainedConfig | None" = None) -> "PreTrainedModel":
    """The model of a `save_pretrained` folder, or of an adapter, in float32. `config`: it must match; None: its own.

    Weight names in files may differ from those of modules: one per expert of a mixture, or an older version's. Raises
    UserError for weights that do not match the config exactly.
    """
    if adapter_base(str(folder)) is not None:
        return load_model(str(folder))
    config = copy.deepcopy(config) if config else load_config(str(folder))
    model, report = _from_pretrained(str(folder), config, torch.float32, source=str(folder))
    check_keys(f"{folder}: not weights of this model", report)
    return model


def _from_pretrained(
    place: str,
    config: "PreTrainedConfig",
    dtype: torch.dtype,
    *,
    source: str | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> "tuple[PreTrainedModel, dict]":
    """A model from a folder, a hub name or weights, and the loading information (missing, unexpected, mismatched keys).

    transformers knows which names are tied, renamed or not needed.
    """
    source, how = weights_of(source)
    with quiet(), in_one_line(place, "weights cannot be read"):
        loaded: Any = model_class(config).from_pretrained(
            source,
            config=config,
            state_dict=weights,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **how,
        )
    if how:
        forget_quantization(loaded[0])
    return loaded


def model_class(config: "PreTrainedConfig") -> type["PreTrainedModel"]:
    """The model class with an output projection for this config. Raises UserError if transformers has none."""
    mapping = _model_mapping(config)
    if type(config) not in mapping:
        raise UserError(f"model type '{config.model_type}': transformers has no class for it that generates text")
    return mapping[type(config)]


def _model_mapping(config: "PreTrainedConfig") -> Mapping:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM)._model_mapping


def _text_part(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The config of the text model, for a multimodal model whose class takes that; otherwise the config itself."""
    mapping, part = _model_mapping(config), config.sub_configs.get("text_config")
    is_of_part = part is not None and type(config) in mapping and mapping[type(config)].config_class == part
    return config.get_text_config() if is_of_part else config
