"""Fixtures for all tests: tiny offline models, tokenizers and a copy task that run in seconds on a CPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import json
import random
import signal
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings

from src.config.divergences import DIVERGENCES, divergence, expectation
from src.config.scripts import ARGUMENTS as ARGUMENTS
from src.models.folders import write_model_folder
from src.models.loading import load_tokenizer
from src.models.new_models import ModelSizes, build_from_scratch
from src.models.new_tokenizers import train_tokenizer

torch.set_num_threads(1)  # tiny matrices: a second thread only waits, on a busy machine for seconds
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what is behind "&" so; tests send it to scripts
    signal.signal(signal.SIGINT, signal.default_int_handler)

FAMILY_NAMES = ("t5", "bart", "gpt2", "opt", "llama")
ENCODER_DECODER_NAMES = ("t5", "bart")
DECODER_ONLY_NAMES = ("gpt2", "opt", "llama")
WORDS = ("the", "a", "red", "blue", "old", "new", "cat", "dog", "bird", "house", "sees", "likes", "finds", "near")
settings.register_profile("machines of any speed", deadline=None)
settings.load_profile("machines of any speed")

ALL_LETTERS = "summarize: modern: the quick brown fox, who jumps over (3) lazy dogs? It does!"
VOCAB_SIZE = 96


def tiny_sentences(n_sentences: int, *, seed: int) -> list[str]:
    """Sentences of three to six words of a small language, with a capital letter and a full stop."""
    rng = random.Random(seed)
    sentences = (" ".join(rng.choices(WORDS, k=rng.randint(3, 6))) for _ in range(n_sentences))
    return [sentence.capitalize() + "." for sentence in sentences]


def tiny_sizes(tokenizer, *, d_model: int, n_layers: int) -> ModelSizes:
    """A model without dropout, of `n_layers` layers on each side."""
    return ModelSizes(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        n_encoder_layers=n_layers,
        n_decoder_layers=n_layers,
        d_model=d_model,
        d_ff=2 * d_model,
        n_heads=2,
        dropout=0.0,
        max_position_embeddings=128,
    )


def pytest_collection_finish() -> None:
    """Garbage collection went through a million objects of libraries again and again: 5 % of the tests' time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)


def slow(*cases):
    """Values of a parameter (tuples: of several) that `make test` leaves out, because others test nearly the same."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


@pytest.fixture(scope="session")
def tiny_corpus() -> list[str]:
    """200 sentences, one with all lower-case letters, and the digits: no prompt and no number is unknown then."""
    return [*tiny_sentences(200, seed=0), ALL_LETTERS, string.digits]


@pytest.fixture(scope="session")
def tiny_models(tiny_corpus, tmp_path_factory) -> dict[str, dict[str, str]]:
    """{family: {"teacher": folder, "student": folder}} with random weights and one tokenizer per family.

    Teacher: 3 layers of width 32; student: 2 layers of width 16. Vocabulary: at most 96 tokens.
    """
    root = tmp_path_factory.mktemp("models")
    folders = {}
    for family in FAMILY_NAMES:
        tokenizer = train_tokenizer(tiny_corpus, VOCAB_SIZE, family=family)
        folders[family] = {}
        for seed, (role, d_model, n_layers) in enumerate((("teacher", 32, 3), ("student", 16, 2))):
            model = build_from_scratch(family, tiny_sizes(tokenizer, d_model=d_model, n_layers=n_layers), seed=seed)
            card = f"A tiny random {family} {role} for tests.\n"
            folders[family][role] = str(write_model_folder(root / f"{family}_{role}", model, tokenizer, card))
    return folders


@pytest.fixture(scope="session")
def tiny_tokenizers(tiny_models) -> dict:
    """{family: tokenizer}, as loaded from the teacher's folder. Do not change them."""
    return {family: load_tokenizer(folders["teacher"]) for family, folders in tiny_models.items()}


@pytest.fixture(scope="session")
def tiny_dataset() -> dict[str, dict[str, list[str]]]:
    """A copy task (target = text): 32 train, 8 dev, 8 test rows, 16 unlabeled inputs; no text is there twice."""
    texts = list(dict.fromkeys(tiny_sentences(400, seed=1)))
    splits, start = {}, 0
    for split, n_rows in (("train", 32), ("dev", 8), ("test", 8), ("unlabeled", 16)):
        rows = texts[start : start + n_rows]
        splits[split] = {"text": rows} if split == "unlabeled" else {"text": rows, "target": list(rows)}
        start += n_rows
    return splits


@pytest.fixture(scope="session")
def tiny_dataset_path(tiny_dataset, tmp_path_factory) -> str:
    """The copy task as a dataset file."""
    path = Path(tmp_path_factory.mktemp("data")) / "tiny.json"
    path.write_text(json.dumps(tiny_dataset), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def dropout_models(tiny_corpus, tmp_path_factory) -> dict[str, dict[str, str]]:
    """As `tiny_models`, for T5 and GPT-2 alone: one layer on each side, and dropout, as trained models have it."""
    root = tmp_path_factory.mktemp("dropout_models")
    folders = {}
    for family in ("t5", "gpt2"):
        tokenizer = train_tokenizer(tiny_corpus, VOCAB_SIZE, family=family)
        folders[family] = {}
        for seed, (role, d_model) in enumerate((("teacher", 32), ("student", 16))):
            sizes = replace(tiny_sizes(tokenizer, d_model=d_model, n_layers=1), dropout=0.1)
            model = build_from_scratch(family, sizes, seed=seed)
            folders[family][role] = str(write_model_folder(root / f"{family}_{role}", model, tokenizer, "A test's.\n"))
    return folders


@pytest.fixture(scope="session")
def rotation_path(tmp_path_factory) -> str:
    """A copy task with three training splits of 10, 9 and 8 rows, ft, dev, dev_ppl, test and unlabeled, as a file."""
    texts = iter(dict.fromkeys(tiny_sentences(400, seed=2)))
    sizes = {"train_0": 10, "train_1": 9, "train_2": 8, "ft": 6, "dev": 4, "dev_ppl": 3, "test": 4, "unlabeled": 5}
    datasets = {}
    for split, n_rows in sizes.items():
        rows = [next(texts) for _ in range(n_rows)]
        datasets[split] = {"text": rows} if split == "unlabeled" else {"text": rows, "target": list(rows)}
    path = Path(tmp_path_factory.mktemp("rotation")) / "rotation.json"
    path.write_text(json.dumps(datasets), encoding="utf-8")
    return str(path)


@pytest.fixture
def fresh_accelerator():
    """The number format is chosen once in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def new_divergence():
    """`reverse_kl`, as somebody would add it, and gone afterwards."""

    @divergence("reverse_kl", label="reverse KL", paper="Gu et al., 2024, arXiv 2306.08543")
    def reverse_kl(student, teacher):
        return expectation(student, student - teacher)

    yield reverse_kl
    del DIVERGENCES["reverse_kl"]
