"""One teacher-forced pass: logits of the valid target positions and of nothing else.

Shapes: B batch, S source, T target, L length of the sequence that reaches the output projection, N valid target
positions of the batch (row by row, left to right), V vocabulary, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.config.constants import IGNORE_INDEX
from src.data.batches import Batch


def target_logits(model: nn.Module, batch: Batch) -> Tensor:
    """(N, V) logits at the positions that predict a label, in the order of `target_labels(batch)`.

    Padding never reaches the output projection: a hook hands it the N valid rows, so that no (B, T, V) tensor exists.
    `model` may be wrapped (data parallel); the hook sits on the stock model inside.
    """
    core = unwrapped(model)
    inputs, positions = teacher_forcing_inputs(core, batch)
    with _only_rows(core, positions) as selected:
        logits = model(**inputs, use_cache=False).logits
    return logits if selected else logits[positions]


def target_labels(batch: Batch) -> Tensor:
    """(N,) the labels that are not padding, row by row."""
    return batch.labels[batch.labels != IGNORE_INDEX]


def teacher_forcing_inputs(core: PreTrainedModel, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """The forward arguments for `batch`, and the (B, L) mask of positions whose output predicts a valid label."""
    valid = batch.labels != IGNORE_INDEX
    if core.config.is_encoder_decoder:
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "decoder_input_ids": _shifted_labels(core, batch.labels),
        }
        return inputs, valid
    # The last context token predicts the first label; the last label predicts nothing and is not fed.
    written = batch.labels[:, :-1].clamp_min(0)
    attention_mask = torch.cat([batch.attention_mask, valid[:, :-1].long()], dim=1)
    inputs = {
        "input_ids": torch.cat([batch.input_ids, written], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp_min(0),
    }
    before = valid.new_zeros(len(valid), batch.input_ids.shape[1] - 1)
    return inputs, torch.cat([before, valid], dim=1)


def _shifted_labels(core: PreTrainedModel, labels: Tensor) -> Tensor:
    """(B, T) what the decoder reads: a start token, then labels (B, T) without the last one."""
    if hasattr(core, "prepare_decoder_input_ids_from_labels"):
        return core.prepare_decoder_input_ids_from_labels(labels=labels)
    # M2M-100 and Blenderbot shift inside `forward` only, and only together with a loss.
    start = labels.new_full((len(labels), 1), core.config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE_INDEX, core.config.pad_token_id)


def unwrapped(model: nn.Module) -> PreTrainedModel:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@contextmanager
def _only_rows(core: PreTrainedModel, positions: Tensor) -> Iterator[bool]:
    """Within: the output projection sees the rows of `positions`. Yields False for a model that names no projection."""
    head = core.get_output_embeddings()
    if head is None:
        yield False
        return
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][positions], *args[1:]))
    try:
        yield True
    finally:
        handle.remove()
