"""Relations between positions: values by hand and by plain loops; effects of padding, equality and formats."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from src.distillation.relations import regrouped, related_positions, relation_kl, relation_rmse, relations

DOUBLE = torch.float64
COMPARISONS = (relation_kl, relation_rmse)
VALID = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
by_comparison = pytest.mark.parametrize("compare", COMPARISONS, ids=lambda compare: compare.__name__)
causal_or_not = pytest.mark.parametrize("causal", [False, True])


def random_states(*, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A student's (4, 2, 4, 3) and a teacher's (4, 2, 4, 5), for VALID."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 2, 4, d, generator=generator, dtype=DOUBLE) for d in (3, 5))
    return student * scale, teacher * scale


def gradient(compare, student: Tensor, teacher: Tensor, related: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(compare(student, teacher, related).sum(), student)[0]


def computed_in(dtype: torch.dtype) -> torch.dtype:
    return DOUBLE if dtype == DOUBLE else torch.float32


def columns(valid: list[bool], row: int, *, causal: bool) -> list[int]:
    return [column for column, holds in enumerate(valid) if holds and not (causal and column > row)]


def relation(states: Tensor, row: int, column: int) -> float:
    pairs = zip(states[row].tolist(), states[column].tolist(), strict=True)
    return sum(a * b for a, b in pairs) / math.sqrt(states.shape[-1])


def kl_by_loops(student: Tensor, teacher: Tensor, valid: list[bool], *, causal: bool) -> float:
    """Of one target: states (H, L, d) each; mean over heads and valid rows."""
    values = []
    for head, row in product(range(len(student)), range(len(valid))):
        if not valid[row]:
            continue
        p, q = (
            [math.exp(relation(states[head], row, column)) for column in columns(valid, row, causal=causal)]
            for states in (teacher, student)
        )
        values.append(sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)))
    return sum(values) / max(1, len(values))


def rmse_by_loops(student: Tensor, teacher: Tensor, valid: list[bool], *, causal: bool) -> float:
    """Of one target: states (H, L, d) each; mean over heads of the root of the mean over related pairs."""
    roots = []
    for ours, theirs in zip(student, teacher, strict=True):
        squares = [
            (relation(ours, row, column) - relation(theirs, row, column)) ** 2
            for row in range(len(valid))
            if valid[row]
            for column in columns(valid, row, causal=causal)
        ]
        roots.append(math.sqrt(sum(squares) / max(1, len(squares))))
    return sum(roots) / len(roots)


# -------------------------------------------------------------------------------------------------------------- by hand


def one_head(*rows: list[float]) -> Tensor:
    """(1, 1, L, d)"""
    return torch.tensor(rows, dtype=DOUBLE)[None, None]


def everywhere(length: int, *, causal: bool) -> Tensor:
    return related_positions(torch.ones(1, length, dtype=torch.bool), causal=causal)


def test_a_relation_is_a_dot_product_over_the_root_of_the_dimensions():
    got = relations(one_head([1.0, 1.0, 1.0, 1.0], [2.0, 0.0, -1.0, 0.0]))
    torch.testing.assert_close(got, torch.tensor([[[[2.0, 0.5], [0.5, 2.5]]]], dtype=DOUBLE))


@pytest.mark.parametrize(
    ("causal", "first_row"),
    [(False, math.log((1 + math.e) / 2) - 0.5), (True, 0.0)],  # causal: the first position sees itself alone
)
def test_kl_of_two_positions(causal, first_row):
    """Relations of the student [[1, 0], [0, 0]], of the teacher [[0, 0], [0, 1]], one softmax per row."""
    p = 1 / (1 + math.e)
    second_row = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    got = relation_kl(one_head([1.0], [0.0]), one_head([0.0], [1.0]), everywhere(2, causal=causal))
    assert got.tolist() == [pytest.approx((first_row + second_row) / 2, abs=1e-12)]


@pytest.mark.parametrize(("causal", "squares"), [(False, 2 / 4), (True, 2 / 3)])
def test_rmse_of_two_positions(causal, squares):
    """The difference [[1, 0], [0, −1]] over four related pairs, or over three."""
    got = relation_rmse(one_head([1.0], [0.0]), one_head([0.0], [1.0]), everywhere(2, causal=causal))
    assert got.tolist() == [pytest.approx(math.sqrt(squares), abs=1e-12)]


@by_comparison
def test_the_mean_is_over_heads(compare):
    """One head that differs beside one that does not: half, also of a root."""
    student, teacher = one_head([1.0], [0.0]), one_head([0.0], [1.0])
    related = everywhere(2, causal=False)
    alone = compare(student, teacher, related)
    beside = compare(torch.cat([student, teacher], 1), torch.cat([teacher, teacher], 1), related)
    torch.testing.assert_close(beside, alone / 2)


def test_kl_is_of_the_teacher_from_the_student():
    student, teacher = one_head([1.5], [0.0], [0.2]), one_head([0.0], [1.0], [1.0])
    related = everywhere(3, causal=False)
    p, q = (torch.softmax(relations(each), -1) for each in (teacher, student))
    expected = (p * (p / q).log()).sum(-1).mean()
    assert relation_kl(student, teacher, related).item() == pytest.approx(expected.item(), abs=1e-12)
    assert relation_kl(teacher, student, related).item() != pytest.approx(expected.item(), rel=1e-2)


# ------------------------------------------------------------------------------------------------------------- by loops


@causal_or_not
@pytest.mark.parametrize(("compare", "by_loops"), [(relation_kl, kl_by_loops), (relation_rmse, rmse_by_loops)])
def test_values_are_those_of_plain_loops(compare, by_loops, causal):
    """Full, padded on both sides, of one position, and empty: each target by its own rows and pairs."""
    student, teacher = random_states()
    got = compare(student, teacher, related_positions(VALID, causal=causal))
    cases = zip(student, teacher, VALID.tolist(), strict=True)
    expected = [by_loops(ours, theirs, valid, causal=causal) for ours, theirs, valid in cases]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=DOUBLE))
    assert got[0] != got[1]


@causal_or_not
@by_comparison
def test_gradients_are_those_of_small_differences(compare, causal):
    student, teacher = random_states()
    student, teacher = student[:2, :, :3, :2].requires_grad_(), teacher[:2, :, :3]
    related = related_positions(VALID[:2, :3], causal=causal)
    assert torch.autograd.gradcheck(lambda states: compare(states, teacher, related), student)


# ----------------------------------------------------------------------------------------------------------- degenerate


@causal_or_not
@by_comparison
def test_a_target_of_padding_alone_is_zero_and_so_is_its_gradient(compare, causal):
    student, teacher = random_states()
    related = related_positions(VALID, causal=causal)
    assert compare(student, teacher, related)[3] == 0
    got = gradient(compare, student, teacher, related)
    assert torch.equal(got[3], torch.zeros_like(got[3]))
    assert torch.isfinite(got).all()
    assert got[:2].any()


def test_one_position_has_one_relation():
    """Its softmax is 1, so that KL sees nothing; the root of the squared difference is the difference."""
    student, teacher = one_head([3.0, 1.0]), one_head([2.0])
    related = everywhere(1, causal=True)
    assert relation_kl(student, teacher, related).tolist() == [0]
    assert not gradient(relation_kl, student, teacher, related).any()
    assert relation_rmse(student, teacher, related).tolist() == [pytest.approx(abs(10 / math.sqrt(2) - 4))]
    expected = torch.tensor([[[[3.0, 1.0]]]], dtype=DOUBLE) * 2 / math.sqrt(2)
    torch.testing.assert_close(gradient(relation_rmse, student, teacher, related), expected)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16, torch.float16])
@causal_or_not
@by_comparison
def test_equal_models_are_at_zero_with_no_gradient(compare, causal, dtype):
    """A root has an infinite slope there."""
    student, _ = random_states()
    student = student.to(dtype)
    related = related_positions(VALID, causal=causal)
    assert torch.equal(compare(student, student.clone(), related), torch.zeros(4, dtype=computed_in(dtype)))
    got = gradient(compare, student, student.clone(), related)
    assert torch.isfinite(got).all()
    assert got.abs().max() < 1e-6


@pytest.mark.parametrize("distance", [1e-3, 1e-10, 1e-19, 1e-22, 1e-30])
def test_the_slope_of_a_root_stays_bounded_near_zero(distance):
    """As the slope of |x| is, down to what float32 squares to 0."""
    student, teacher = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
    student[..., 0] = math.sqrt(distance)
    got = gradient(relation_rmse, student, teacher, everywhere(3, causal=False))
    assert torch.isfinite(got).all()
    assert got.abs().max() <= 2 * math.sqrt(distance)


@causal_or_not
@by_comparison
def test_no_padded_position_has_influence(compare, causal):
    student, teacher = random_states()
    related = related_positions(VALID, causal=causal)
    padded = ~VALID[:, None, :, None]
    others = [states.masked_fill(padded, value) for states, value in ((student, 1e200), (teacher, -1e170))]
    assert torch.equal(compare(*others, related), compare(student, teacher, related))
    assert torch.equal(gradient(compare, *others, related), gradient(compare, student, teacher, related))


@by_comparison
def test_no_targets_give_no_values(compare):
    none = torch.zeros(0, 2, 4, 3)
    assert compare(none, none, torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0,)


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@causal_or_not
@by_comparison
def test_smaller_formats_are_computed_in_float32(compare, causal, dtype):
    student, teacher = (states.to(dtype) for states in random_states())
    related = related_positions(VALID, causal=causal)
    got = compare(student, teacher, related)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), compare(student.double(), teacher.double(), related), atol=1e-6, rtol=1e-5)
    assert gradient(compare, student, teacher, related).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@by_comparison
def test_relations_beyond_the_range_of_float16_are_finite(compare, dtype):
    student, teacher = (states.to(dtype) for states in random_states(scale=300.0))
    assert relations(student).max() > torch.finfo(torch.float16).max
    related = related_positions(VALID, causal=False)
    assert torch.isfinite(compare(student, teacher, related)).all()
    assert torch.isfinite(gradient(compare, student, teacher, related)).all()


def test_a_teacher_in_another_format_is_compared_as_it_is():
    student, teacher = random_states()
    related = related_positions(VALID, causal=True)
    mixed = relation_kl(student.float(), teacher.bfloat16(), related)
    torch.testing.assert_close(mixed, relation_kl(student.float(), teacher.bfloat16().float(), related))


# ------------------------------------------------------------------------------------------------- pairs and regrouping


@pytest.mark.parametrize(
    ("valid", "causal", "expected"),
    [
        ("111", False, ("111", "111", "111")),
        ("111", True, ("100", "110", "111")),
        ("110", False, ("110", "110", "000")),
        ("011", True, ("000", "010", "011")),
        ("101", True, ("100", "000", "101")),
        ("101", False, ("101", "000", "101")),
        ("000", False, ("000", "000", "000")),
        ("1", True, ("1",)),
    ],
)
def test_related_positions(valid, causal, expected):
    mask = torch.tensor([[digit == "1" for digit in valid]])
    got = related_positions(mask, causal=causal)
    assert got.dtype == torch.bool
    assert got[0].tolist() == [[digit == "1" for digit in row] for row in expected]


def test_each_target_has_its_own_related_positions():
    together = related_positions(VALID, causal=True)
    assert torch.equal(together, torch.cat([related_positions(row[None], causal=True) for row in VALID]))


@pytest.mark.parametrize(("n_heads", "heads"), [(1, [[0, 1, 2, 3, 4, 5]]), (2, [[0, 1, 2], [3, 4, 5]]), (3, None)])
def test_regrouping_cuts_the_width_in_order(n_heads, heads):
    states = torch.arange(12).view(1, 2, 6)
    got = regrouped(states, n_heads)
    assert got.shape == (1, n_heads, 2, 6 // n_heads)
    assert got[0, :, 0].tolist() == (heads or [[0, 1], [2, 3], [4, 5]])
    assert torch.equal(got[0, :, 1], got[0, :, 0] + 6)


def test_a_width_that_cannot_be_cut_is_an_error():
    with pytest.raises(RuntimeError, match="unflatten"):
        regrouped(torch.zeros(1, 2, 6), 4)
