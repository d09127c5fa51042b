"""Students: models with fewer layers, new small models with random weights, their tokenizers and model folders.

Shapes: N layers of a model, n ≤ N layers kept.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from src.config.errors import UserError
from src.models.families import PER_LAYER_KEYS, Sizes, family_of, family_to_build, layer_counts, set_layer_counts
from src.storage.atomic import whole_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
BYTES_FROM = 1024  # from this vocabulary size on all 256 bytes have a token, so that no text is ever unknown
SCORE_DIGITS = 6  # of a Unigram token's log-probability; sums over hash maps vary behind them
REQUIRED_CHARACTER_STEP = 1e-4  # between the scores of characters that are kept only to cover the text


# ------------------------------------------------------------------------------------------------------ fewer layers


def spaced_layers(n_total: int, n_keep: int) -> tuple[int, ...]:
    """`n_keep` of `n_total` layers as far apart as possible, first and last included (the first alone if one is kept).

    Maximally spaced layers are the usual start of a shallow student (Shleifer & Rush 2020, arXiv 2010.13002).
    """
    if not 1 <= n_keep <= n_total:
        raise UserError(f"cannot keep {n_keep} layers of {n_total}")
    if n_keep == 1:
        return (0,)
    return tuple((i * (n_total - 1) + (n_keep - 1) // 2) // (n_keep - 1) for i in range(n_keep))


def resolve_layers(layers: Sequence[int] | None, n_total: int, what: str) -> tuple[int, ...]:
    """Layer numbers in [0, n_total) in the order given; negative ones count from the end, None means all.

    `0 -1` of a single layer is that layer. Raises UserError for numbers out of range or written twice.
    """
    if layers is None:
        return tuple(range(n_total))
    for number in layers:
        if not -n_total <= number < n_total:
            raise UserError(f"{what} layer {number}: the model has {n_total}, 0 to {n_total - 1}")
    resolved = tuple(dict.fromkeys(number % n_total for number in layers))
    if not resolved or len(set(layers)) < len(layers) or (len(resolved) < len(layers) and n_total > 1):
        raise UserError(f"{what} layers {' '.join(map(str, layers))}: name each layer once, and at least one")
    return resolved


def pruned_config(
    config: "PreTrainedConfig", encoder_layers: Sequence[int] | None, decoder_layers: Sequence[int] | None
) -> "PreTrainedConfig":
    """A copy of `config` with the layer counts, and the lists with an entry per layer, of the layers kept."""
    n_layers = layer_counts(config)
    kept = _kept_layers(config, encoder_layers, decoder_layers)
    pruned = copy.deepcopy(config)
    for key in PER_LAYER_KEYS:
        entries = getattr(config, key, None)
        if isinstance(entries, list) and len(entries) == n_layers["decoder"]:
            setattr(pruned, key, [entries[number] for number in kept["decoder"]])
    set_layer_counts(pruned, {side: len(layers) for side, layers in kept.items()})
    return pruned


def prune(
    model: "PreTrainedModel", encoder_layers: Sequence[int] | None, decoder_layers: Sequence[int] | None
) -> "PreTrainedModel":
    """A model of the layers named (None: all), with copies of `model`'s weights and `model`'s mode.

    It is built from its own pruned config, so its saved folder reloads by itself, and caches count its layers from 0.
    What only a first layer has (T5's relative positions) stays with the first layer.
    Raises UserError for a layer that does not exist, or a family whose layout is not known.
    """
    family = family_of(model.config)
    kept = _kept_layers(model.config, encoder_layers, decoder_layers)
    paths = {"encoder": family.encoder_layers, "decoder": family.decoder_layers}
    places = {path: kept[side] for side, path in paths.items() if path}
    config = pruned_config(model.config, encoder_layers, decoder_layers)
    with torch.device("meta"):
        names = type(model)(config).state_dict().keys()
    source = model.state_dict()
    weights = {name: source[_source_name(name, places, source)].clone() for name in names}
    with quiet():
        pruned = saved_as_usual(type(model).from_pretrained(None, config=config, state_dict=weights, dtype=model.dtype))
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.config._name_or_path = model.config._name_or_path
    return pruned.to(model.device).train(model.training)  # type: ignore[arg-type]


def saved_as_usual(model: "PreTrainedModel") -> "PreTrainedModel":
    """A model whose weights were given under the names that they have in memory, to be saved under those of files.

    The library saves a model under the names that it was read by; other tools know only those of files.
    """
    if not getattr(model, "_weight_conversions", True):
        model._weight_conversions = None  # type: ignore[assignment]
    return model


def _kept_layers(
    config: "PreTrainedConfig", encoder: Sequence[int] | None, decoder: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    n_layers = layer_counts(config)
    if encoder is not None and not n_layers["encoder"]:
        raise UserError(f"encoder layers {' '.join(map(str, encoder))}: a {config.model_type} model has no encoder")
    named = {"encoder": encoder, "decoder": decoder}
    return {side: resolve_layers(named[side], n, side) for side, n in n_layers.items() if n}


def _source_name(name: str, places: dict[str, tuple[int, ...]], source: dict[str, torch.Tensor]) -> str:
    """The name, in the whole model, of a pruned model's tensor."""
    for path, kept in places.items():
        if name.startswith(path + "."):
            number, _, rest = name.removeprefix(path + ".").partition(".")
            old = f"{path}.{kept[int(number)]}.{rest}"
            return old if old in source else f"{path}.0.{rest}"
    return name


# ------------------------------------------------------------------------------------------------------- from scratch


def build_from_scratch(family: str, sizes: Sizes, *, seed: int) -> "PreTrainedModel":
    """A model of `family` with random weights that follow from `seed` alone; torch's random state is left as it was."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    described = family_to_build(family)
    head_size, rest = divmod(sizes.d_model, sizes.n_heads)
    if rest or (head_size % 2 and described.has_rotary_positions):
        even = "an even " if described.has_rotary_positions else "a whole "
        raise UserError(f"--n_heads {sizes.n_heads}: --d_model {sizes.d_model} must give each head {even}number")
    assert described.build_config is not None
    config = described.build_config(sizes)
    auto_class = AutoModelForSeq2SeqLM if described.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto_class.from_config(config).eval()


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, family: str) -> "PreTrainedTokenizerBase":
    """A tokenizer for a new model of `family`, trained on `texts`; `decode(encode(text)) == text` for them.

    Encoder-decoder: Unigram over words that keep their leading space, EOS closes every sequence. Decoder-only:
    byte-level BPE, nothing is added. From a vocabulary of 1,024 on every byte has a token; below, text with characters
    that `texts` lack holds `<unk>`. Equal texts give an equal tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    train = _train_unigram if family_to_build(family).is_encoder_decoder else _train_bpe
    texts = list(dict.fromkeys(text for text in texts if text.strip()))  # pseudo-targets repeat their inputs
    if not texts:
        raise UserError("no text to train a tokenizer on")
    backend = train(texts, vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNK, clean_up_tokenization_spaces=False
    )


def _train_unigram(texts: Sequence[str], vocab_size: int) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if vocab_size >= BYTES_FROM else []
    # One more than the characters (the space is one of them, written ▁): the trainer wants it.
    _check_vocab_size(vocab_size, len(set("▁").union(*texts) - {" "}) + len(byte_tokens) + 4)
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(byte_tokens), special_tokens=[PAD, EOS, UNK], unk_token=UNK, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    scores = _canonical_scores(dict(json.loads(trained.to_str())["model"]["vocab"]))
    pieces = sorted(scores.keys() - {PAD, EOS, UNK}, key=lambda token: (-scores[token], token))
    worst = min(scores.values())
    vocabulary = [(token, 0.0) for token in (PAD, EOS, UNK)]
    vocabulary += [(token, worst) for token in byte_tokens] + [(token, scores[token]) for token in pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=bool(byte_tokens)))
    backend.add_special_tokens([PAD, EOS, UNK])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
    )
    return backend


