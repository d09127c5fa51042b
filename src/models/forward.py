"""One teacher-forced pass: logits of the valid target positions and of nothing else.

Shapes: B batch, S source, T target, L length of the sequence that reaches the output projection, N valid target
positions of the batch (row by row, left to right), V vocabulary, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.config.constants import IGNORE_INDEX
from src.data.batches import Batch


def target_logits(model: nn.Module, batch: Batch) -> Tensor:
    """(N, V) logits at the positions that predict a label, in the order of `target_labels(batch)`."""
    return teacher_forced(model, batch).logits


@dataclass(frozen=True)
class Output:
    """Of one forward pass: logits (N, V) at the positions that predict a label; hidden states (B, L, D) by stack.

    The hidden states of a stack ("enc", "dec") are those before its first layer, then after each, the last one with the
    stack's final norm; empty if not asked for. A decoder-only model has one stack, "dec".
    """

    logits: Tensor
    hidden: dict[str, tuple[Tensor, ...]]


def teacher_forced(model: nn.Module, batch: Batch, *, with_hidden_states: bool = False) -> Output:
    """One forward pass on a batch with labels.

    Padding never reaches the output projection: a hook hands it the N valid rows, so that no (B, T, V) tensor exists.
    `model` may be wrapped (data parallel); the hook sits on the stock model inside.
    """
    core = unwrapped(model)
    inputs, positions = teacher_forcing_inputs(core, batch)
    with _only_rows(core, positions) as selected:
        output = model(**inputs, use_cache=False, output_hidden_states=with_hidden_states)
    logits = output.logits if selected else output.logits[positions]
    if not with_hidden_states:
        return Output(logits, {})
    if core.config.is_encoder_decoder:
        return Output(logits, {"enc": output.encoder_hidden_states, "dec": output.decoder_hidden_states})
    return Output(logits, {"dec": output.hidden_states})


def read_positions(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """By stack ("enc", "dec"), the positions (B, L) that hold a token and not padding.

    Encoder-decoder: inputs in the encoder, labels in the decoder. Decoder-only: one stack, the whole sequence that is
    read (the last label is not).
    """
    valid = batch.labels != IGNORE_INDEX
    if unwrapped(model).config.is_encoder_decoder:
        return {"enc": batch.attention_mask.bool(), "dec": valid}
    followed = valid[:, 1:]  # a label is read if another one follows, in whatever batch its target is
    return {"dec": torch.cat([batch.attention_mask.bool(), followed], dim=1)}


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
    # The last context token predicts the first label; the last label predicts nothing and is not read.
    written = batch.labels[:, :-1].clamp_min(0)
    attention_mask = read_positions(core, batch)["dec"].long()
    inputs = {
        "input_ids": torch.cat([batch.input_ids, written], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp_min(0),
    }
    before = valid.new_zeros(len(valid), batch.input_ids.shape[1] - 1)
    return inputs, torch.cat([before, valid], dim=1)


def _shifted_labels(core: PreTrainedModel, labels: Tensor) -> Tensor:
    """(B, T) what the decoder reads: the token that `generate` starts with, then labels (B, T) without the last one.

    Not by the models' own methods: mBART's and PLBart's would start with a target's last token, which is its EOS here.
    """
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
