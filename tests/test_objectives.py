"""Objectives: how rows become a loss, what a window of micro-batches adds up to, and what the teacher gives."""

import dataclasses

import pytest
import torch
from conftest import FAMILY_NAMES
from test_forward import CONTEXTS, TARGETS, batch_for
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.config.constants import IGNORE_INDEX
from src.config.errors import UserError
from src.config.experiments import LossEntry
from src.data.batches import Batch
from src.distillation.losses import kl_rows
from src.distillation.objectives import OBJECTIVES, States, Targets, Window, check_supported, distillation_loss
from src.distillation.teachers import LiveTeacher
from src.models.families import Sizes
from src.models.forward import target_labels, target_logits
from src.models.loading import load_model
from src.models.students import build_from_scratch

FORWARD = LossEntry(name="forward", forward_weight=1.0)
LOGITS = LossEntry(name="logits", logits_weight=1.0)
BOTH = LossEntry(name="both", forward_weight=0.25, logits_weight=0.5, temperature=2.0)
NUCLEUS = LossEntry(name="nucleus", logits_weight=1.0, temperature=-0.9)
ENTRIES = (FORWARD, LOGITS, BOTH, NUCLEUS)
LENGTHS = (3, 1, 5)  # tokens of three targets
CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def labels_of(lengths, *, width: int | None = None) -> torch.Tensor:
    """(B, T) labels with -100 behind each row's length."""
    width = width or max(lengths)
    labels = torch.arange(len(lengths) * width).view(len(lengths), width) % 7
    return labels.masked_fill(torch.arange(width) >= torch.tensor(lengths)[:, None], IGNORE_INDEX)


def batch_with(labels: torch.Tensor) -> Batch:
    ones = torch.ones(len(labels), 2, dtype=torch.long)
    return Batch(ones, ones, labels, tuple(range(len(labels))))


def window_of(batch: Batch) -> Window:
    return Window(len(batch.rows), len(target_labels(batch)))


def two_states(n_rows: int, vocabulary: int = 7) -> tuple[States, States]:
    student, teacher = torch.randn(2, n_rows, vocabulary, generator=torch.Generator().manual_seed(0)).double()
    return States(student.requires_grad_()), States(teacher)


# ---------------------------------------------------------------------------------------------------------------- means


def test_kl_is_the_mean_over_a_targets_tokens_and_then_over_targets():
    batch = batch_with(labels_of(LENGTHS))
    student, teacher = two_states(sum(LENGTHS))
    rows = kl_rows(student.logits, teacher.logits).detach().split(LENGTHS)
    expected = sum(row.mean() for row in rows) / 3
    loss, _ = distillation_loss(student, teacher, batch, LOGITS, window_of(batch))
    torch.testing.assert_close(loss.detach(), expected)
    assert loss.item() != pytest.approx(torch.cat(rows).mean().item(), rel=1e-3)


def test_nll_is_the_mean_over_all_tokens():
    batch = batch_with(labels_of(LENGTHS))
    student, _ = two_states(sum(LENGTHS))
    loss, _ = distillation_loss(student, None, batch, FORWARD, window_of(batch))
    torch.testing.assert_close(loss, F.cross_entropy(student.logits, target_labels(batch)))


def test_targets_know_the_target_of_every_position():
    targets = Targets.of(batch_with(labels_of((2, 0, 3), width=4)))
    assert targets.lengths.tolist() == [2, 0, 3]
    assert targets.target_of_position.tolist() == [0, 0, 2, 2, 2]
    assert targets.labels.tolist() == [0, 1, 8 % 7, 9 % 7, 10 % 7]
    assert targets.sum_of_means(torch.tensor([1.0, 3.0, 4.0, 5.0, 9.0])).item() == 2 + 6


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_padded_columns_change_nothing_and_a_padded_row_adds_zero(entry):
    student, teacher = two_states(sum(LENGTHS))
    plain, wide = batch_with(labels_of(LENGTHS)), batch_with(F.pad(labels_of(LENGTHS), (0, 4), value=IGNORE_INDEX))
    expected, _ = distillation_loss(student, teacher, plain, entry, window_of(plain))
    same, _ = distillation_loss(student, teacher, wide, entry, window_of(plain))
    assert torch.equal(same, expected)
    with_empty = batch_with(torch.cat([plain.labels[:1], torch.full((1, 5), IGNORE_INDEX), plain.labels[1:]]))
    beside, _ = distillation_loss(student, teacher, with_empty, entry, window_of(plain))
    torch.testing.assert_close(beside, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, student.logits, retain_graph=True)[0] for loss in (beside, expected))
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_batch_of_padding_alone_is_zero_not_nan(entry):
    batch = batch_with(torch.full((2, 3), IGNORE_INDEX))
    student, teacher = two_states(0)
    loss, terms = distillation_loss(student, teacher, batch, entry, window_of(batch))
    loss.backward()
    assert loss.item() == 0
    assert all(term.item() == 0 for term in terms.values())
    assert student.logits.grad.shape == (0, 7)


# -------------------------------------------------------------------------------------------------------------- weights


def test_terms_are_weighed_and_reported_unweighed():
    batch = batch_with(labels_of(LENGTHS))
    student, teacher = two_states(sum(LENGTHS))
    window = window_of(batch)
    loss, terms = distillation_loss(student, teacher, batch, BOTH, window)
    nll, _ = distillation_loss(student, None, batch, FORWARD, window)
    tempered = dataclasses.replace(LOGITS, temperature=2.0)
    kl, _ = distillation_loss(student, teacher, batch, tempered, window)
    assert list(terms) == ["forward", "logits"]
    assert not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(terms, {"forward": nll.detach(), "logits": kl.detach()})
    torch.testing.assert_close(loss, 0.25 * nll + 0.5 * kl)
    assert loss.dtype == torch.float64