def _canonical_scores(scores: dict[str, float]) -> dict[str, float]:
    """Log-probabilities without what varies from run to run of the trainer, which walks through hash maps.

    Characters that it would have dropped get the lowest score plus 0, 1, 2 … × 0.0001 in the order of such a map
    (tokenizers, unigram/trainer.rs, `finalize`): they all get the lowest.
    """
    characters = {token for token in scores if len(token) == 1}
    worst = min(scores.values())
    highest_tied = worst + REQUIRED_CHARACTER_STEP * len(characters)
    return {
        token: round(worst if token in characters and score <= highest_tied else score, SCORE_DIGITS)
        for token, score in scores.items()
    }


def _train_bpe(texts: Sequence[str], vocab_size: int) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if vocab_size >= BYTES_FROM else [],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    _check_vocab_size(vocab_size, backend.get_vocab_size())
    return backend


def _check_vocab_size(vocab_size: int, n_needed: int) -> None:
    if vocab_size < n_needed:
        raise UserError(f"--vocab_size {vocab_size}: the characters of the text alone need {n_needed} entries")


# ------------------------------------------------------------------------------------------------------- model folders


def write_model_folder(
    folder: str | Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", card: str
) -> Path:
    """Write a portable model folder: safetensors, config, generation config, tokenizer, README.md.

    Whole or not at all; replaces a folder that is there.
    """
    folder = Path(folder)
    with whole_folder(folder) as building:
        with quiet():
            model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        (building / "README.md").write_text(card, encoding="utf-8")
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no loading reports of transformers; what matters in them is raised as an error."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
