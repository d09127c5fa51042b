"""Check models before their weights are read: files, maximum lengths, a shared tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.config.parsing import shown
from src.models.generation_config import check_settings, safe_generation_config
from src.models.loading import load_config, load_tokenizer, model_class
from src.models.names import parse_model_name
from src.models.positions import beyond_positions, has_position_table
from src.models.sources import find_model, find_weights
from src.models.tokenizer_file import PROBE
from src.models.weights import shard_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id")


def check_model_files(name: str, *, state_dict_path: str | Path | None = None) -> None:
    """Raise UserError if a model's config, tokenizer or generation config is wrong, or a file of weights is missing."""
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
    """Raise UserError if the maximum lengths exceed the model's positions, or are below the model's minimum length."""
    config = load_config(name)
    generation_config = safe_generation_config(config, find_model(parse_model_name(name)[0]))
    check_settings(generation_config, name, flags, is_encoder_decoder=config.is_encoder_decoder)
    for what, length, limit in beyond_positions(config, flags) if has_position_table(config) else ():
        raise UserError(f"{what}: {length} tokens, but {name} has positions for {limit}")


def check_same_tokenizer(
    teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase", *, what: str = "--student_name"
) -> None:
    """Raise UserError if two tokenizers differ in vocabulary, special tokens or tokens of the same text.

    The sizes of the models' embeddings may differ (padded vocabularies). `what`: the flag that the error names.
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
                f"{what}: teacher and student must share a tokenizer; they have the same vocabulary but "
                f"split {shown(text)} in different ways"
            )
