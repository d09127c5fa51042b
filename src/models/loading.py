"""Models and tokenizers by name: a local folder or a hub name, `_prune` suffixes, bare weights; one-line errors."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors.torch import load_file

from src.config.arguments import SharedArguments
from src.config.errors import UserError
from src.config.parsing import shown
from src.models.families import beyond_positions, has_position_table
from src.models.generation_settings import BEAM_SETTINGS, DEFAULT_BEAMS, check_settings, settings_of, wrong_setting
from src.models.languages import target_token
from src.models.lean import made_lean
from src.models.one_line import in_one_line
from src.models.students import prune, pruned_config, quiet, saved_as_usual
from src.models.tokenizer_file import PROBE, as_its_file_says
from src.models.trial import check_states
from src.storage.json_files import check_characters

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Layers = tuple[int, ...]

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json", "source.spm")
SPECIAL_TOKENS = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id")
KEPT_GENERATION_KEYS = (  # what belongs to a model's vocabulary
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_TIMEOUT = 10  # seconds
MOST_LAYERS = 10_000  # a hundred times what models have; layers are made one by one, however many a config asks for


def parse_model_name(name: str) -> tuple[str, Layers | None, Layers | None]:
    """`NAME_prune0_1:0_5` → (NAME, encoder layers to keep, decoder layers to keep); None keeps all (SPEC §3).

    A bare `NAME_prune` keeps decoder layers 0 and −1. A folder that exists under the full name wins.
    """
    match = re.fullmatch(r"(.+)_prune([-\d_:,.]*)", name.rstrip("/"))
    if match is None or Path(name).is_dir():
        return name, None, None
    base, kept = match.groups()
    if not kept:
        return base, None, (0, -1)
    encoder, colon, decoder = kept.rpartition(":")
    if colon and not encoder and not decoder:
        raise UserError(f"{name}: nothing before or after the colon; write e.g. {base}_prune0_1:0_5")
    return base, _parse_layers(name, encoder), _parse_layers(name, decoder)


def _parse_layers(name: str, text: str) -> Layers | None:
    if not text:
        return None
    if not re.fullmatch(r"-?\d+(_-?\d+)*", text):
        base = name.rpartition("_prune")[0]
        raise UserError(
            f"{name}: '{text}' is not a list of layers; write {base}_prune, {base}_prune0_2_5 or {base}_prune0_1:0_5"
        )
    return tuple(int(number) for number in text.split("_"))


def is_encoder_decoder(config: "PreTrainedConfig") -> bool:
    return bool(config.is_encoder_decoder)


def load_config(name: str) -> "PreTrainedConfig":
    """The config of a model name, with the layer counts that its `_prune` suffix leaves."""
    from transformers import AutoConfig

    base, encoder_layers, decoder_layers = parse_model_name(name)
    source = find_model(base)
    content = _read_object(base, source, "config.json")
    _check_no_code(base, content)
    for key, value in content.items():
        if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise UserError(f"{base}: config.json: {key} is {value}, and no model has more than {MOST_LAYERS:,} layers")
        if re.match(r"n(um)?_.*layer", key) and isinstance(value, int) and value < 0:
            raise UserError(f"{base}: config.json: {key} is {value}, and no model has fewer than 0 layers")
    with quiet(), _one_line(base, "config.json", "cannot be read as a model's config"):
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
    _read_object(base, source, "tokenizer.json")
    longest = _read_object(base, source, "tokenizer_config.json").get("model_max_length")
    if longest is not None and not isinstance(longest, int | float):
        raise UserError(f"{base}: tokenizer cannot be read: tokenizer_config.json: model_max_length must be a number")
    with quiet(), _one_line(base, "tokenizer", "cannot be read"), _TokenizersErrors():
        read: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer = as_its_file_says(read, base, source, texts)
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
    return _read_object(base, find_model(base), "tokenizer_config.json")


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
        _check_finite(model, str(state_dict_path))
    else:
        model = _load_whole(base, dtype)
        _check_finite(model, base)
        if encoder_layers is not None or decoder_layers is not None:
            model = prune(model, encoder_layers, decoder_layers)
    model.config._name_or_path = base
    model.generation_config = safe_generation_config(model.config, find_model(base))
    start = model.generation_config.decoder_start_token_id
    if model.config.is_encoder_decoder and isinstance(start, int):  # one start for teacher forcing and generation
        model.config.decoder_start_token_id = start
    model = made_lean(model).eval()
    with in_one_line(base, "a test forward pass failed"):
        check_states(model, base)
    return model


def _load_whole(base: str, dtype: torch.dtype) -> "PreTrainedModel":
    model, report = _from_pretrained(base, load_config(base), dtype, source=find_model(base))
    _check_keys(base, {**report, "unexpected_keys": ()})  # a hub model may carry heads that are not needed here
    return model


def _fill(
    config: "PreTrainedConfig", weights: dict[str, torch.Tensor], dtype: torch.dtype, place: str
) -> "PreTrainedModel":
    """A model of `config` with these weights, named as in memory or as in files."""
    model, report = _from_pretrained(place, config, dtype, weights=weights)
    _check_keys(place, report)
    return saved_as_usual(model)


def load_saved(folder: Path, config: "PreTrainedConfig | None" = None) -> "PreTrainedModel":
    """The model of a folder that `save_pretrained` wrote, in float32; `config`: what it must be of, None: its own.

    Files may name weights otherwise than the model in memory: of mixtures of experts each expert's, of others an older
    version's. Raises UserError for weights that are not exactly the model's.
    """
    config = copy.deepcopy(config) if config else load_config(str(folder))
    model, report = _from_pretrained(str(folder), config, torch.float32, source=str(folder))
    _check_keys(f"{folder}: not weights of this model", report)
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
    with quiet(), _one_line(place, "weights", "cannot be read"):
        loaded: Any = _model_class(config).from_pretrained(
            source,
            config=config,
            state_dict=weights,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return loaded


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a bare state dict, a .safetensors file or a folder of them, on CPU; nothing is executed."""
    file = _find_weights(Path(path))
    with _one_line(str(file), "weights", "cannot be read"):
        if file.name.endswith(".index.json"):
            shards = _shards(file)
            return {key: tensor for shard in shards for key, tensor in read_state_dict(shard).items()}
        weights = load_file(file) if file.suffix == ".safetensors" else read_tensors(file)
    if not isinstance(weights, dict) or not weights:
        kind = type(weights).__name__.removesuffix("Type")
        raise UserError(f"{file}: holds a {kind}, not a state dict (name → tensor)")
    for key, tensor in weights.items():
        if not isinstance(key, str):
            raise UserError(f"{file}: {key!r} is no name of a tensor; give the bare state dict")
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{file}: '{key}' is a {type(tensor).__name__}, not a tensor; give the bare state dict")
    return weights


