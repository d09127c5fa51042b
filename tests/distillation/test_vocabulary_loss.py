"""Losses over the vocabulary, computed in chunks of rows, equal the plain losses, with all gradients."""

import math
from dataclasses import replace

import pytest
import torch

from src.distillation.fused_losses import nll_and_kl_, to_weights_
from src.distillation.token_losses import stored_token_divergence, token_divergence, token_nll
from src.distillation.vocabulary_loss import TokenLoss, weighted_sum
from src.models import lazy_logits
from src.models.lazy_logits import LazyLogits, OutputProjection
from src.tokens.batch import TopK

N, V, D, K = 23, 41, 6, 5
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.arange(N) * 7 % V
NLL = TokenLoss(lambda student, _, labels: token_nll(student, labels), random(N, seed=1).abs(), 0.7, fused="nll")


def kl(temperature: float = 1.0) -> TokenLoss:
    fused = "kl" if temperature > 0 else None
    per_row = random(N, seed=2).abs()
    return TokenLoss(lambda s, t, _: token_divergence(s, t, temperature), per_row, 1.3, fused, temperature)


def stored(**how) -> TokenLoss:
    return TokenLoss(lambda s, t, _: stored_token_divergence(s, t.ids, t.logs, **how), random(N, seed=2).abs(), 1.3)


def smoothed(nll: TokenLoss, epsilon: float) -> TokenLoss:
    """The definition: a share of the label's probability is spread over the vocabulary."""

    def compute(student, _, labels):
        logs = student.log_softmax(-1)
        return -(1 - epsilon) * logs.gather(1, labels[:, None])[:, 0] - epsilon * logs.mean(-1)

    return replace(nll, compute=compute, label_smoothing=epsilon)


LIVE = LazyLogits(random(N, 4, seed=5), OutputProjection(random(V, 4, seed=6), random(V, seed=7)))
LARGER = LazyLogits(random(N, 4, seed=5), OutputProjection(random(V + 3, 4, seed=6), random(V + 3, seed=7)))
SMALLER = LazyLogits(random(N, 4, seed=5), OutputProjection(random(V - 3, 4, seed=6)))
STORED = TopK(random(N, V, seed=8).topk(K).indices, random(N, K, seed=9).log_softmax(-1) - 0.1)
CASES = {
    "nll": (None, [NLL]),
    "nll, smoothed": (None, [smoothed(NLL, 0.1)]),
    "both, smoothed": (LIVE, [smoothed(NLL, 0.3), kl()]),
    "both at temperature 2, smoothed": (LIVE, [kl(2.0), smoothed(NLL, 0.3)]),
    "kl": (LIVE, [kl()]),
    "both": (LIVE, [NLL, kl()]),
    "both the other way round": (LIVE, [kl(), NLL]),
    "both at temperature 2": (LIVE, [NLL, kl(2.0)]),
    "kl at temperature 0.5": (LIVE, [kl(0.5)]),
    "nucleus": (LIVE, [NLL, kl(-0.8)]),
    "teacher's vocabulary larger": (LARGER, [NLL, kl()]),
    "teacher's vocabulary smaller": (SMALLER, [NLL, kl()]),
    "teacher as logits": (LazyLogits(random(N, V, seed=10)), [NLL, kl()]),
    "stored": (STORED, [NLL, stored()]),
    "stored, bucket": (STORED, [stored(missing_mass="bucket")]),
}
PROJECTIONS = {
    "no projection": None,
    "plain": {},
    "bias": {"bias": True},
    "soft cap": {"soft_cap": 2.0},
    "bias and soft cap": {"bias": True, "soft_cap": 2.0},
}


