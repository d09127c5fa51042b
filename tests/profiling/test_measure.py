"""What is measured: random tokens, targets of full length, and FLOPs as counted by hand."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from src.decoding.sampling_support import why_unsupported
from src.devices import memory as machine
from src.models.loading import load_model
from src.profiling.grid import Cell
from src.profiling.measure import Workload, times_of, write_full_length

CELL = Cell(input_length=6, target_length=5, num_beams=1)


@pytest.fixture(params=["t5", "bart", "gpt2", "llama"])
def model(tiny_models, request):
    return load_model(tiny_models[request.param]["teacher"])


def test_inputs_are_random_plain_tokens(model):
    batch = Workload(model, CELL, seed=1).batch(300)
    ids = model.generation_config
    assert batch.input_ids.shape == (300, 6)
    assert batch.labels.shape == (300, 5)
    assert batch.attention_mask.all()
    special = {ids.pad_token_id, ids.eos_token_id, ids.bos_token_id, ids.decoder_start_token_id} - {None}
    written = set(torch.cat([batch.input_ids, batch.labels], dim=1).flatten().tolist())
    assert written == set(range(model.config.vocab_size)) - special
    assert torch.equal(batch.input_ids, Workload(model, CELL, seed=1).batch(300).input_ids)
    assert not torch.equal(batch.input_ids, Workload(model, CELL, seed=2).batch(300).input_ids)


def test_targets_have_the_full_length(model):
    batch = Workload(model, CELL, seed=1).batch(2)
    model.generation_config.eos_token_id = list(range(model.config.vocab_size))
    assert Workload(model, CELL, seed=1).generate(batch).shape == (2, 1)
    write_full_length(model)
    for beams in (1, 3):
        assert Workload(model, Cell(6, 5, beams), seed=1).generate(batch).shape == (2, 5)


def test_models_that_generate_writes_for(model):
    """Also with settings that need an end of the text."""
    batch, ids = Workload(model, CELL, seed=1).batch(2), model.generation_config
    ids.renormalize_logits, ids.forced_eos_token_id = True, ids.eos_token_id
    ids.exponential_decay_length_penalty = (1, 1.5)
    write_full_length(model)
    assert why_unsupported(model) == "its generation config sets renormalize_logits"
    assert Workload(model, CELL, seed=1).generate(batch).shape == (2, 5)


def flops_by_hand(model, work) -> int:
    """Two for each weight of a linear layer and row; and two products of each attention."""
    counted = []

    def count(module, args, output):
        counted.append(2 * module.weight.numel() * args[0].numel() // args[0].shape[-1])

    handles = [each.register_forward_hook(count) for each in model.modules() if isinstance(each, nn.Linear | Conv1D)]
    work.forward(work.batch(1))
    for handle in handles:
        handle.remove()
    n_in, n_out, layers, width = work.cell.input_length, work.cell.target_length, 3, 32
    pairs = (n_in + n_out - 1) ** 2  # of positions
    if model.config.is_encoder_decoder:
        pairs = n_in * n_in + n_out * n_out + n_out * n_in
    return sum(counted) + layers * 2 * 2 * width * pairs


def test_flops(model):
    work = Workload(model, CELL, seed=1)
    assert work.flops() == flops_by_hand(model, work)


def test_forward_pass_reads_all_targets(model):
    logits = Workload(model, CELL, seed=1).forward(Workload(model, CELL, seed=1).batch(2))
    length = 5 if model.config.is_encoder_decoder else 10
    assert logits.shape == (2, length, model.config.vocab_size)


def test_times(monkeypatch):
    """The device is waited for on both sides of a call; warm-up calls are not timed."""
    events = []
    monkeypatch.setattr(machine, "wait_for", lambda _device: events.append("wait"))
    seconds = times_of(lambda: events.append("call"), torch.device("cpu"), n_calls=3, n_warmup=2)
    assert len(seconds) == 3
    assert events == ["wait", "call", "wait"] * 5
