"""Implementations of an update and of sampling with saved models on rows of a dataset, beside plain transformers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from benchmarks.speed.learning import dense_step_with, textbook_loss, update_with
from benchmarks.speed.models import Pairs
from benchmarks.speed.rows import Pretrained
from benchmarks.speed.writing import own_tokens
from src.config.constants import IGNORE_INDEX, TARGET, TEXT
from src.config.experiments.schema import LossEntry
from src.data.formats import read_datasets
from src.data.references import references_of
from src.data.schema import training_splits
from src.decoding.generate import write_tokens
from src.decoding.settings import TOP_P, decoding_of
from src.models.loading import load_config, load_model, load_tokenizer
from src.tokens.batch import Batch, pad_sequences
from src.tokens.preprocessing import Preprocessor

ENTRY = LossEntry(name="bench", forward_weight=0.5, logits_weight=0.5)


def batch_of(work: Pretrained) -> Batch:
    """The first rows of the training split that fit the limits, as the scripts tokenize them."""
    tokenizer, config = load_tokenizer(work.teacher), load_config(work.teacher)
    preprocessor = Preprocessor(tokenizer, config.is_encoder_decoder, work.max_input_length, work.max_labels_length)
    datasets = read_datasets(work.dataset)
    columns = datasets[training_splits(datasets)[0]]
    inputs = preprocessor.encode_inputs(columns[TEXT][: work.rows]).tokens
    labels = preprocessor.encode_labels([references_of(each)[0] for each in columns[TARGET][: work.rows]]).tokens
    ids, mask = pad_sequences(
        [inputs[i] for i in range(work.rows)], tokenizer.pad_token_id, on_the_left=not config.is_encoder_decoder
    )
    targets, _ = pad_sequences([labels[i] for i in range(work.rows)], IGNORE_INDEX, on_the_left=False)
    return Batch(ids, mask, targets, tuple(range(work.rows)))


def ours(work: Pretrained, device: torch.device, scratch: Path, pairs: Pairs = ()) -> Callable[[], int]:
    batch, teacher = batch_of(work).to(device), load_model(work.teacher)
    if not work.targets:
        return partial(update_with(load_model(work.student), teacher, ENTRY, device), batch)
    teacher = teacher.to(device)
    decoding = decoding_of(
        "sampling", num_beams=1, targets_per_input=work.targets, max_new_tokens=work.max_labels_length
    )
    return lambda: own_tokens(write_tokens(teacher, batch, decoding), load_tokenizer(work.teacher).eos_token_id)


def transformers(work: Pretrained, device: torch.device, scratch: Path, pairs: Pairs = ()) -> Callable[[], int]:
    """Full logits in training, `generate` for samples; models as `from_pretrained` loads them, in float32."""
    batch, teacher = batch_of(work).to(device), _load(work.teacher)
    if not work.targets:
        student = _load(work.student)
        return dense_step_with(student, teacher, batch, partial(textbook_loss, entry=ENTRY), device)
    teacher, eos = teacher.to(device).eval(), load_tokenizer(work.teacher).eos_token_id
    n_read = 1 if teacher.config.is_encoder_decoder else batch.input_ids.shape[1]

    def write() -> int:
        written = teacher.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, do_sample=True, top_p=TOP_P, top_k=0,
            max_new_tokens=work.max_labels_length, num_return_sequences=work.targets,
        )  # fmt: skip
        return own_tokens(written[:, n_read:], eos)

    return write


def _load(folder: str) -> PreTrainedModel:
    kind = AutoModelForSeq2SeqLM if load_config(folder).is_encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32)


PRETRAINED = {"ours": ours, "transformers": transformers}
