"""Objectives on models: from states to a loss, sums over micro-batches, and the teachers."""

import dataclasses

import pytest
import torch
from conftest import FAMILY_NAMES
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.config.constants import IGNORE_INDEX
from src.config.divergences import DIVERGENCES
from src.config.errors import UserError
from src.config.experiments.schema import Experiment, LayerMap, LossEntry, Schedule
from src.distillation.capture import HeadStates, States, capture_states, check_comparable
from src.distillation.objectives import (
    OBJECTIVES,
    Window,
    distillation_loss,
    objective,
    target_lengths,
    term_names,
)
from src.distillation.teachers import LiveTeacher
from src.distillation.token_losses import token_divergence
from src.models.forward import target_labels, target_logits
from src.models.lazy_logits import LazyLogits
from src.models.loading import load_model
from src.models.new_models import ModelSizes, build_from_scratch, new_config
from src.tokens.batch import Batch
from tests.models.test_forward import CONTEXTS, TARGETS, batch_for

FORWARD = LossEntry(name="forward", forward_weight=1.0)
LOGITS = LossEntry(name="logits", logits_weight=1.0)
BOTH = LossEntry(name="both", forward_weight=0.25, logits_weight=0.5, temperature=2.0)
NUCLEUS = LossEntry(name="nucleus", logits_weight=1.0, temperature=-0.9)
HIDDEN = LossEntry(name="hidden", logits_weight=0.5, hidden_weight=0.5, kl_loss=True)
ATTENTION = LossEntry(name="attention", attention_relation_weight=1.0)
ALL = LossEntry(
    name="all", forward_weight=0.2, logits_weight=0.5, hidden_weight=0.3, attention_relation_weight=0.4, kl_loss=True
)
ENTRIES = (FORWARD, LOGITS, BOTH, NUCLEUS)
ROOTS = LossEntry(name="roots", hidden_weight=0.5, attention_relation_weight=0.5)
ON_MODELS = (BOTH, NUCLEUS, ALL, ROOTS)
LAST = LayerMap()
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
    return States(LazyLogits(student.requires_grad_())), States(LazyLogits(teacher))


# ---------------------------------------------------------------------------------------------------------------- means


def test_kl_is_the_mean_over_a_targets_tokens_and_then_over_targets():
    batch = batch_with(labels_of(LENGTHS))
    student, teacher = two_states(sum(LENGTHS))
    rows = token_divergence(student.logits.logits, teacher.logits.logits).detach().split(LENGTHS)
    expected = sum(row.mean() for row in rows) / 3
    loss, _ = distillation_loss(student, teacher, batch, LOGITS, window_of(batch))
    torch.testing.assert_close(loss.detach(), expected)
    assert loss.item() != pytest.approx(torch.cat(rows).mean().item(), rel=1e-3)


def test_nll_is_the_mean_over_all_tokens():
    batch = batch_with(labels_of(LENGTHS))
    student, _ = two_states(sum(LENGTHS))
    loss, _ = distillation_loss(student, None, batch, FORWARD, window_of(batch))
    torch.testing.assert_close(loss, F.cross_entropy(student.logits.logits, target_labels(batch)))