def read_tensors(file: Path) -> Any:
    """What `torch.save` wrote, on CPU; nothing is executed. Raises one of READ_ERRORS.

    Among others for parts that are damaged (torch does not look) or compressed (it never writes such: they could be of
    any size).
    """
    if is_zipfile(file):
        with ZipFile(file) as archive:
            if any(part.compress_type != ZIP_STORED for part in archive.infolist()):
                raise ValueError("its parts are compressed, which torch.save does not do")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} is damaged, by its own checksum")
    return torch.load(file, map_location="cpu", weights_only=True)


def _shards(index: Path) -> list[Path]:
    """The files of weights that an index lists, which lie beside it."""
    content = _read_object(str(index.parent), str(index.parent), index.name)
    names = content.get("weight_map")
    files = set(names.values()) if isinstance(names, dict) and all(map(_is_shard, names.values())) else None
    if not files:
        raise UserError(f"{index}: 'weight_map' must give for each tensor the name of a file beside it")
    return [index.parent / name for name in sorted(files)]


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and Path(name).suffix in (".safetensors", ".bin", ".pt")


def check_model_files(name: str, *, state_dict_path: str | Path | None = None) -> None:
    """Raise UserError for whatever can be known to be wrong with a model before its weights are read."""
    config, tokenizer = load_config(name), load_tokenizer(name)
    base = parse_model_name(name)[0]
    _model_class(config)
    n_embeddings, n_tokens = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values()) + 1
    if n_embeddings < n_tokens:
        raise UserError(
            f"{base}: its tokenizer has {n_tokens} tokens, its embeddings only {n_embeddings} (config.json: vocab_size)"
        )
    safe_generation_config(config, find_model(base))
    weights = None
    if state_dict_path is not None:
        weights = _find_weights(Path(state_dict_path))
    elif Path(find_model(base)).is_dir():
        weights = _find_weights(Path(find_model(base)))
    if weights is not None and weights.name.endswith(".index.json"):
        for shard in _shards(weights):
            _find_weights(shard)


