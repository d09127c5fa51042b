"""Stage: make a student by keeping some layers of a trained model or building a small model with random weights."""

import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from src.config.constants import TARGET, TEXT, UNLABELED
from src.config.errors import UserError
from src.config.flags.create_student import CreateStudentArguments
from src.config.signals import signals_kill
from src.data.conversations import contents_of
from src.data.references import references_of
from src.data.schema import check_datasets, check_trainable, training_splits
from src.data.tables import read_data
from src.models.checks_before_loading import check_model_files
from src.models.families import FAMILY_OF_TYPE, layer_counts
from src.models.folders import write_model_folder
from src.models.loading import load_config, load_model, load_tokenizer
from src.models.names import KeptLayers, parse_model_name, resolve_layers
from src.models.new_models import ModelSizes, build_from_scratch
from src.models.new_tokenizers import train_tokenizer
from src.models.pruning import prune, pruned_config, spaced_layers
from src.models.quantized import dequantized
from src.storage.atomic import check_output_folder, recover

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    Student = tuple[PreTrainedModel, PreTrainedTokenizerBase, str]

logger = logging.getLogger(__name__)

DEFAULT_LAYERS = 2  # of the encoder and of the decoder of a new model


def create_student(config: CreateStudentArguments) -> Path:
    """Write a model folder (weights, config, generation config, tokenizer, model card); return its path.

    Raises UserError before writing: the folder is not empty, a model or file is unusable, or a layer does not exist.
    """
    recover(config.output_dir)
    _check_free(config)
    model, tokenizer, origin = _keep_layers(config) if config.from_model else _build_new(config)
    folder = write_model_folder(config.output_dir, model, tokenizer, model_card(config, model, origin))
    logger.info("%s: %s parameters", folder, f"{model.num_parameters():,}")
    return folder


def _check_free(config: CreateStudentArguments) -> None:
    folder = Path(config.output_dir)
    check_output_folder(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not config.overwrite:
        raise UserError(f"--output_dir {folder}: is not empty; name another folder or add --overwrite True")
    if not (folder / "config.json").is_file():
        raise UserError(f"--output_dir {folder}: contains no model, so it is not overwritten; name another folder")


def _keep_layers(config: CreateStudentArguments) -> "Student":
    """A copy of --from_model with only the layers that the flags or the suffix `_prune...` of its name keep."""
    assert config.from_model is not None
    base, *named = parse_model_name(config.from_model)
    check_model_files(base)
    whole = load_config(base)
    sides = zip(("encoder", "decoder"), named, strict=True)
    kept = [_layers_of(side, config, layers, whole) for side, layers in sides]
    if kept == [None, None]:
        return dequantized(load_model(base), base), load_tokenizer(base), f"All layers of `{base}`."
    pruned_config(whole, *kept)  # raises if a layer does not exist, before the weights are read
    student = prune(dequantized(load_model(base), base), *kept)
    origin = f"From `{base}`, layers kept: {_describe_layers(whole, kept)}; the rest copied."
    return student, load_tokenizer(base), origin


def _layers_of(
    side: str, config: CreateStudentArguments, named: KeptLayers | None, whole: "PreTrainedConfig"
) -> KeptLayers | None:
    """The encoder or decoder layers to keep, or None for all: those in the model's name, or of one of the two flags."""
    listed, n_layers = getattr(config, f"keep_{side}_layers"), getattr(config, f"n_{side}_layers")
    if named is not None and (listed is not None or n_layers is not None):
        raise UserError(f"--from_model {config.from_model}: names the {side} layers; leave out the {side} flags")
    if n_layers is None:
        return named if listed is None else listed
    n_total = layer_counts(whole)[side]
    if n_layers > n_total:
        raise UserError(f"--n_{side}_layers {n_layers}: {config.from_model} has {n_total} {side} layers")
    return spaced_layers(n_total, n_layers)


def _describe_layers(whole: "PreTrainedConfig", kept: list[KeptLayers | None]) -> str:
    return ", ".join(
        f"{side} {' '.join(map(str, resolve_layers(layers, n_total, side)))} of {n_total}"
        for (side, n_total), layers in zip(layer_counts(whole).items(), kept, strict=True)
        if n_total
    )


def _build_new(config: CreateStudentArguments) -> "Student":
    """A model with random weights, with the tokenizer of another model or one trained on a dataset."""
    family = FAMILY_OF_TYPE[config.family]
    if config.n_encoder_layers is not None and not family.is_encoder_decoder:
        raise UserError(f"--n_encoder_layers {config.n_encoder_layers}: a {family.name} model has no encoder")
    if config.tokenizer:
        tokenizer, source = load_tokenizer(config.tokenizer), f"the tokenizer of `{config.tokenizer}`"
    else:
        assert config.dataset_path is not None
        texts = training_texts(config, config.dataset_path)
        with signals_kill():
            tokenizer = train_tokenizer(texts, config.vocab_size, family=family.name)
        source = f"a tokenizer trained on `{config.dataset_path}`"
    sizes = ModelSizes(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        n_encoder_layers=config.n_encoder_layers or DEFAULT_LAYERS,
        n_decoder_layers=config.n_decoder_layers or DEFAULT_LAYERS,
        d_model=config.d_model,
        d_ff=config.d_ff or 4 * config.d_model,
        n_heads=config.n_heads,
        dropout=config.dropout,
        max_position_embeddings=config.max_position_embeddings,
    )
    model = build_from_scratch(family.name, sizes, seed=config.seed)
    return model, tokenizer, f"A new {family.name} model with random weights (seed {config.seed}) and {source}."


def training_texts(config: CreateStudentArguments, dataset_path: str) -> Iterator[str]:
    """Texts and targets of a dataset's training splits, then its unlabeled texts; nothing of dev and test."""
    datasets = read_data(config, dataset_path)
    check_datasets(datasets, dataset_path)
    check_trainable(datasets, dataset_path)
    for split in training_splits(datasets):
        yield from map(contents_of, datasets[split][TEXT])
        yield from (text for target in datasets[split][TARGET] for text in references_of(target))
    yield from map(contents_of, datasets.get(UNLABELED, {}).get(TEXT, ()))


def model_card(config: CreateStudentArguments, model: "PreTrainedModel", origin: str) -> str:
    """The README.md of the model folder: the model's origin, its size, and the command that made it."""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        f"# {Path(config.output_dir).name}\n\n{origin} {model.num_parameters():,} parameters.\n\n"
        f"Made by:\n```\npython {config.script} {format_flags(config)}\n```\n"
    )


def format_flags(config: CreateStudentArguments) -> str:
    """The flags that differ from their defaults, as written on a command line."""
    words = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words.append(f"--{field.name} {' '.join(map(str, values))}")
    return " ".join(words)