def test_label_smoothing_is_of_the_nll_alone():
    batch = batch_with(labels_of(LENGTHS))
    student, teacher = two_states(sum(LENGTHS))
    plain, _ = distillation_loss(student, teacher, batch, BOTH, window_of(batch))
    smooth, terms = distillation_loss(student, teacher, batch, BOTH, window_of(batch), label_smoothing=0.1)
    labels = target_labels(batch)
    of_nll = F.cross_entropy(student.logits.logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(terms["forward"], of_nll.detach())
    difference = BOTH.forward_weight * (of_nll - F.cross_entropy(student.logits.logits, labels))
    torch.testing.assert_close(smooth - plain, difference)


def test_every_position_knows_the_length_of_its_target():
    batch = batch_with(labels_of((2, 0, 3), width=4))
    assert target_lengths(batch).tolist() == [2, 2, 3, 3, 3]
    assert target_labels(batch).tolist() == [0, 1, 8 % 7, 9 % 7, 10 % 7]


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
        *(torch.autograd.grad(loss, student.logits.logits, retain_graph=True)[0] for loss in (beside, expected))
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_batch_of_padding_alone_is_zero_not_nan(entry):
    batch = batch_with(torch.full((2, 3), IGNORE_INDEX))
    student, teacher = two_states(0)
    loss, terms = distillation_loss(student, teacher, batch, entry, window_of(batch))
    loss.backward()
    assert loss.item() == 0
    assert all(term.item() == 0 for term in terms.values())
    assert student.logits.logits.grad.shape == (0, 7)


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
    loss, _ = distillation_loss(
        student, States(LazyLogits(student.logits.logits.detach())), batch, entry, window_of(batch)
    )
    loss.backward()
    if temperature > 0:
        assert abs(loss.item()) < 1e-12
        assert student.logits.logits.grad.abs().max() < 1e-12
    else:
        assert 0 < loss.item() <= -torch.tensor(0.9).log().item() + 1e-9


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.fixture(scope="module")
def pairs(tiny_models) -> dict:
    """{family: (student, teacher)} with gradients of the student's alone."""
    return {
        family: (load_model(folders["student"]), LiveTeacher(load_model(folders["teacher"]), LAST.of("teacher")))
        for family, folders in tiny_models.items()
    }


def learn(pair, batch: Batch, entry: LossEntry, window: Window, scales=None) -> tuple[float, dict[str, float]]:
    """The loss and its terms on a batch; gradients are added to the student's."""
    student, teacher = pair
    states = capture_states(student, batch, entry, LAST.of("student"))
    loss, terms = distillation_loss(states, teacher(batch, entry), batch, entry, window, scales or {})
    loss.backward()
    return loss.item(), {name: term.item() for name, term in terms.items()}


def gradients(model) -> dict[str, torch.Tensor]:
    made = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return made


@pytest.mark.parametrize("entry", ON_MODELS, ids=lambda entry: entry.name)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_shares_of_a_window_add_up_to_one_batch(pairs, family, entry):
    """Value and gradient, for micro-batches of unequal rows, tokens and widths, a short last one included."""
    student, _ = pairs[family]
    contexts, targets = (*CONTEXTS, [13, 14]), (*TARGETS, [26, 27, 1])
    window = window_of(batch_for(student, contexts, targets))

    def share(first: int, last: int) -> float:
        return learn(pairs[family], batch_for(student, contexts[first:last], targets[first:last]), entry, window)[0]

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


@pytest.mark.parametrize("entry", [BOTH, ALL], ids=lambda entry: entry.name)
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_padded_inputs_have_no_influence_on_loss_and_gradient(pairs, family, entry):
    """Columns of padding, before or behind, in inputs and labels."""
    student, _ = pairs[family]
    plain = batch_for(student)
    side = (0, 3) if student.config.is_encoder_decoder else (3, 0)
    wide = Batch(
        F.pad(plain.input_ids, side, value=7),
        F.pad(plain.attention_mask, side, value=0),
        F.pad(plain.labels, (0, 2), value=IGNORE_INDEX),
        plain.rows,
    )
    student.zero_grad()
    results = [(learn(pairs[family], batch, entry, window_of(plain)), gradients(student)) for batch in (plain, wide)]
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_teacher_in_bfloat16_teaches_nearly_the_same(pairs, tiny_models, family):
    """--teacher_dtype bf16: every term within 3 % of the float32 teacher's, or 0.002; the student's part is float32."""
    student, _ = pairs[family]
    half = LiveTeacher(load_model(tiny_models[family]["teacher"], dtype=torch.bfloat16), LAST.of("teacher"))
    batch = batch_for(student)
    _, plain = learn(pairs[family], batch, ALL, window_of(batch))
    _, of_half = learn((student, half), batch, ALL, window_of(batch))
    assert of_half == pytest.approx(plain, rel=0.03, abs=0.002)
    assert of_half != plain
    assert of_half["forward"] == plain["forward"]
    student.zero_grad()


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_row_without_labels_teaches_no_words(pairs, family):
    """Beside the same rows: neither likelihood nor logits see it, however long its input is."""
    student, _ = pairs[family]
    plain = batch_for(student)
    beside = batch_for(student, (*CONTEXTS, [*range(5, 20)]), (*TARGETS, [IGNORE_INDEX] * 9))
    student.zero_grad()
    results = [(learn(pairs[family], batch, BOTH, window_of(plain)), gradients(student)) for batch in (plain, beside)]
    torch.testing.assert_close(results[1], results[0], **CLOSE)


# ---------------------------------------------------------------------------------------------------------------- terms


@pytest.mark.parametrize("entry", [ALL, ROOTS], ids=lambda entry: entry.name)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_terms_are_those_that_the_log_has_columns_for(pairs, family, entry):
    student, _ = pairs[family]
    batch = batch_for(student)
    _, terms = learn(pairs[family], batch, entry, window_of(batch))
    names = term_names(entry, is_encoder_decoder=student.config.is_encoder_decoder)
    assert sorted(terms) == sorted(names)
    assert all(value > 0 for value in terms.values()), "two random models differ in everything"


def test_term_names():
    hidden, attention = ("hidden_enc", "hidden_dec"), ("dec_sa", "dec_ca", "enc_sa")
    nine = tuple(f"{kind}_{part}" for kind in attention for part in "qkv")
    assert term_names(ALL, is_encoder_decoder=True) == ("forward", "logits", *hidden, *nine)
    three = ("dec_sa_q", "dec_sa_k", "dec_sa_v")
    assert term_names(ALL, is_encoder_decoder=False) == ("forward", "logits", "hidden_dec", *three)
    assert term_names(LOGITS, is_encoder_decoder=True) == ("logits",)


@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_a_scale_multiplies_its_term_before_the_mean(pairs, family):
    student, _ = pairs[family]
    batch = batch_for(student)
    window = window_of(batch)
    _, terms = learn(pairs[family], batch, ATTENTION, window)
    scales = {name: 2.0 + place for place, name in enumerate(terms) if place % 2}
    loss, noted = learn(pairs[family], batch, ATTENTION, window, scales)
    assert noted == terms
    assert loss == pytest.approx(sum(scales.get(name, 1) * value for name, value in terms.items()) / len(terms))


@pytest.mark.parametrize(
    ("entry", "hidden", "heads"),
    [(FORWARD, 0, 0), (LOGITS, 0, 0), (HIDDEN, 2, 0), (ATTENTION, 0, 9), (ALL, 2, 9)],
    ids=lambda value: getattr(value, "name", None),
)
def test_only_what_an_entry_compares_is_kept(pairs, entry, hidden, heads):
    student, _ = pairs["t5"]
    states = capture_states(student, batch_for(student), entry, LAST.of("student"))
    assert (len(states.hidden), len(states.heads)) == (hidden, heads)
    projections = [module for name, module in student.named_modules() if name.endswith((".q", ".k", ".v"))]
    assert len(projections) == 3 * (2 + 2 + 2)
    assert not any(module._forward_hooks for module in projections), "no hook stays behind"


def test_the_keys_of_a_cross_attention_are_positions_of_the_encoder():
    """Its queries are positions of the decoder, all of them: nothing of the cross-attention is causal."""
    generator = torch.Generator().manual_seed(0)
    batch = batch_with(torch.tensor([[3, 4, 1]]))
    positions = {"enc": torch.tensor([[True] * 4 + [False]]), "dec": torch.ones(1, 3, dtype=torch.bool)}
    lengths = {"dec_ca_q": 3, "dec_ca_k": 5, "dec_ca_v": 5}

    def states(width: int, n_heads: int) -> States:
        heads = {name: torch.randn(1, length, width, generator=generator).double() for name, length in lengths.items()}
        logits = torch.zeros(3, 7, dtype=torch.float64)
        return States(
            LazyLogits(logits), {}, {name: HeadStates(each, n_heads) for name, each in heads.items()}, positions
        )

    student, teacher = states(4, 1), states(6, 2)
    _, terms = distillation_loss(student, teacher, batch, ATTENTION, window_of(batch))
    for name, valid in (("dec_ca_q", 3), ("dec_ca_k", 4), ("dec_ca_v", 4)):
        ours, theirs = (each.heads[name].states[0, :valid] for each in (student, teacher))
        roots = [
            (a @ a.T / 2**0.5 - b @ b.T / 3**0.5).square().mean().sqrt()  # two heads of two and of three dimensions
            for a, b in zip(ours.chunk(2, -1), theirs.chunk(2, -1), strict=True)
        ]
        torch.testing.assert_close(terms[name], sum(roots) / 2)


def test_a_new_objective_is_one_function(monkeypatch):
    """Registered under the name of its weight, it is weighed, scaled and noted as any other."""
    monkeypatch.setitem(OBJECTIVES, "hidden", None)  # put back afterwards

    @objective("hidden")
    def two_terms(student, teacher, entry):
        of_targets = torch.stack([part.sum() for part in student.logits.logits.split(LENGTHS)])
        return {"one": of_targets, "two": of_targets * 3}

    batch = batch_with(labels_of(LENGTHS))
    student, teacher = two_states(sum(LENGTHS))
    entry = LossEntry(name="mine", hidden_weight=1.0)
    loss, terms = distillation_loss(student, teacher, batch, entry, window_of(batch), {"two": 5.0})
    assert list(terms) == ["one", "two"]
    torch.testing.assert_close(loss, student.logits.logits.sum() * (1 + 3 * 5) / 2 / len(LENGTHS))


def test_a_new_divergence_is_one_function(new_divergence):
    """Reverse KL (Gu et al., 2024), in no fused form, beside the NLL."""
    batch = batch_with(labels_of(LENGTHS))
    student, teacher = two_states(sum(LENGTHS))
    entry = LossEntry(name="mine", forward_weight=0.5, divergences=(("reverse_kl", 2.0),))
    loss, terms = distillation_loss(student, teacher, batch, entry, window_of(batch), {"reverse_kl": 3.0})
    rows = token_divergence(teacher.logits.logits, student.logits.logits)
    expected_kl = sum(part.mean() for part in rows.split(LENGTHS)) / len(LENGTHS)
    expected_nll = F.cross_entropy(student.logits.logits, target_labels(batch))
    torch.testing.assert_close(terms, {"forward": expected_nll.detach(), "reverse_kl": expected_kl.detach()})
    expected = 0.5 * expected_nll + 2 * 3 * expected_kl
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, student.logits.rows)[0] for each in (loss, expected)))


