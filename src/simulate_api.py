"""Stage: write the file that a completion or chat API would give, from a local model.

Shapes: N tokens written in a batch of completions, K most likely tokens, T tokens of one completion.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.api.simulated import (
    DIGITS,
    IMPOSSIBLE,
    RESULTS,
    GeneratedCompletion,
    GeneratedCompletions,
    api_columns,
    dataset_form,
    response_lines,
)
from src.config.constants import DEV_PPL, IGNORE_INDEX, STOP, TEXT, UNLABELED
from src.config.errors import UserError
from src.config.flags.generate import SimulateApiArguments
from src.data.schema import Datasets, is_training_split
from src.data.writers import write_datasets
from src.decoding.durable import DurableGeneration
from src.decoding.generate import behind_eos, finish_reasons
from src.decoding.generator import load_generator
from src.decoding.settings import decoding_of
from src.models.forward import target_labels, target_logits
from src.preflight.report import write_or_report
from src.runs.folder import RunFolder
from src.storage.atomic import atomic_write
from src.tokens.batch import Batch, pad_sequences
from src.tokens.order import chunks
from src.tokens.token_bytes import TokenBytes


class _SavedCompletion(msgspec.Struct):
    """A `GeneratedCompletion` in the progress file."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    ended: bool


def simulate(config: SimulateApiArguments, datasets: Datasets) -> Path:
    """Write completions of every row with their tokens and log-probabilities; returns the path of the file.

    Raises UserError for a mistake in flags, data or model.
    """
    return write_or_report(config, datasets, RESULTS[config.form], (DEV_PPL,), _prepare, _write)


def _write(config: SimulateApiArguments, generation: DurableGeneration, path: Path) -> str:
    """Generate all completions and write the file; returns a line on what it holds."""
    datasets = generation.datasets
    completions: GeneratedCompletions = {split: [[] for _ in columns[TEXT]] for split, columns in datasets.items()}
    for split, row, records in generation.results():
        completions[split][row] = [
            GeneratedCompletion(
                np.asarray(record["tokens"], np.int32), np.asarray(record["logprobs"], np.float32), record["ended"]
            )
            for record in records
        ]
    token_bytes = TokenBytes(generation.generator.tokenizer)
    datasets = api_columns(datasets, with_ids=config.id_column is not None)
    if config.form == "jsonl":
        with atomic_write(path) as file:
            file.writelines(response_lines(datasets, completions, token_bytes))
    else:
        write_datasets(path, dataset_form(config.form, datasets, completions, token_bytes))
    return f"{generation.n_targets} completions"


def _prepare(config: SimulateApiArguments, run: RunFolder, datasets: Datasets) -> DurableGeneration:
    """Check and load the model."""
    is_greedy = config.generation_type == "greedy"
    decoding = decoding_of(
        "beam_search" if is_greedy else config.generation_type,
        num_beams=1 if is_greedy else config.num_beams,
        targets_per_input=config.n_completions,
        max_new_tokens=config.max_labels_length,
        nucleus=config.nucleus,
    )
    generator = load_generator(config, decoding, datasets)
    generator.model.generation_config.forced_eos_token_id = None  # an API's completion that is cut has no EOS
    known = torch.tensor(sorted(generator.tokenizer.get_vocab().values()))

    def generate_batch(batch: Batch, k: int) -> list[dict[str, Any]]:
        tokens, settings = generator.generate(batch, k), generator.model.generation_config
        lengths = (~behind_eos(tokens, settings)).sum(dim=1).tolist()
        written = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
        ended = [reason == STOP for reason in finish_reasons(tokens, settings, config.max_labels_length)]
        records = []
        for rows in chunks(np.arange(len(written)), config.batch_size):
            part = slice(rows[0], rows[-1] + 1)
            labeled = _with_labels(batch, (rows // k).tolist(), written[part])
            with generator.accelerator.autocast():
                best, logprobs = top_logprobs(generator.model, labeled, known, min(config.top_logprobs, len(known)))
            if logprobs.isnan().any():
                raise UserError(f"{config.model_name}: its log-probabilities are NaN; try --mixed_precision no")
            records += _records(best, logprobs, written[part], ended[part])
        return records

    k_of = {  # completions are wanted where inputs are trained on
        split: config.n_completions if split == UNLABELED or is_training_split(split) else 1 for split in datasets
    }
    return DurableGeneration(config, run, datasets, k_of, generator, generate_batch, list[_SavedCompletion])


def _with_labels(batch: Batch, sources: list[int], written: list[list[int]]) -> Batch:
    """A batch of the inputs at rows `sources`, with the written tokens as labels, on the same device."""
    labels, _ = pad_sequences([np.asarray(row) for row in written], IGNORE_INDEX, on_the_left=False)
    rows = tuple(batch.rows[source] for source in sources)
    return Batch(batch.input_ids[sources], batch.attention_mask[sources], labels.to(batch.input_ids.device), rows)


def _records(tokens: Tensor, logprobs: Tensor, written: list[list[int]], ended: list[bool]) -> list[dict[str, Any]]:
    """`GeneratedCompletion`s as JSON values, from (N, K + 1) tokens and log-probabilities of the N tokens `written`."""
    rounded = np.round(logprobs.cpu().numpy().astype(np.float64), DIGITS) + 0.0  # -0.0 becomes 0.0
    records, start = [], 0
    for row, has_eos in zip(written, ended, strict=True):
        place = slice(start, start + len(row) - has_eos)
        records.append({"tokens": tokens[place].tolist(), "logprobs": rounded[place].tolist(), "ended": has_eos})
        start += len(row)
    return records


@torch.no_grad()
def top_logprobs(model: PreTrainedModel, batch: Batch, known: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """(N, K + 1) token ids and their log-probabilities: the K = `top` most likely, falling, then the label.

    N: the batch's labels. The distribution is the model's own over its whole vocabulary (temperature 1, no nucleus);
    known: (V′,) ids that the tokenizer has; only these are among the K.
    """
    logits = target_logits(model, batch).float()
    labels = target_labels(batch)[:, None]
    total = logits.logsumexp(dim=-1, keepdim=True)
    label_logits = logits.gather(1, labels)
    unknown = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    unknown[known.to(logits.device)] = False
    best = logits.masked_fill_(unknown, -torch.inf).topk(top, dim=-1)
    logprobs = torch.cat([best.values, label_logits], dim=1) - total
    return torch.cat([best.indices, labels], dim=1), logprobs.clamp_(min=IMPOSSIBLE, max=0)
