"""Student tokenizers with a fixed vocabulary, one of each kind, and model folders that hold them."""

from collections.abc import Sequence
from pathlib import Path

from conftest import tiny_sizes
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from src.models.folders import write_model_folder
from src.models.new_models import build_from_scratch
from src.tokens.preprocessing import Preprocessor

UNCUT = 2**30
FAMILY = {"unigram": "t5", "bytes": "gpt2"}


def unigram(pieces: Sequence[str], *, byte_fallback: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's way: `▁` before words, EOS at the end; all lower-case letters are pieces too."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!'"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    scores = dict.fromkeys(("<pad>", "</s>", "<unk>"), 0.0) | dict.fromkeys(fallback, -20.0)
    scores |= dict.fromkeys(letters, -9.0) | dict.fromkeys(pieces, -2.0)
    backend = Tokenizer(models.Unigram(list(scores.items()), unk_id=2, byte_fallback=byte_fallback))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_level(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """GPT-2's way: all 256 bytes, and the pieces (`Ġcat`), each with the merges from its left end on."""
    vocabulary = {"</s>": 0} | {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)}
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        for n in range(1, len(piece)):
            if piece[: n + 1] not in vocabulary:
                merges.append((piece[:n], piece[n]))
                vocabulary[piece[: n + 1]] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="</s>", eos_token="</s>")


def wordpiece(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """BERT's way: lower case, `##` before what goes on with a word, punctuation apart; all letters are pieces too."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["[PAD]", "[UNK]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *".,?!'", "##.", *pieces]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", eos_token="[SEP]", unk_token="[UNK]")


def preprocessor(tokenizer: PreTrainedTokenizerFast, *, is_encoder_decoder: bool) -> Preprocessor:
    return Preprocessor(tokenizer, is_encoder_decoder, max_input_length=UNCUT, max_labels_length=UNCUT)


def model_folder(folder: Path, tokenizer: PreTrainedTokenizerFast, family: str) -> str:
    """A folder that --student_name opens; its weights are never read here."""
    model = build_from_scratch(family, tiny_sizes(tokenizer, d_model=8, n_layers=1), seed=0)
    return str(write_model_folder(folder, model, tokenizer, "A test's.\n"))