def test_a_weight_of_zero_computes_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("not asked for")

    monkeypatch.setitem(OBJECTIVES, "logits", refuse)
    batch = batch_with(labels_of(LENGTHS))
    _, terms = distillation_loss(two_states(9)[0], None, batch, FORWARD, window_of(batch))
    assert list(terms) == ["forward"]


@pytest.mark.parametrize("temperature", [1.0, 2.0, -0.9])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(temperature):
    """At a positive temperature; a nucleus still asks for the mass outside it."""
    batch = batch_with(labels_of(LENGTHS))
    student, _ = two_states(sum(LENGTHS))
    entry = dataclasses.replace(LOGITS, temperature=temperature)
    loss, _ = distillation_loss(student, States(student.logits.detach()), batch, entry, window_of(batch))
    loss.backward()
    if temperature > 0:
        assert abs(loss.item()) < 1e-12
        assert student.logits.grad.abs().max() < 1e-12
    else:
        assert 0 < loss.item() <= -torch.tensor(0.9).log().item() + 1e-9


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.fixture(scope="module")
def pairs(tiny_models) -> dict:
    """{family: (student, teacher)} with gradients of the student's alone."""
    return {
        family: (load_model(folders["student"]), LiveTeacher(load_model(folders["teacher"])))
        for family, folders in tiny_models.items()
    }


def gradients(model) -> dict[str, torch.Tensor]:
    made = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return made


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_shares_of_a_window_add_up_to_one_batch(pairs, family, entry):
    """Value and gradient, for micro-batches of unequal rows, tokens and widths, a short last one included."""
    student, teacher = pairs[family]
    contexts, targets = (*CONTEXTS, [13, 14]), (*TARGETS, [26, 27, 1])
    whole = batch_for(student, contexts, targets)
    window = window_of(whole)

    def share(first: int, last: int) -> float:
        batch = batch_for(student, contexts[first:last], targets[first:last])
        states = States(target_logits(student, batch))
        loss, terms = distillation_loss(states, teacher(batch), batch, entry, window)
        loss.backward()
        assert set(terms) == set(entry.weights)
        return loss.item()

    student.zero_grad()
    in_one = share(0, 4)
    expected = gradients(student)
    in_pieces = share(0, 3) + share(3, 4)
    torch.testing.assert_close(gradients(student), expected, **CLOSE)
    assert in_pieces == pytest.approx(in_one, rel=1e-5)
    one_by_one = sum(share(row, row + 1) for row in range(4))
    torch.testing.assert_close(gradients(student), expected, **CLOSE)
    assert one_by_one == pytest.approx(in_one, rel=1e-5)
    assert any(gradient.any() for gradient in expected.values())


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_padded_inputs_have_no_influence_on_loss_and_gradient(pairs, family):
    """The same rows beside a longer one whose labels are all padding."""
    student, teacher = pairs[family]
    plain = batch_for(student)
    beside = batch_for(student, (*CONTEXTS, [*range(5, 20)]), (*TARGETS, [IGNORE_INDEX] * 9))
    results = []
    for batch in (plain, beside):
        states = States(target_logits(student, batch))
        loss, _ = distillation_loss(states, teacher(batch), batch, BOTH, window_of(plain))
        loss.backward()
        results.append((loss.detach(), gradients(student)))
    torch.testing.assert_close(results[1], results[0], **CLOSE)


# -------------------------------------------------------------------------------------------------------------- teacher


def test_a_live_teacher_gives_its_logits_without_gradient_and_without_dropout():
    sizes = Sizes(vocab_size=40, pad_token_id=0, eos_token_id=1, d_model=16, d_ff=32, dropout=0.5)
    model = build_from_scratch("t5", sizes, seed=0).train()
    batch = batch_for(model)
    teacher = LiveTeacher(model)
    states = teacher(batch)
    assert not states.logits.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert torch.equal(teacher(batch).logits, states.logits)
    torch.testing.assert_close(states.logits, target_logits(model.eval(), batch))


def test_the_teachers_vocabulary_may_be_larger(pairs):
    """Its embeddings padded to a rounder number: the loss is over the shared tokens."""
    student, teacher = pairs["gpt2"]
    batch = batch_for(student)
    window = window_of(batch)
    ours, theirs = States(target_logits(student, batch).detach()), teacher(batch)
    padded = States(F.pad(theirs.logits, (0, 32), value=-3.0))
    plain, _ = distillation_loss(ours, theirs, batch, LOGITS, window)
    torch.testing.assert_close(distillation_loss(ours, padded, batch, LOGITS, window)[0], plain)


# -------------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (LossEntry(name="e", hidden_weight=1.0), ["hidden_weight"]),
        (LossEntry(name="e", logits_weight=0.5, attention_relation_weight=0.5), ["attention_relation_weight"]),
        (LossEntry(name="e", hidden_weight=0.5, loss_scale=True), ["hidden_weight", "loss_scale"]),
        (LossEntry(name="e", logits_weight=1.0, dropout=True), ["dropout"]),
        (LossEntry(name="e", logits_weight=1.0, generate_labels_weight=0.7), ["generate_labels_weight"]),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(entry, names):
    with pytest.raises(UserError) as caught:
        check_supported(entry)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("loss entry 'e': ")
    asked = message.removeprefix("loss entry 'e': ").partition(" cannot")[0]
    assert asked == ", ".join(names)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_what_can_be_computed_is_not_refused(entry):
    check_supported(entry)
    assert set(entry.weights) <= set(OBJECTIVES)