def student_of(kind: str) -> tuple[LazyLogits, list[torch.Tensor]]:
    """LazyLogits whose parts want gradients, and these parts."""
    how = PROJECTIONS[kind]
    if how is None:
        rows = random(N, V, seed=3).requires_grad_()
        return LazyLogits(rows), [rows]
    rows, weight = random(N, D, seed=3).requires_grad_(), random(V, D, seed=4).requires_grad_()
    bias = random(V, seed=11).requires_grad_() if how.get("bias") else None
    parts = [rows, weight] if bias is None else [rows, weight, bias]
    return LazyLogits(rows, OutputProjection(weight, bias, how.get("soft_cap"))), parts


def plain_sum(student: LazyLogits, teacher, terms) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, on all rows at once, by autograd."""
    taught = teacher.logits.detach() if isinstance(teacher, LazyLogits) else teacher
    values = torch.stack([(term.compute(student.logits, taught, LABELS) * term.weights).sum() for term in terms])
    return sum(term.factor * value for term, value in zip(terms, values, strict=True)), values


@pytest.fixture(params=[1, 4, 1000], ids=lambda rows: f"{rows} rows at once")
def chunk(request, monkeypatch):
    monkeypatch.setattr(lazy_logits, "CPU_CHUNK", request.param * V)
    monkeypatch.setattr(lazy_logits, "LEAST_ROWS", 1)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case, kind, chunk):
    teacher, terms = CASES[case]
    (student, parts), (same, same_parts) = student_of(kind), student_of(kind)
    total, values = weighted_sum(student, teacher, LABELS, terms)
    expected, expected_values = plain_sum(same, teacher, terms)
    torch.testing.assert_close(total, expected, **CLOSE)
    torch.testing.assert_close(values, expected_values.detach(), **CLOSE)
    (3 * total).backward()
    (3 * expected).backward()
    for ours, theirs in zip(parts, same_parts, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)


def test_label_smoothing_is_torchs():
    """Of the plain, the fused and the autograd form; without it, nothing is different from what it was."""
    rows = random(N, V, seed=3)
    expected = torch.nn.functional.cross_entropy(rows, LABELS, reduction="none", label_smoothing=0.2)
    weights = {"nll": torch.ones(N, dtype=torch.float64)}
    torch.testing.assert_close(token_nll(rows, LABELS, 0.2), expected, **CLOSE)
    for epsilon in (0.2, 0.0):
        losses, gradient = nll_and_kl_(rows.clone(), None, LABELS, weights, label_smoothing=epsilon)
        given = rows.clone().requires_grad_()
        plain = torch.nn.functional.cross_entropy(given, LABELS, reduction="none", label_smoothing=epsilon)
        plain.sum().backward()
        torch.testing.assert_close(losses["nll"], plain.detach(), **CLOSE)
        torch.testing.assert_close(gradient, given.grad, **CLOSE)


def test_gradients_by_differences():
    """Not by autograd: against finite differences."""

    def loss(rows, weight):
        return weighted_sum(LazyLogits(rows, OutputProjection(weight)), LIVE, LABELS, [NLL, kl(2.0)])[0]

    given = random(N, D, seed=3).requires_grad_(), random(V, D, seed=4).requires_grad_()
    torch.autograd.gradcheck(loss, given)


@pytest.mark.parametrize("case", ["both", "stored"])
def test_without_gradient_the_values_are_the_same(case):
    teacher, terms = CASES[case]
    student, _ = student_of("bias")
    expected = weighted_sum(student, teacher, LABELS, terms)
    with torch.no_grad():
        total, values = weighted_sum(student, teacher, LABELS, terms)
    assert not total.requires_grad
    torch.testing.assert_close((total, values), (expected[0].detach(), expected[1]))


def test_nothing_given_is_changed():
    """The fused form writes into its chunks, which must not be the caller's memory."""
    teacher, student = LazyLogits(random(N, V, seed=10)), LazyLogits(random(N, V, seed=3).requires_grad_())
    before = teacher.rows.clone(), student.rows.detach().clone()
    weighted_sum(student, teacher, LABELS, [NLL, kl(2.0)])[0].backward()
    assert torch.equal(teacher.rows, before[0])
    assert torch.equal(student.rows, before[1])