def check_lengths(name: str, flags: SharedArguments) -> None:
    """Raise UserError if inputs or labels may have more tokens than the model has positions, or too few for what the
    model has to write at least."""
    config = load_config(name)
    ids = safe_generation_config(config, find_model(parse_model_name(name)[0]))
    check_settings(ids, name, flags, is_encoder_decoder=config.is_encoder_decoder)
    for what, length, limit in beyond_positions(config, flags) if has_position_table(config) else ():
        raise UserError(f"{what}: {length} tokens, but {name} has positions for {limit}")


def check_same_tokenizer(
    teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase", *, what: str = "--student_name"
) -> None:
    """Raise UserError, naming the first token that differs, unless both make the same ids of the same strings.

    The sizes of the two models' embeddings may still differ (padded vocabularies).
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    different = ours.items() ^ theirs.items()
    if different:
        token, index = min(different, key=lambda entry: (entry[1], entry[0]))
        raise UserError(
            f"{what}: teacher and student must share a tokenizer; token {index} '{token}' is "
            f"{theirs.get(token, 'absent')} for the teacher, {ours.get(token, 'absent')} for the student"
        )
    for key in SPECIAL_TOKENS:
        if getattr(teacher, key) != getattr(student, key):
            raise UserError(
                f"{what}: teacher and student must share a tokenizer; "
                f"{key} is {getattr(teacher, key)} for the teacher, {getattr(student, key)} for the student"
            )
    for text in PROBE:
        if teacher(text, verbose=False)["input_ids"] != student(text, verbose=False)["input_ids"]:
            raise UserError(
                f"{what}: teacher and student must share a tokenizer; with the same vocabulary they split "
                f"{shown(text)} in different ways"
            )


def fit_to_tokenizer(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make the model's generation config fit the tokens that its texts are made of.

    The tokenizer's EOS, with which labels end, ends generation too, besides what the config names (base and instruct
    models may name different ones). Tokens that the tokenizer does not have, rows that pad the embeddings to a round
    number, are never written: they stand for no text, and a teacher that shares the tokenizer need not have them.
    The language of targets is the first token written, or, where labels have it behind their EOS (mBART), the one that
    the decoder starts with.
    """
    ids, language = model.generation_config, target_token(tokenizer)
    if language is not None and tokenizer(text_target="")["input_ids"][0] == language:
        ids.forced_bos_token_id = language
    elif language is not None:
        ids.decoder_start_token_id = model.config.decoder_start_token_id = language
    ends = ids.eos_token_id if isinstance(ids.eos_token_id, list) else [ids.eos_token_id]
    if tokenizer.eos_token_id not in (None, *ends):
        ends = [tokenizer.eos_token_id, *(token for token in ends if token is not None)]
        ids.eos_token_id = ends if len(ends) > 1 else ends[0]
    unknown = set(range(model.config.get_text_config().vocab_size)).difference(tokenizer.get_vocab().values())
    ids.suppress_tokens = sorted(unknown.union(ids.suppress_tokens or ())) or None


def safe_generation_config(config: "PreTrainedConfig", source: str | None = None) -> "GenerationConfig":
    """A generation config with the model's token ids and its settings, without what the suite's flags decide: longest
    lengths, beams, sampling."""
    from transformers import GenerationConfig

    stored = GenerationConfig.from_model_config(config)
    if source and _holds(source, "generation_config.json"):
        _read_object(source, source, "generation_config.json")
        with quiet(), _one_line(source, "generation_config.json", "cannot be read"):
            stored = GenerationConfig.from_pretrained(source)
    settings = settings_of(stored)
    wrong = wrong_setting(settings)
    if wrong is not None:
        raise UserError(f"{source or config.model_type}: generation_config.json: {wrong}")
    if settings.keys() & BEAM_SETTINGS:  # which transformers does not save without beams
        settings["num_beams"] = stored.num_beams if (stored.num_beams or 1) > 1 else DEFAULT_BEAMS
    ids = {key: getattr(stored, key, None) for key in KEPT_GENERATION_KEYS}
    ids = {key: getattr(config, key, None) if value in (None, []) else value for key, value in ids.items()}
    ids = {key: None if value == [] else value for key, value in ids.items()}
    if ids["pad_token_id"] in (None, -1):  # older models have no padding, and say so by −1
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
            raise UserError(f"{where}: {key}: {str(value)[:80]!r} is no token; ids are 0 to {n_tokens - 1}")
    return GenerationConfig(**ids, **settings)