# -------------------------------------------------------------------------------------------------------------- teacher


@pytest.fixture
def forgetful():
    """A T5 with much dropout, in train mode."""
    sizes = ModelSizes(vocab_size=40, pad_token_id=0, eos_token_id=1, d_model=16, d_ff=32, dropout=0.5)
    return build_from_scratch("t5", sizes, seed=0).train()


def test_a_live_teacher_gives_its_states_without_gradient_and_without_dropout(forgetful):
    batch = batch_for(forgetful)
    teacher = LiveTeacher(forgetful, LAST.of("teacher"))
    states = teacher(batch, ALL)
    given = [states.logits.logits, *states.hidden.values(), *(each.states for each in states.heads.values())]
    assert not any(each.requires_grad for each in given)
    assert not any(parameter.requires_grad for parameter in forgetful.parameters())
    assert not forgetful.training
    assert torch.equal(teacher(batch, ALL).logits.logits, states.logits.logits)
    torch.testing.assert_close(states.logits.logits, target_logits(forgetful.eval(), batch))


def test_a_noisy_teacher_has_dropout_on_for_the_entries_that_want_it(forgetful):
    batch = batch_for(forgetful)
    teacher = LiveTeacher(forgetful, LAST.of("teacher"))
    noisy = dataclasses.replace(LOGITS, dropout=True)
    plain = teacher(batch, LOGITS).logits.logits
    torch.manual_seed(0)
    first, second = teacher(batch, noisy).logits.logits, teacher(batch, noisy).logits.logits
    torch.manual_seed(0)
    again = teacher(batch, noisy).logits.logits
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert not first.requires_grad
    assert torch.equal(teacher(batch, LOGITS).logits.logits, plain), "the noise ends with the entry"


