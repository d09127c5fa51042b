"""Teacher-forced forward passes: logits at the valid target positions only.

Shapes: B batch, S source, T target, L length of the sequence that reaches the output projection, N valid target
positions of the batch (row by row, left to right), V vocabulary, D width.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.config.constants import IGNORE_INDEX
from src.devices.data_parallel import is_sharded
from src.models.lazy_logits import LazyLogits, OutputProjection, agree, as_seen, output_projection
from src.tokens.batch import Batch
from src.tokens.order import least_padding

# The cost of a pass besides its tokens. PASS: in tokens, for reading weights and adding to their gradients (without and
# with gradients). LAUNCH: in tokens × weights, for launching kernels.
CPU_PASS, CPU_LAUNCH = (20, 40), 250_000_000  # benchmarks/updates.py
ACCELERATOR_PASS, ACCELERATOR_LAUNCH = (250, 500), 80_000_000_000  # estimated, not measured

_is_understood: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_n_weights: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


def target_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(N, V) logits at the positions that predict a label, in the order of `target_labels(batch)`."""
    return teacher_forced(model, batch).logits.logits


@dataclass(frozen=True)
class Output:
    """The output of one forward pass.

    logits: (N, V) at the positions that predict a label. hidden: by stack ("enc", "dec"; a decoder-only model has only
    "dec"), the hidden states (B, L, D) before the first layer and after each layer, the last one with the stack's final
    norm; empty if not asked for.
    """

    logits: LazyLogits
    hidden: dict[str, tuple[Tensor, ...]]


def teacher_forced(model: PreTrainedModel, batch: Batch, *, with_hidden_states: bool = False) -> Output:
    """One forward pass on a batch with labels.

    A hook takes the N valid rows before the output projection, so no (B, T, V) tensor is made, and no (N, V) tensor if
    `output_projection` describes the model's projection.
    """
    inputs, places = teacher_forcing_inputs(model, batch)
    projection = _tested_projection(model, batch)
    with _before_projection(model, places, n_passed=0 if projection else len(places)) as seen:
        output = model(**inputs, use_cache=False, output_hidden_states=with_hidden_states)
    if not seen:  # a model that names no projection
        logits = LazyLogits(output.logits.flatten(0, 1)[places])
    elif projection is not None:
        logits = replace(seen[0], projection=projection)
    else:
        logits = LazyLogits(output.logits)
    if not with_hidden_states:
        return Output(logits, {})
    if model.config.is_encoder_decoder:
        return Output(logits, {"enc": output.encoder_hidden_states, "dec": output.decoder_hidden_states})
    return Output(logits, {"dec": output.hidden_states})


def lazy_target_logits(model: PreTrainedModel, batch: Batch) -> LazyLogits:
    """The logits (N, V) of `teacher_forced`, computed in several passes over rows of similar length.

    Half of a batch of random rows is padding; rows of similar length have little. There are as many passes as save
    more time than they cost.
    """
    device = batch.input_ids.device
    on_cpu = device.type == "cpu"
    parts = least_padding(batch.lengths.inputs, batch.lengths.labels, _cost_of_pass(model, on_cpu=on_cpu))
    if len(parts) == 1 or is_sharded(model):
        return teacher_forced(model, batch).logits
    _tested_projection(model, batch)
    with _one_lookup(model, batch) if on_cpu and torch.is_grad_enabled() else nullcontext():
        logits = [teacher_forced(model, batch.part(rows)).logits for rows in parts]
    order = np.concatenate(parts)
    row_of = order.repeat(batch.lengths.n_known[order])  # of each of the N positions, as the passes computed them
    places = torch.from_numpy(row_of.argsort(kind="stable")).to(device)
    return replace(logits[0], rows=torch.cat([part.rows for part in logits])[places])


def _cost_of_pass(model: PreTrainedModel, *, on_cpu: bool) -> int:
    """The cost of one more pass, in tokens."""
    if model not in _n_weights:
        _n_weights[model] = max(1, model.num_parameters(exclude_embeddings=True))
    per_pass, launch = (CPU_PASS, CPU_LAUNCH) if on_cpu else (ACCELERATOR_PASS, ACCELERATOR_LAUNCH)
    return per_pass[torch.is_grad_enabled()] + launch // _n_weights[model]


