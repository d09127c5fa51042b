"""Run a model on random tokens: generation and a forward pass, timed, with their memory and FLOPs.

Shapes: B inputs, S source tokens, T target tokens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel

from src.decoding.generate import write_tokens
from src.decoding.settings import decoding_of
from src.devices import memory as machine
from src.models.forward import teacher_forcing_inputs
from src.profiling.grid import Cell
from src.tokens.batch import Batch

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts that of a GPU alone


@dataclass(frozen=True)
class Workload:
    """A model with random inputs (B, S) and targets (B, T) for it; the same seed gives the same tokens."""

    model: PreTrainedModel
    cell: Cell
    seed: int

    def batch(self, size: int) -> Batch:
        """(B, S) inputs and (B, T) labels without padding and special tokens, on the model's device."""
        ids = _plain_tokens(self.model)
        generator = torch.Generator().manual_seed(self.seed)
        shape = (size, self.cell.input_length + self.cell.target_length)
        tokens = ids[torch.randint(len(ids), shape, generator=generator)]
        read, labels = tokens.split([self.cell.input_length, self.cell.target_length], dim=1)
        return Batch(read, torch.ones_like(read), labels, tuple(range(size))).to(self.model.device)

    def generate(self, batch: Batch) -> Tensor:
        """(B, T) tokens, written as an evaluation writes its predictions."""
        beams, length = self.cell.num_beams, self.cell.target_length
        decoding = decoding_of("beam_search", num_beams=beams, targets_per_input=1, max_new_tokens=length)
        return write_tokens(self.model, batch, decoding)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """The logits of the model's own forward pass on inputs and targets."""
        return self.model(**teacher_forcing_inputs(self.model, batch)[0], use_cache=False).logits

    def flops(self) -> int:
        """Floating-point operations of a forward pass on one input; a product and a sum are two."""
        batch = self.batch(1)
        with FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: _attention_flops}) as counter:
            self.forward(batch)
        return counter.get_total_flops()


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def write_full_length(model: PreTrainedModel) -> None:
    """Let no token end a text, so that all targets have the same length."""
    ids = model.generation_config
    ids.eos_token_id = ids.forced_eos_token_id = ids.exponential_decay_length_penalty = None


def _plain_tokens(model: PreTrainedModel) -> Tensor:
    """All token ids but those that pad, begin or end a text."""
    ids, config = model.generation_config, model.config
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    special = [getattr(each, name, None) for each in (ids, config) for name in names]
    is_plain = torch.ones(config.get_text_config().vocab_size, dtype=torch.bool)
    for tokens in special:
        if tokens is not None:
            is_plain[tokens] = False
    return is_plain.nonzero()[:, 0]


def times_of(call: Callable[[], object], device: torch.device, *, n_calls: int, n_warmup: int) -> list[float]:
    """Seconds of each call, after some that are not timed."""
    seconds = []
    for i in range(n_warmup + n_calls):
        machine.wait_for(device)
        start = time.perf_counter()
        call()
        machine.wait_for(device)
        if i >= n_warmup:
            seconds.append(time.perf_counter() - start)
    return seconds