def test_the_layers_are_each_models_own(pairs):
    """The student's second decoder layer from the end is its first, the teacher's is its second of three."""
    student, teacher = pairs["t5"]
    batch = batch_for(student)
    entry = dataclasses.replace(HIDDEN, logits_weight=0.0)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    for model, states in (
        (student, capture_states(student, batch, entry, {"enc_hidden": 1, "dec_hidden": -2})),
        (teacher.model, LiveTeacher(teacher.model, {"enc_hidden": 1, "dec_hidden": -2})(batch, entry)),
    ):
        output = model(**inputs, output_hidden_states=True)
        torch.testing.assert_close(states.hidden["enc"], output.encoder_hidden_states[1])
        torch.testing.assert_close(states.hidden["dec"], output.decoder_hidden_states[-2])


def test_the_teachers_vocabulary_may_be_larger(pairs):
    """Its embeddings padded to a rounder number: the loss is over the shared tokens."""
    student, teacher = pairs["gpt2"]
    batch = batch_for(student)
    window = window_of(batch)
    ours, theirs = States(LazyLogits(target_logits(student, batch).detach())), teacher(batch, LOGITS)
    padded = States(LazyLogits(F.pad(theirs.logits.logits, (0, 32), value=-3.0)))
    plain, _ = distillation_loss(ours, theirs, batch, LOGITS, window)
    torch.testing.assert_close(distillation_loss(ours, padded, batch, LOGITS, window)[0], plain)