@contextmanager
def _one_lookup(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """Within: all passes share one lookup of the batch's tokens in the input embeddings.

    The gradient of a lookup is as large as the embeddings, however few tokens are looked up.
    """
    inputs, _ = teacher_forcing_inputs(model, batch)
    tokens = torch.cat(
        [inputs[name].flatten() for name in ("input_ids", "decoder_input_ids") if name in inputs]
    ).unique()
    tables: dict[nn.Module, Tensor] = {}

    def look_up(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if not torch.isin(args[0], tokens).all():
            return output
        if module not in tables:
            tables[module] = module.forward(tokens)
        return nn.functional.embedding(torch.searchsorted(tokens, args[0]), tables[module])

    weight = getattr(model.get_input_embeddings(), "weight", None)
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.weight is weight:
                hooks.callback(module.register_forward_hook(look_up).remove)
        yield


def read_positions(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Masks (B, L) by stack ("enc", "dec"), true for tokens and false for padding.

    Encoder-decoder: inputs in the encoder, labels in the decoder. Decoder-only: one stack, the sequence that is read,
    which ends before the last label.
    """
    valid = batch.known_labels != IGNORE_INDEX
    if model.config.is_encoder_decoder:
        return {"enc": batch.attention_mask.bool(), "dec": valid}
    followed = valid[:, 1:]  # a label is read if another one follows it
    return {"dec": torch.cat([batch.attention_mask.bool(), followed], dim=1)}


def target_labels(batch: Batch) -> Tensor:
    """(N,) the labels that are not padding, row by row."""
    return batch.known_labels.flatten()[batch.valid]


def teacher_forcing_inputs(model: PreTrainedModel, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """The arguments of a forward pass, and the indices (N,) in B · L of the outputs that predict a valid label."""
    if model.config.is_encoder_decoder:
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "decoder_input_ids": _shifted_labels(model, batch.known_labels),
        }
        return inputs, batch.valid
    # The last context token predicts the first label; the last label predicts nothing and is not read.
    written = batch.known_labels[:, :-1].clamp_min(0)
    attention_mask = read_positions(model, batch)["dec"].long()
    inputs = {
        "input_ids": torch.cat([batch.input_ids, written], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp_min(0),
    }
    n_before = batch.input_ids.shape[1] - 1
    n_labels = batch.known_labels.shape[1]
    return inputs, batch.valid + n_before * (batch.valid // n_labels + 1)


def _shifted_labels(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """(B, T) the decoder's input: the token that `generate` starts with, then the labels (B, T) without the last.

    The models' own methods differ: mBART's and PLBart's start with a target's last token, which is EOS here.
    """
    start = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE_INDEX, model.config.pad_token_id)


@contextmanager
def _before_projection(model: PreTrainedModel, places: Tensor, *, n_passed: int) -> Iterator[list[LazyLogits]]:
    """Within: the output projection gets only the first `n_passed` valid rows; the list holds all of them.

    The list stays empty for a model without `get_output_embeddings`. Raises ValueError for a projection whose input is
    not (B, L, D).
    """
    seen: list[LazyLogits] = []

    def select(_module: nn.Module, args: tuple) -> tuple:
        if args[0].dim() != 3:
            raise ValueError("its output projection does not read one state for each token")
        rows = args[0].flatten(0, 1)[places]
        seen.append(as_seen(rows))
        return (rows[:n_passed], *args[1:])

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


def _tested_projection(model: PreTrainedModel, batch: Batch) -> OutputProjection | None:
    """The model's `output_projection` if it computes the model's logits, else None.

    Tested once per model, on one row of a batch; the caller's random state is kept.
    """
    projection = output_projection(model)
    if projection is not None and model not in _is_understood:
        one = replace(batch, input_ids=batch.input_ids[:1], attention_mask=batch.attention_mask[:1])
        one = replace(one, labels=batch.known_labels[:1].clamp_min(0))
        inputs, places = teacher_forcing_inputs(model, one)
        devices = [places.device] if places.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            with _before_projection(model, places, n_passed=len(places)) as seen:
                expected = model(**inputs, use_cache=False).logits
            _is_understood[model] = agree(seen[0], projection, expected)
    return projection if _is_understood.get(model) else None
