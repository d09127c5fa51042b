"""Models and tokenizers by name: a local folder or a hub name, `_prune` suffixes, bare weights; one-line errors."""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from src.config.errors import UserError
from src.models.forward_check import check_forward_pass
from src.models.lean import made_lean
from src.models.library_errors import TokenizersErrors, in_one_line, quiet, read_json_object
from src.models.pruning import prune, pruned_config, use_file_names
from src.models.tokenizer_file import match_tokenizer_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from src.models.generation_config import safe_generation_config
from src.models.names import parse_model_name
from src.models.sources import find_model
from src.models.weights import check_finite, check_keys, read_state_dict

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json", "source.spm")


def is_encoder_decoder(config: "PreTrainedConfig") -> bool:
    return bool(config.is_encoder_decoder)


def load_config(name: str) -> "PreTrainedConfig":
    """The config of a model name, with the layer counts that its `_prune` suffix leaves."""
    from transformers import AutoConfig

    base, encoder_layers, decoder_layers = parse_model_name(name)
    source = find_model(base)
    content = read_json_object(base, source, "config.json")
    _check_no_code(base, content)
    for key, value in content.items():
        if re.match(r"n(um)?_.*layer", key) and isinstance(value, int) and value < 0:
            raise UserError(f"{base}: config.json: {key} is {value}; it must be 0 or more")
    with quiet(), in_one_line(base, "config.json cannot be read as a model's config"):
        config = _text_part(AutoConfig.from_pretrained(source, trust_remote_code=False))
    if encoder_layers is None and decoder_layers is None:
        return config
    try:
        return pruned_config(config, encoder_layers, decoder_layers)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def load_tokenizer(name: str, texts: Sequence[str] = ()) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model name, which reads texts as its tokenizer.json says; `texts` are some to try it on.

    A missing pad token becomes EOS; text is decoded as written, spaces included.
    """
    from transformers import AutoTokenizer

    base = parse_model_name(name)[0]
    source = find_model(base)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"{base}: holds no tokenizer (tokenizer.json); save it beside the weights with save_pretrained")
    read_json_object(base, source, "tokenizer.json")
    longest = read_json_object(base, source, "tokenizer_config.json").get("model_max_length")
    if longest is not None and not isinstance(longest, int | float):
        raise UserError(f"{base}: tokenizer cannot be read: tokenizer_config.json: model_max_length must be a number")
    with quiet(), in_one_line(base, "tokenizer cannot be read"), TokenizersErrors():
        read: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer = match_tokenizer_file(read, base, source, texts)
    unknown = tokenizer.unk_token
    if unknown is not None and unknown not in tokenizer.get_vocab():  # the library would look for it without end
        raise UserError(f"{base}: tokenizer cannot be used: its unk_token {unknown[:40]!r} is none of its tokens")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{base}: its tokenizer has no EOS token, which marks the end of a target")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def tokenizer_settings(name: str) -> dict[str, Any]:
    """What the tokenizer_config.json of a model name holds; nothing if there is none."""
    base = parse_model_name(name)[0]
    return read_json_object(base, find_model(base), "tokenizer_config.json")


def load_model(
    name: str, *, state_dict_path: str | Path | None = None, dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """A model in eval mode, float32 unless `dtype` says otherwise, encoder-decoder or decoder-only as its config says.

    `state_dict_path`: weights instead of the name's own, of exactly this (pruned) architecture: a bare state dict
    (.pt), a .safetensors file, or a folder with one (`save_pretrained`, accelerate's `save_state`).
    Raises UserError for a name, file or folder that is missing, unreadable or of another architecture, and for weights
    that are no finite numbers.
    """
    base, encoder_layers, decoder_layers = parse_model_name(name)
    dtype = dtype or torch.float32
    if state_dict_path is not None:
        model = _fill(load_config(name), read_state_dict(state_dict_path), dtype, f"{state_dict_path}: not for {name}")
        check_finite(model, str(state_dict_path))
    else:
        model = _load_whole(base, dtype)
        check_finite(model, base)
        if encoder_layers is not None or decoder_layers is not None:
            model = prune(model, encoder_layers, decoder_layers)
    model.config._name_or_path = base
    model.generation_config = safe_generation_config(model.config, find_model(base))
    start = model.generation_config.decoder_start_token_id
    if model.config.is_encoder_decoder and isinstance(start, int):  # one start for teacher forcing and generation
        model.config.decoder_start_token_id = start
    model = made_lean(model).eval()
    with in_one_line(base, "a test forward pass failed"):
        check_forward_pass(model, base)
    return model


def _load_whole(base: str, dtype: torch.dtype) -> "PreTrainedModel":
    model, report = _from_pretrained(base, load_config(base), dtype, source=find_model(base))
    check_keys(base, {**report, "unexpected_keys": ()})  # a hub model may carry heads that are not needed here
    return model


def _fill(
    config: "PreTrainedConfig", weights: dict[str, torch.Tensor], dtype: torch.dtype, place: str
) -> "PreTrainedModel":
    """A model of `config` with these weights, named as in memory or as in files."""
    model, report = _from_pretrained(place, config, dtype, weights=weights)
    check_keys(place, report)
    return use_file_names(model)


def load_saved(folder: Path, config: "PreTrainedConfig | None" = None) -> "PreTrainedModel":
    """The model of a folder that `save_pretrained` wrote, in float32; `config`: what it must be of, None: its own.

    Files may name weights otherwise than the model in memory: of mixtures of experts each expert's, of others an older
    version's. Raises UserError for weights that are not exactly the model's.
    """
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
    """A model of a folder, a hub name or weights, and what did not fit; the library knows which names are tied, renamed
    or not needed."""
    with quiet(), in_one_line(place, "weights cannot be read"):
        loaded: Any = model_class(config).from_pretrained(
            source,
            config=config,
            state_dict=weights,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return loaded


def model_class(config: "PreTrainedConfig") -> type["PreTrainedModel"]:
    """The class with the output projection on top for this config."""
    mapping = _model_mapping(config)
    if type(config) not in mapping:
        raise UserError(f"model type '{config.model_type}': transformers has no class of it that generates text")
    return mapping[type(config)]


def _model_mapping(config: "PreTrainedConfig") -> Mapping:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM)._model_mapping


def _text_part(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """What the class for a config is configured by: of some models that see and hear, the part that writes text."""
    mapping, part = _model_mapping(config), config.sub_configs.get("text_config")
    is_of_part = part is not None and type(config) in mapping and mapping[type(config)].config_class == part
    return config.get_text_config() if is_of_part else config


def _check_no_code(base: str, config: dict) -> None:
    """Refuse a model that only its own code can open; one whose type the library knows is opened by the library."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if config.get("auto_map") and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        raise UserError(
            f"{base}: config.json names its own code (auto_map), which is never run (trust_remote_code stays off); "
            "give a model whose type transformers knows"
        )