# -------------------------------------------------------------------------------------------------------- what is asked


def config_of(family: str, *, n_layers: int = 2, d_model: int = 16, n_heads: int = 2):
    sizes = ModelSizes(40, 0, 1, n_encoder_layers=n_layers, n_decoder_layers=n_layers, d_model=d_model, n_heads=n_heads)
    return new_config(family, sizes)


def compare(entry: LossEntry, family: str = "t5", layers: LayerMap = LAST, **student) -> None:
    """Check a student against a teacher of three layers and four heads."""
    experiment = Experiment(key="x", name="x", layers=layers, schedule=Schedule(name="s"), losses=(LOGITS, entry))
    check_comparable(experiment, config_of(family, **student), config_of(family, n_layers=3, d_model=32, n_heads=4))


@pytest.mark.parametrize(
    ("entry", "family", "layers", "said"),
    [
        (HIDDEN, "t5", {"student_dec_hidden_layer": 3}, "student_dec_hidden_layer 3: the student's decoder has 2"),
        (HIDDEN, "t5", {"teacher_enc_hidden_layer": -5}, "teacher_enc_hidden_layer -5: the teacher's encoder has 3"),
        (ATTENTION, "bart", {"student_dec_ca_layer": 2}, "student_dec_ca_layer 2: the student's decoder has 2"),
        (ATTENTION, "t5", {"student_enc_sa_layer": -3}, "student_enc_sa_layer -3: the student's encoder has 2"),
        (ALL, "gpt2", {"teacher_dec_sa_layer": 3}, "teacher_dec_sa_layer 3: the teacher's decoder has 3"),
    ],
)
def test_a_layer_that_a_model_lacks_is_refused_by_name(entry, family, layers, said):
    with pytest.raises(UserError) as caught:
        compare(entry, family, LayerMap(**layers))
    assert str(caught.value) == f"experiment 'x': {said} layers"


@pytest.mark.parametrize(
    ("entry", "family", "layers"),
    [
        (ALL, "t5", {}),
        (HIDDEN, "t5", {"student_dec_hidden_layer": 2, "teacher_dec_hidden_layer": -4}),  # the embeddings count
        (HIDDEN, "t5", {"student_dec_sa_layer": 9}),  # not what this entry compares
        (ATTENTION, "t5", {"student_dec_hidden_layer": 9}),
        (ALL, "gpt2", {"student_enc_sa_layer": 9, "student_dec_ca_layer": 9}),  # it has neither
        (LOGITS, "t5", {"student_dec_sa_layer": 9}),
    ],
)
def test_what_can_be_compared_is_not_refused(entry, family, layers):
    compare(entry, family, LayerMap(**layers))
    assert set(entry.weights) <= {"forward", *OBJECTIVES, *DIVERGENCES}


def test_heads_that_cannot_be_regrouped_are_refused():
    with pytest.raises(UserError, match="--student_name: queries of dec_sa have 18 dimensions, .* teacher's 4 heads"):
        compare(ATTENTION, d_model=18)
    compare(HIDDEN, d_model=18)


def test_a_decoder_only_model_is_said_to_have_no_cross_attention(capsys):
    compare(ATTENTION, "opt")
    assert "no encoder and no cross-attention terms" in "".join(capsys.readouterr())
    compare(LOGITS, "opt")
    compare(ATTENTION, "t5")
    assert "cross-attention" not in "".join(capsys.readouterr())
