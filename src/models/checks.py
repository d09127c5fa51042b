"""Checks of a model that need no weights: files, lengths, a shared tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.config.parsing import shown
from src.models.generation_config import check_settings
from src.models.positions import beyond_positions, has_position_table
from src.models.tokenizer_file import PROBE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from src.models.generation_config import safe_generation_config
from src.models.loading import load_config, load_tokenizer, model_class
from src.models.names import parse_model_name
from src.models.sources import find_model, find_weights
from src.models.weights import shard_files

SPECIAL_TOKENS = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id")


def check_model_files(name: str, *, state_dict_path: str | Path | None = None) -> None:
    """Raise UserError for whatever can be known to be wrong with a model before its weights are read."""
    config, tokenizer = load_config(name), load_tokenizer(name)
    base = parse_model_name(name)[0]
    model_class(config)
    n_embeddings, n_tokens = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values()) + 1
    if n_embeddings < n_tokens:
        raise UserError(
            f"{base}: its tokenizer has {n_tokens} tokens, its embeddings only {n_embeddings} (config.json: vocab_size)"
        )
    safe_generation_config(config, find_model(base))
    weights = None
    if state_dict_path is not None:
        weights = find_weights(Path(state_dict_path))
    elif Path(find_model(base)).is_dir():
        weights = find_weights(Path(find_model(base)))
    if weights is not None and weights.name.endswith(".index.json"):
        for shard in shard_files(weights):
            find_weights(shard)


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
