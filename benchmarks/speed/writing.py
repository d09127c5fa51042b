"""Implementations of generation. Each takes a row's work and returns a function that generates and counts tokens.

Shapes: N targets, L new tokens.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.models import EOS, FIRST_WORD, PAD, Pairs, batch_of, trained_like
from benchmarks.speed.rows import Writing
from src.decoding.generate import write_tokens
from src.decoding.settings import TOP_P, decoding_of
from src.models.library_errors import quiet
from src.models.loading import fuse_gelu

Write = Callable[[], int]


def own_tokens(written: Tensor, eos: int = EOS) -> int:
    """Number of tokens in the rows (N, L) up to and including EOS."""
    ends = (written == eos).long()
    return int((ends.cumsum(dim=1) - ends == 0).sum())


def ours(work: Writing, device: torch.device, scratch: Path, pairs: Pairs = (), *, bf16: bool = False) -> Write:
    """Generation as in gen_main.py; `bf16`: with --mixed_precision bf16."""
    model, batch = fuse_gelu(trained_like(work)).to(device), batch_of(work, pairs).to(device)
    decoding = decoding_of(
        work.generation_type,
        num_beams=work.num_beams,
        targets_per_input=work.targets,
        max_new_tokens=work.max_new_tokens,
    )
    torch.manual_seed(0)

    def write() -> int:
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            return own_tokens(write_tokens(model, batch, decoding))

    return write


def generate(work: Writing, device: torch.device, scratch: Path, pairs: Pairs = ()) -> Write:
    """`generate` of transformers."""
    model, batch = trained_like(work).to(device), batch_of(work, pairs).to(device)
    chosen = {"num_beams": work.num_beams, "do_sample": False}
    if work.generation_type == "sampling":
        chosen = {"do_sample": True, "top_p": TOP_P, "top_k": 0}
    torch.manual_seed(0)

    def write() -> int:
        written = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=work.max_new_tokens,
            num_return_sequences=work.targets,
            **chosen,
        )
        return own_tokens(written[:, 1:])

    return write


def ctranslate2(work: Writing, device: torch.device, scratch: Path, pairs: Pairs = ()) -> Write:
    """CTranslate2 in float32, with the same weights, converted."""
    import ctranslate2 as engine

    folder, converted = scratch / "model", scratch / "converted"
    with quiet():
        trained_like(work).save_pretrained(folder)
        words = save_tokenizer(work.vocabulary, folder)
        engine.converters.TransformersConverter(str(folder)).convert(str(converted), force=True)
    threads = torch.get_num_threads()
    translator = engine.Translator(str(converted), device.type, compute_type="float32", intra_threads=threads)
    engine.set_random_seed(0)
    batch = batch_of(work, pairs)
    sources = [
        [words[i] for i in ids[mask.bool()]] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    chosen = {"beam_size": work.num_beams}
    if work.generation_type == "sampling":
        chosen = {"beam_size": 1, "sampling_topk": 0, "sampling_topp": TOP_P}

    def write() -> int:
        results = translator.translate_batch(
            sources,
            num_hypotheses=work.targets,
            max_decoding_length=work.max_new_tokens,
            return_end_token=True,
            **chosen,
        )
        return sum(len(hypothesis) for result in results for hypothesis in result.hypotheses)

    return write


def save_tokenizer(vocabulary: int, folder: Path) -> list[str]:
    """Save a tokenizer with one word per id, which the conversion needs, beside a model; return the words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(FIRST_WORD, vocabulary))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    names = {"pad_token": words[PAD], "eos_token": words[EOS], "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return words


WRITERS = {
    "ours": ours,
    "ours-bf16": partial(ours, bf16=True),
    "generate": generate,
    "ctranslate2": ctranslate2,
}