@pytest.mark.parametrize("kind", ["no projection", "plain", "bias"])
def test_no_rows(kind):
    student, parts = student_of(kind)
    empty = LazyLogits(student.rows[:0], student.projection)
    none = [TokenLoss(term.compute, term.weights[:0], term.factor, term.fused) for term in (NLL, kl())]
    total, values = weighted_sum(empty, LazyLogits(LIVE.rows[:0], LIVE.projection), LABELS[:0], none)
    total.backward()
    assert total.item() == 0
    assert values.tolist() == [0, 0]
    assert all(not part.grad.any() for part in parts)


def test_logits_of_minus_infinity():
    """A token that the teacher cannot write adds nothing; one that only the student cannot is infinitely wrong."""
    student, teacher = random(3, V, seed=1), random(3, V, seed=2)
    teacher[0, 5] = student[1, 6] = teacher[1, 6] = student[2, 7] = -torch.inf
    weights = {"kl": torch.ones(3, dtype=torch.float64)}
    expected = token_divergence(student, teacher)
    losses, gradient = nll_and_kl_(student.clone(), teacher.clone(), LABELS[:3], weights)
    torch.testing.assert_close(losses["kl"], expected)
    assert torch.isfinite(expected).tolist() == [True, True, False]
    assert torch.isfinite(gradient).all()


def test_not_a_number_stays_one():
    student = random(2, V)
    student[0, 3] = torch.nan
    losses, _ = nll_and_kl_(student, random(2, V, seed=2), LABELS[:2], {"kl": torch.ones(2, dtype=torch.float64)})
    assert torch.isnan(losses["kl"]).tolist() == [True, False]


