"""Losses over the vocabulary: values and gradients worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.distillation.token_losses import nucleus, token_divergence, token_nll

DOUBLE = torch.float64
P = torch.tensor([[0.5, 0.3, 0.2]], dtype=DOUBLE)
Q = torch.tensor([[0.25, 0.25, 0.5]], dtype=DOUBLE)
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """(N,) by the definition, of probabilities; 0 log 0 = 0."""
    return torch.xlogy(teacher, teacher).sum(-1) - torch.xlogy(teacher, student).sum(-1)


def gradient(loss, logits: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits).sum(), logits)[0]


@st.composite
def two_rows_of_logits(draw):
    """Logits (1, V) of a student and a teacher."""
    n = draw(st.integers(1, 8))
    rows = st.lists(st.floats(-8, 8), min_size=n, max_size=n)
    return torch.tensor([draw(rows)], dtype=DOUBLE), torch.tensor([draw(rows)], dtype=DOUBLE)


# ------------------------------------------------------------------------------------------------------------------ nll


def test_nll_of_known_distributions():
    labels = torch.tensor([0, 2, 1])
    logits = torch.cat([P, P, torch.zeros(1, 3, dtype=DOUBLE)]).log()
    logits[2] = 7.0  # uniform, whatever the constant
    expected = torch.tensor([-math.log(0.5), -math.log(0.2), math.log(3)], dtype=DOUBLE)
    torch.testing.assert_close(token_nll(logits, labels), expected)


def test_nll_gradient_is_softmax_minus_one_hot():
    expected = P - torch.tensor([[0.0, 1.0, 0.0]], dtype=DOUBLE)
    torch.testing.assert_close(gradient(lambda logits: token_nll(logits, torch.tensor([1])), P.log()), expected)


# ------------------------------------------------------------------------------------------------------------------- kl


def test_kl_is_of_the_teacher_from_the_student():
    expected = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / 0.25) + 0.2 * math.log(0.2 / 0.5)
    assert token_divergence(student=Q.log(), teacher=P.log()).item() == pytest.approx(expected, abs=1e-12)
    assert token_divergence(student=P.log(), teacher=Q.log()).item() != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_kl_at_a_temperature_is_that_of_the_tempered_distributions_times_its_square(temperature):
    student, teacher = Q.log() * 3, P.log() - 4
    expected = temperature**2 * kl((teacher / temperature).softmax(-1), (student / temperature).softmax(-1))
    torch.testing.assert_close(token_divergence(student, teacher, temperature), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_kl_gradient_is_temperature_times_the_difference_of_probabilities(temperature):
    student, teacher = Q.log() * 3, P.log()
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    torch.testing.assert_close(
        gradient(lambda logits: token_divergence(logits, teacher, temperature), student), expected
    )


def test_kl_at_a_high_temperature_compares_centred_logits():
    """Hinton et al. (2015), section 2.1: T² KL goes to Σ (centred difference)² / 2V."""
    student, teacher = torch.tensor([[[1.0, -2.0, 0.5, 3.0]], [[0.0, 1.0, 2.0, -1.0]]], dtype=DOUBLE)
    difference = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(token_divergence(student, teacher, 1e4), (difference**2).sum(-1) / 8, rtol=1e-3, atol=0)


@PROPERTY
@given(two_rows_of_logits(), st.sampled_from([0.5, 1.0, 3.0]), st.floats(-50, 50))
def test_kl_is_never_negative_and_no_constant_matters(logits, temperature, constant):
    student, teacher = logits
    value = token_divergence(student, teacher, temperature)
    assert value.item() >= -1e-12
    torch.testing.assert_close(token_divergence(student + constant, teacher - constant, temperature), value)


@PROPERTY
@given(two_rows_of_logits(), st.sampled_from([0.5, 1.0, 2.0]))
def test_kl_of_equal_models_is_zero_and_so_is_its_gradient(logits, temperature):
    _, teacher = logits
    assert token_divergence(teacher, teacher, temperature).abs().item() < 1e-12
    assert gradient(lambda student: token_divergence(student, teacher, temperature), teacher).abs().max() < 1e-12


# -------------------------------------------------------------------------------------------------------------- nucleus


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, 1), (0.39, 1), (0.41, 2), (0.6, 2), (0.75, 3), (0.89, 3), (0.91, 4), (1.0, 4)],
)
def test_the_nucleus_is_the_smallest_set_that_holds_the_mass(top_p, kept):
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=DOUBLE)
    largest_first = [1, 3, 2, 0]
    cut = nucleus(probabilities.log(), top_p)
    assert torch.isfinite(cut).nonzero()[:, 1].tolist() == sorted(largest_first[:kept])
    torch.testing.assert_close(cut[torch.isfinite(cut)], probabilities[torch.isfinite(cut)].log())


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_set_that_holds_exactly_the_mass_is_enough(dtype):
    probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=dtype)
    for top_p, kept in ((0.5, 1), (0.75, 2), (0.875, 3), (1.0, 4)):
        assert torch.isfinite(nucleus(probabilities.log2() * math.log(2), top_p)).sum() == kept


def test_the_nucleus_of_equals_holds_no_more_than_needed():
    assert torch.isfinite(nucleus(torch.zeros(1, 10, dtype=DOUBLE), 0.75)).sum() == 8


@PROPERTY
@given(two_rows_of_logits(), st.floats(0.01, 0.99))
def test_the_nucleus_holds_the_mass_and_would_not_without_any_of_its_tokens(logits, top_p):
    [teacher] = logits[1]
    inside = torch.isfinite(nucleus(logits[1], top_p)[0])
    probabilities = teacher.softmax(-1)
    mass = probabilities[inside].sum()
    assert mass >= top_p - 1e-9
    assert mass - probabilities[inside].min() < top_p + 1e-9
    assert inside.all() or probabilities[inside].min() >= probabilities[~inside].max()


def test_a_negative_temperature_compares_with_the_renormalized_nucleus_without_a_factor():
    """Top 0.7 of (0.5, 0.3, 0.2) is (0.5, 0.3), that is (5/8, 3/8); the student keeps its whole distribution."""
    expected = 0.625 * math.log(0.625 / 0.25) + 0.375 * math.log(0.375 / 0.25)
    assert token_divergence(Q.log(), P.log(), -0.7).item() == pytest.approx(expected, abs=1e-12)
    assert token_divergence(Q.log() + 3, P.log() - 2, -0.7).item() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_of_the_nucleus_pushes_all_other_tokens_down():
    expected = Q - torch.tensor([[0.625, 0.375, 0.0]], dtype=DOUBLE)
    got = gradient(lambda logits: token_divergence(logits, P.log(), -0.7), Q.log())
    torch.testing.assert_close(got, expected)


def test_a_nucleus_of_everything_is_plain_kl():
    torch.testing.assert_close(token_divergence(Q.log(), P.log(), -1.0), token_divergence(Q.log(), P.log()))


@pytest.mark.parametrize("temperature", [1.0, 2.0, -0.7])
def test_no_logits_are_changed_in_place(temperature):
    student, teacher = Q.log().requires_grad_(), P.log()
    before = student.detach().clone(), teacher.clone()
    token_divergence(student, teacher, temperature).sum().backward()
    assert torch.equal(student.detach(), before[0])
    assert torch.equal(teacher, before[1])


# ------------------------------------------------------------------------------------------ sizes, formats and extremes


@pytest.mark.parametrize("temperature", [1.0, 2.0, -0.7])
def test_of_two_vocabulary_sizes_the_first_entries_are_shared(temperature):
    """Padded embeddings differ in size inside one family of models; both sides are renormalized."""
    student, teacher = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    same = token_divergence(student[:, :5], teacher[:, :5], temperature)
    torch.testing.assert_close(token_divergence(student, teacher[:, :5], temperature), same)
    torch.testing.assert_close(token_divergence(student[:, :5], teacher, temperature), same)
    beyond = gradient(lambda logits: token_divergence(logits, teacher[:, :5], temperature), student)[:, 5:]
    assert not beyond.any()


@pytest.mark.parametrize("temperature", [1.0, 2.0, -0.9])
def test_float64_stays_and_smaller_formats_are_computed_in_float32(temperature):
    student, teacher = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    exact = token_divergence(student, teacher, temperature)
    labels = torch.tensor([0, 4, 8])
    assert exact.dtype == token_nll(student, labels).dtype == DOUBLE
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 0.1)):
        got = token_divergence(student.to(dtype), teacher.to(dtype), temperature)
        assert got.dtype == token_nll(student.to(dtype), labels).dtype == torch.float32
        torch.testing.assert_close(got.double(), exact, atol=tolerance, rtol=tolerance)
        rounded = token_divergence(student.to(dtype).double(), teacher.to(dtype).double(), temperature)
        torch.testing.assert_close(got.double(), rounded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, -0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_apart_logits_are_finite_with_finite_gradients(dtype, temperature):
    student = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [-300.0, 300.0, 0.0]], dtype=dtype)
    teacher = torch.tensor([[-1e4, 0.0, 1e4], [1e4, -1e4, 0.0], [-300.0, 300.0, 0.0]], dtype=dtype)
    value = token_divergence(student, teacher, temperature)
    assert torch.isfinite(value).all()
    assert value[2] == 0
    assert torch.isfinite(gradient(lambda logits: token_divergence(logits, teacher, temperature), student)).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0, -0.9])
def test_tokens_that_are_impossible_on_either_side_count_zero(temperature):
    """A model may mask the padding of its vocabulary with −inf."""
    student, teacher = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    impossible = torch.full((2, 2), -torch.inf, dtype=DOUBLE)
    masked_student, masked_teacher = torch.cat([student, impossible], -1), torch.cat([teacher, impossible], -1)
    expected = token_divergence(student, teacher, temperature)
    torch.testing.assert_close(token_divergence(masked_student, masked_teacher, temperature), expected)
    got = gradient(lambda logits: token_divergence(logits, masked_teacher, temperature), masked_student)
    torch.testing.assert_close(
        got[:, :4], gradient(lambda logits: token_divergence(logits, teacher, temperature), student)
    )
    assert not got[:, 4:].any()


def test_what_only_the_student_rules_out_is_infinitely_wrong():
    student = torch.tensor([[0.0, -torch.inf]])
    assert token_divergence(student, torch.zeros(1, 2)).item() == math.inf


def test_no_rows_give_no_losses():
    assert token_divergence(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)
    assert token_divergence(torch.zeros(0, 5), torch.zeros(0, 5), -0.9).shape == (0,)
    assert token_nll(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).shape == (0,)
