"""Metric buffer: losses are logged without waiting for an accelerator at every step."""

import traceback
from pathlib import Path

import pytest
import torch
from conftest import slow
from torch.utils._python_dispatch import TorchDispatchMode

from src.config.errors import UserError
from src.config.experiments.schema import LossEntry
from src.distillation import fused_losses
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.distillation.teachers import LiveTeacher
from src.models.loading import load_model
from src.tokens.batch import Batch
from src.training.metric_buffer import MetricBuffer

CPU = torch.device("cpu")
ALL = LossEntry(name="all", forward_weight=0.2, logits_weight=0.5, hidden_weight=0.2, attention_relation_weight=0.1)
LAYERS = dict.fromkeys(("enc_hidden", "dec_hidden", "enc_sa", "dec_sa", "dec_ca"), -1)
READS = ("_local_scalar_dense", "nonzero", "masked_select", "item", "unique")  # a number that the host must know


class Moment:
    """Stands for an accelerator's event."""

    waited = 0

    def record(self):
        pass

    def synchronize(self):
        Moment.waited += 1


def buffer_of(*, accelerator: bool) -> MetricBuffer:
    made = MetricBuffer(CPU, lambda: "last good checkpoint: none yet")
    if accelerator:
        made._event = Moment
    return made


def note(buffer: MetricBuffer, *losses: float) -> None:
    for step, loss in enumerate(losses):
        buffer.record({"loss": torch.tensor(loss), "forward": torch.tensor(2 * loss)}, f"epoch 0, step {step}")


def test_on_a_cpu_nothing_is_left():
    buffer, sums = buffer_of(accelerator=False), {"forward": 1.0}
    note(buffer, 0.5, 1.5)
    buffer.add_to(sums, leave=1)
    assert sums == {"loss": 2.0, "forward": 5.0}


def test_on_an_accelerator_the_latest_are_read_later():
    buffer, sums = buffer_of(accelerator=True), {}
    note(buffer, 0.5, 1.5, 4.0)
    Moment.waited = 0
    buffer.add_to(sums, leave=2)
    assert (sums, Moment.waited) == ({"loss": 0.5, "forward": 1.0}, 1)
    buffer.add_to(sums)
    assert (sums, Moment.waited) == ({"loss": 6.0, "forward": 12.0}, 3)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_names_its_own_place(wrong):
    buffer, sums = buffer_of(accelerator=True), {}
    note(buffer, 0.5, wrong, 1.0)
    said = "^non-finite loss at epoch 0, step 1, forward -?(nan|inf); last good checkpoint: none yet$"
    with pytest.raises(UserError, match=said):
        buffer.add_to(sums)


def test_an_infinite_term_that_counts_nothing_is_no_mistake():
    buffer, sums = buffer_of(accelerator=False), {}
    buffer.record({"loss": torch.tensor(1.0), "logits": torch.tensor(torch.inf)}, "here")
    buffer.add_to(sums)
    assert sums == {"loss": 1.0, "logits": float("inf")}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_somebody_else_looks_at_may_be_anything(wrong):
    """The norm of a gradient that the scaler skips: no number, so it is in no sum, nor in the state that is saved."""
    buffer, sums = buffer_of(accelerator=False), {}
    for norm in (1.0, wrong, 2.0):
        buffer.record({"gradient_norm": torch.tensor(norm)}, "here", checked=None)
    buffer.add_to(sums)
    assert sums == {"gradient_norm": 3.0}


class Reads(TorchDispatchMode):
    """Notes every operation of ours whose result or shape depends on what is in a tensor.

    transformers looks once per mask whether there is padding at all; that is not ours to change.
    """

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 else ()
        by_mask = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices or ())
        callers = {Path(frame.filename).name for frame in traceback.extract_stack()}
        if (name in READS or by_mask) and "masking_utils.py" not in callers:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gpt2", *slow("t5", "bart", "llama")])
def test_a_step_waits_for_nothing(family, tiny_models, monkeypatch):
    """Padded rows of all kinds; where the rows are was found when the batch was made, on the host."""
    monkeypatch.setattr(fused_losses, "SYNCHRONOUS_DEVICES", ())
    student, teacher = (load_model(tiny_models[family][role]) for role in ("student", "teacher"))
    teach = LiveTeacher(teacher, LAYERS)
    mask = (
        torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
        if family in ("gpt2", "llama")
        else torch.tensor([[1] * 4, [1, 1, 0, 0]])
    )
    labels = torch.tensor([[5, 6, 7], [8, 1, -100]])
    batch = Batch(torch.full((2, 4), 9), mask, labels, (0, 1)).to(CPU)
    buffer = buffer_of(accelerator=True)

    def step() -> None:
        states = capture_states(student, batch, ALL, LAYERS)
        loss, terms = distillation_loss(states, teach(batch, ALL), batch, ALL, Window(2, 5))
        buffer.record({"loss": loss.detach(), **terms}, "here")
        loss.backward()

    step()  # the first looks into the models
    with Reads() as reads:
        step()
    assert reads.found == []