def _are_token_ids(value: object, n_tokens: int) -> bool:
    """Whether a value is a token's id, or lists of ids."""
    if isinstance(value, list):
        return all(_are_token_ids(each, n_tokens) for each in value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < n_tokens


@lru_cache(maxsize=64)
def find_model(base: str) -> str:
    """A local folder (`base` itself, or a complete copy in the hub's cache), else a name that the hub answers to.

    Asks the hub once, with a time limit: without a network `from_pretrained` would retry for half a minute per file.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    failures: Any = (*HfHubHTTPError.__bases__, OSError, ValueError)  # its bases: the HTTP client's error, and OSError
    what_to_do = "give a local folder made by save_pretrained or create_student_main.py, or a hub name with a network"
    folder = Path(base)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{base}: holds no config.json; {what_to_do}")
        return base
    if folder.exists() or not HUB_NAME.fullmatch(base):
        raise UserError(f"{base}: no such model folder; {what_to_do}")
    try:
        cached = try_to_load_from_cache(base, "config.json")
        if isinstance(cached, str) and any((Path(cached).parent / file).is_file() for file in WEIGHT_FILES):
            return str(Path(cached).parent)
        HfApi().model_info(base, timeout=HUB_TIMEOUT)
    except failures as error:
        raise UserError(f"{base}: no such folder, and the hub does not give it; {what_to_do}") from error
    return base


def _holds(source: str, file: str) -> bool:
    """Whether the folder, or the hub's repository, has the file."""
    from huggingface_hub import HfApi

    return (Path(source) / file).is_file() if Path(source).is_dir() else HfApi().file_exists(source, file)


def _model_class(config: "PreTrainedConfig") -> type["PreTrainedModel"]:
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


def _find_weights(path: Path) -> Path:
    """`path` itself if it is a file, or the file of weights in a folder."""
    for file in (path, *(path / name for name in WEIGHT_FILES)):
        if file.is_file():
            return file
    raise UserError(f"{path}: no weights there; give a .pt or .safetensors file, or a folder with model.safetensors")


def _check_finite(model: "PreTrainedModel", place: str) -> None:
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise UserError(f"{place}: '{name}' contains NaN or infinity; the file is corrupt or training diverged")


def _check_keys(place: str, report: dict) -> None:
    """Raise UserError naming the first key that is missing, left over or of another shape."""
    misfits = [
        *(f"'{key}' is missing" for key in sorted(report["missing_keys"])),
        *(f"'{key}' is not in the model" for key in sorted(report["unexpected_keys"])),
        *(
            f"'{key}' is {tuple(found)}, the model's is {tuple(expected)}"
            for key, found, expected in sorted(report["mismatched_keys"])
        ),
    ]
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise UserError(f"{place}: {misfits[0]}{more}; the weights must be of the architecture in config.json")


def _read_object(place: str, source: str, file: str) -> dict:
    """What a JSON file of a local model folder holds; nothing of one that is not there, or of a hub's."""
    path = Path(source) / file
    if not path.is_file():
        return {}
    part = "tokenizer" if file.startswith("tokenizer") else file
    with _one_line(place, part, "cannot be read"):
        data = path.read_bytes()
        content = json.loads(data.decode("utf-8"))
        check_characters(content, data)
    if not isinstance(content, dict):
        kind = type(content).__name__.removesuffix("Type")
        raise UserError(f"{place}: {part} cannot be read: {file} must hold an object, not a {kind}")
    return content


def _check_no_code(base: str, config: dict) -> None:
    """Refuse a model that only its own code can open; one whose type the library knows is opened by the library."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if config.get("auto_map") and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        raise UserError(
            f"{base}: config.json names its own code (auto_map), which is never run (trust_remote_code stays off); "
            "give a model whose type transformers knows"
        )


class _TokenizersErrors(AbstractContextManager):
    """Makes ValueErrors of what the library `tokenizers` says of a bad file: it has no class of errors of its own."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if kind is Exception:
            raise ValueError(str(error)) from error


def _one_line(place: str, part: str, problem: str) -> AbstractContextManager[None]:
    return in_one_line(place, f"{part} {problem}")