def test_to_weights():
    logits = random(4, V) * 30
    weights = logits.clone()
    total, log_sum = to_weights_(weights)
    torch.testing.assert_close(weights / total[:, None], logits.softmax(-1))
    torch.testing.assert_close(log_sum, logits.logsumexp(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """As near the float32 gradients as the format allows, also where a mean's gradients are tiny in it."""
    tiny = [TokenLoss(term.compute, 1e-9 * term.weights.float(), term.factor, term.fused) for term in (NLL, kl())]
    rows, weight = random(N, D, seed=3).float().requires_grad_(), random(V, D, seed=4).float().requires_grad_()
    live = LazyLogits(LIVE.rows.float(), OutputProjection(LIVE.projection.weight.float()))
    made = {}
    for each in (torch.float32, dtype):
        total, _ = weighted_sum(LazyLogits(rows, OutputProjection(weight), each), live, LABELS, tiny)
        made[each] = (total.detach(), *torch.autograd.grad(total, [rows, weight]))
    for half, full in zip(made[dtype], made[torch.float32], strict=True):
        assert half.dtype == torch.float32
        assert full.abs().max() < 1e-6
        assert (half - full).abs().max() < 0.03 * full.abs().max()


def float16_and_float32(rows: torch.Tensor, weight: torch.Tensor, terms, labels, scale: float) -> list[list]:
    """The gradients of rows and weight, whose values float16 has, at a loss scale that is divided out again."""
    made = []
    for dtype in (torch.float16, torch.float32):
        parts = [each.half().float().requires_grad_() for each in (rows, weight)]
        total, _ = weighted_sum(LazyLogits(parts[0], OutputProjection(parts[1]), dtype), None, labels, terms)
        (scale * total).backward()
        made.append([each.grad / scale for each in parts])
    return made


def mean_nll(n: int, *, is_fused: bool = True, times: float = 1.0) -> TokenLoss:
    per_row = torch.full((n,), times / n)
    return TokenLoss(lambda s, _, labels: token_nll(s, labels), per_row, fused="nll" if is_fused else None)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("is_fused", [True, False])
def test_in_float16_sums_and_losses_beyond_its_range_have_gradients(scale, is_fused):
    """400 rows of 300 that are all wrong about one token: their sum is 120,000."""
    rows, weight, labels = (
        torch.full((400, D), 300.0),
        random(V, D, seed=4).float(),
        torch.zeros(400, dtype=torch.int64),
    )
    for times in (1.0, 1e6):
        terms = [mean_nll(400, is_fused=is_fused, times=times)]
        for half, full in zip(*float16_and_float32(rows, weight, terms, labels, scale), strict=True):
            assert torch.isfinite(half).all()
            torch.testing.assert_close(half, full, rtol=2e-3, atol=2e-3 * float(full.abs().max()))


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_in_float16_a_rare_token_has_a_gradient(scale):
    """Its probability, 1e-9 here, is none of float16's numbers, and neither is the gradient that it gives."""
    rows, weight = torch.ones(N, D), torch.zeros(V, D)
    weight[:2] = 20.7 / D
    (_, half), (_, full) = float16_and_float32(rows, weight, [mean_nll(N)], torch.zeros(N, dtype=torch.int64), scale)
    assert 0 < full[2:].max() < 1e-9
    torch.testing.assert_close(half, full, rtol=0.01, atol=0)


def test_hidden_rows_in_float16_get_their_gradient_after_the_loss_scale():
    rows, weight = random(N, D, seed=3).half().requires_grad_(), random(V, D, seed=4).half().float()
    total, _ = weighted_sum(LazyLogits(rows, OutputProjection(weight)), None, LABELS, [mean_nll(N, times=1e-7)])
    (2.0**20 * total).backward()
    exact = rows.detach().float().requires_grad_()
    weighted_sum(LazyLogits(exact, OutputProjection(weight)), None, LABELS, [mean_nll(N)])[0].backward()
    assert rows.grad.dtype == torch.float16
    torch.testing.assert_close(rows.grad.float() / (2.0**20 * 1e-7), exact.grad, rtol=0.01, atol=1e-4)


def test_training_in_float16_under_a_gradient_scaler():
    """No update is skipped, and the loss falls, where a sum over rows is beyond float16's range."""
    weight = torch.nn.Parameter(torch.zeros(V, D))
    rows, labels = 300 * random(400, D, seed=3).float().abs(), torch.zeros(400, dtype=torch.int64)
    optimizer, scaler = torch.optim.SGD([weight], lr=1e-5), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    losses = []
    for _ in range(5):
        scores_ = LazyLogits(rows, OutputProjection(weight), torch.float16)
        loss, _ = weighted_sum(scores_, None, labels, [mean_nll(400)])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**16
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("vocab_size", "rows"), [(2_000, 4_194), (32_128, 261), (151_936, 256), (10**9, 256)])
def test_the_largest_tensor_is_a_chunk(vocab_size, rows):
    """As many rows as the vocabulary allows, and enough to multiply fast."""
    weight = torch.zeros(1, 1).expand(vocab_size, 1)
    many = LazyLogits(torch.zeros(2 * rows + 1, 1), OutputProjection(weight))
    assert [part.stop - part.start for part in many.chunks()] == [rows, rows, 1]


def test_kl_of_equal_models_is_zero():
    student = LazyLogits(LIVE.rows.clone().requires_grad_(), LIVE.projection)
    total, values = weighted_sum(student, LIVE, LABELS, [kl()])
    total.backward()
    assert math.isclose(values.item(), 0, abs_tol=1e-12)
    assert student.rows.grad.abs().max() < 1e-12


def test_stored_tokens_stay_sparse():
    """A chunk's stored tokens are (C, K), never (C, V)."""
    seen = []

    def loss(student, teacher, labels):
        seen.append(tuple(teacher.ids.shape))
        return stored_token_divergence(student, teacher.ids, teacher.logs)

    weighted_sum(student_of("plain")[0], STORED, LABELS, [TokenLoss(loss, torch.ones(N).double())])
    assert seen == [(N, K)]
