"""Train a tokenizer for a new student."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from src.config.errors import UserError
from src.models.families import FAMILY_OF_TYPE

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
BYTES_FROM = 1024  # from this vocabulary size on, all 256 bytes have a token, so no text has unknown characters
SCORE_DIGITS = 6  # of a Unigram token's log-probability; later digits vary, as the trainer sums over hash maps
REQUIRED_CHARACTER_STEP = 1e-4  # between the scores of characters that are kept only to cover the text


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, family: str) -> "PreTrainedTokenizerBase":
    """Train a tokenizer for a new model of `family`; `decode(encode(text)) == text` for the training texts.

    Encoder-decoder: Unigram over words with their leading space, and EOS at the end of every sequence. Decoder-only:
    byte-level BPE without EOS. With a vocabulary of 1,024 or more, every byte has a token; with less, characters that
    are not in `texts` become `<unk>`. Equal texts give equal tokenizers. Raises UserError if there is no text, or if
    the vocabulary is too small for its characters.
    """
    from transformers import PreTrainedTokenizerFast

    train = _train_unigram if FAMILY_OF_TYPE[family].is_encoder_decoder else _train_bpe
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
    # The trainer needs one more than the characters; the space, written ▁, is one of them.
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
    """Log-probabilities that do not vary between runs of the trainer, which iterates over hash maps.

    The trainer gives characters that it would have dropped the lowest score plus 0, 1, 2 … × 0.0001, in the order of
    such a map (tokenizers, unigram/trainer.rs, `finalize`). Here all of them get the lowest score.
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
