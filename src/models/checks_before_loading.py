"""Check models before their weights are read: files, lengths, a shared tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.config.parsing import shown
from src.data.conversations import ASSISTANT, USER
from src.models.adapters import check_adapter
from src.models.families import family_of, has_family
from src.models.generation_config import changed_settings, safe_generation_config
from src.models.loading import load_config, load_tokenizer, model_class
from src.models.names import adapter_base, find_model, parse_model_name
from src.models.quantized import check_packages, is_gguf, method_of
from src.models.tokenizer_file import PROBE
from src.models.weights import find_weights, shard_files
from src.tokens.chat_preprocessing import check_chat_template
from src.tokens.chat_template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SPECIAL_TOKENS = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id")


def check_model_files(name: str, *, state_dict_path: str | Path | None = None) -> None:
    """Raise UserError if a model's config, tokenizer or generation config is wrong, or a file of weights is missing."""
    base = parse_model_name(name)[0]
    under = adapter_base(base)
    if under is not None:
        check_adapter(Path(base))
        check_model_files(under)
    config, source = load_config(name), find_model(base)
    method = method_of(config, source)
    check_packages(method, source)
    if under is not None and method is not None and not is_gguf(source):
        raise UserError(f"{base}: its base model {under} is quantized ({method}); the adapter needs float weights")
    tokenizer = load_tokenizer(name)
    model_class(config)
    n_embeddings, n_tokens = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values()) + 1
    if n_embeddings < n_tokens:
        raise UserError(
            f"{base}: its tokenizer has {n_tokens} tokens, its embeddings only {n_embeddings} (config.json: vocab_size)"
        )
    safe_generation_config(config, source)
    place = Path(state_dict_path or source)
    if state_dict_path is not None or place.is_dir():
        weights = find_weights(place)
        for shard in shard_files(weights) if weights.name.endswith(".index.json") else ():
            find_weights(shard)


def check_lengths(name: str, flags: SharedArguments) -> None:
    """Raise UserError if the maximum lengths exceed the model's positions, or are below the model's minimum length."""
    config = load_config(name)
    has_table = has_family(config) and family_of(config).has_position_table
    beyond = beyond_positions(config, flags.max_input_length, flags.max_labels_length)
    for what, length, limit in beyond if has_table else ():
        raise UserError(f"{what}: {length} tokens, but {name} has positions for {limit}")
    if not flags.model_generation_settings:
        return
    settings = changed_settings(safe_generation_config(config, find_model(parse_model_name(name)[0])))
    # `min_length` of a decoder-only model counts the input too.
    for setting in ("min_length", "min_new_tokens") if config.is_encoder_decoder else ("min_new_tokens",):
        if settings.get(setting, 0) > flags.max_labels_length:
            raise UserError(
                f"{name}: its generation config has {setting} {settings[setting]}, more than --max_labels_length "
                f"{flags.max_labels_length}; raise it, or pass --model_generation_settings False"
            )


def beyond_positions(
    config: "PreTrainedConfig",
    n_inputs: int,
    n_labels: int,
    flags: tuple[str, str] = ("--max_input_length", "--max_labels_length"),
) -> list[tuple[str, int, int]]:
    """(flags, the length they allow, the model's positions) for encoder and decoder, where the length is too large."""
    if config.is_encoder_decoder:
        asked = [("encoder", flags[0], n_inputs), ("decoder", flags[1], n_labels)]
    else:
        asked = [("decoder", " plus ".join(flags), n_inputs + n_labels)]
    lengths = [(what, length, _stated_positions(config, side)) for side, what, length in asked]
    return [(what, length, limit) for what, length, limit in lengths if limit and length > limit]


def _stated_positions(config: "PreTrainedConfig", side: str) -> int | None:
    """The maximum length of a sequence in the config, in tokens; None if it names none (relative positions)."""
    part = config.get_text_config(encoder=side == "encoder", decoder=side == "decoder")
    names = (f"max_{side}_position_embeddings", "max_position_embeddings", "max_seq_len")
    limits = (getattr(each, name, None) for each in (part, config) for name in names)
    return next((limit for limit in limits if isinstance(limit, int)), None)


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


def check_same_template(
    teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase", system_prompt: str | None
) -> None:
    """Raise UserError if the chat templates of two tokenizers do not write the same conversations."""
    for whose, tokenizer in (("teacher", teacher), ("student", student)):
        check_chat_template(tokenizer, is_encoder_decoder=False, whose=whose)
    theirs, ours = (ChatTemplate(tokenizer, system_prompt or "") for tokenizer in (teacher, student))
    pair = [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"}]
    for written in (ChatTemplate.opened, ChatTemplate.whole):
        conversations = [[*ours.system, *pair, *pair][: -1 if written is ChatTemplate.opened else None]]
        if written(theirs, conversations) != written(ours, conversations):
            raise UserError(
                "--student_name: teacher and student must share a chat template; they write "
                f"{shown(written(theirs, conversations)[0])} and {shown(written(ours, conversations)[0])}"
            )
