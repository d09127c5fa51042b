"""Properties of every objective on random states: zero at equality, padding, weights, windows and number formats.

Shapes: B targets, T target positions, V vocabulary, L positions in the encoder or decoder, W width. The states of a
case are dense, with numbers at padded positions too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.config.constants import IGNORE_INDEX
from src.config.experiments.schema import LossEntry
from src.distillation.capture import HeadStates, States, attention_kinds, hidden_stacks
from src.distillation.objectives import NO_SCALES, Window, distillation_loss, term_names
from src.distillation.token_losses import nucleus
from src.models.lazy_logits import LazyLogits
from src.tokens.batch import Batch

PROPERTY = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no failure
DOUBLE = torch.float64
FORWARD = LossEntry(name="forward", forward_weight=0.7)
LOGITS = LossEntry(name="logits", logits_weight=0.7, temperature=2.0)
NUCLEUS = LossEntry(name="nucleus", logits_weight=0.7, temperature=-0.8)
RELATIONS = tuple(
    LossEntry(name=f"{objective}_{'kl' if kl_loss else 'rmse'}", **{f"{objective}_weight": 0.7}, kl_loss=kl_loss)
    for objective in ("hidden", "attention_relation")
    for kl_loss in (True, False)
)
ENTRIES = (FORWARD, LOGITS, NUCLEUS, *RELATIONS)
KL_ENTRIES = tuple(entry for entry in ENTRIES if entry in (LOGITS, NUCLEUS) or entry.kl_loss)
CLOSE = {"atol": 1e-9, "rtol": 1e-7}


def for_each(entries: tuple[LossEntry, ...]):
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.name)


# ---------------------------------------------------------------------------------------------------------------- cases

Dense = Mapping[str, Tensor]  # "logits" (B, T, V); by term, "hidden_dec" (B, L, W) and "dec_ca_k" (B, L, W) and so on


@dataclass(frozen=True)
class Case:
    """Labels (B, T) with −100, positions (B, L) by stack, and what both models have to say about them."""

    labels: Tensor
    positions: Mapping[str, Tensor]
    student: Dense
    teacher: Dense
    student_heads: int
    teacher_heads: int

    @property
    def valid(self) -> Tensor:
        return self.labels != IGNORE_INDEX

    @property
    def window(self) -> Window:
        return Window(len(self.labels), int(self.valid.sum()))

    @property
    def batch(self) -> Batch:
        return Batch(self.labels, self.labels, self.labels, tuple(range(len(self.labels))))

    @property
    def is_encoder_decoder(self) -> bool:
        return "enc" in self.positions

    def rows(self, chosen: slice) -> "Case":
        cut = {
            name: {key: tensor[chosen] for key, tensor in getattr(self, name).items()}
            for name in ("positions", "student", "teacher")
        }
        return replace(self, labels=self.labels[chosen], **cut)

    def beside(self, other: "Case") -> "Case":
        """Both cases' targets."""
        both = {
            name: {key: torch.cat([tensor, getattr(other, name)[key]]) for key, tensor in getattr(self, name).items()}
            for name in ("positions", "student", "teacher")
        }
        return replace(self, labels=torch.cat([self.labels, other.labels]), **both)

    def to(self, dtype: torch.dtype) -> "Case":
        converted = {
            role: {key: tensor.to(dtype) for key, tensor in getattr(self, role).items()}
            for role in ("student", "teacher")
        }
        return replace(self, **converted)


def stack_of(term: str) -> str:
    """Whose positions a term's relations are between; keys and values of the cross-attention are the encoder's."""
    return "enc" if term in ("hidden_enc", "dec_ca_k", "dec_ca_v") or term.startswith("enc") else "dec"


def prefix_mask(lengths: list[int], width: int, *, on_the_left: bool = False) -> Tensor:
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return mask.flip(1) if on_the_left else mask


@st.composite
def cases(draw, *, equal: bool = False, all_masked: bool = False, scales=(0.3, 1.0, 2.0)):
    """Encoder-decoder or decoder-only, of one to three targets, empty ones among them. equal: of two equal models."""
    n_targets = draw(st.integers(1, 3))
    lengths, sources = (
        [0] * n_targets if all_masked else draw(st.lists(st.integers(0, 4), min_size=n_targets, max_size=n_targets))
        for _ in range(2)
    )
    n_labels, n_inputs, vocabulary = draw(st.tuples(st.integers(4, 5), st.integers(4, 5), st.integers(1, 6)))
    valid = prefix_mask(lengths, n_labels)
    is_encoder_decoder = draw(st.booleans())
    read = prefix_mask(sources, n_inputs, on_the_left=not is_encoder_decoder)
    positions = {"enc": read, "dec": valid} if is_encoder_decoder else {"dec": torch.cat([read, valid[:, 1:]], dim=1)}

    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    labels = torch.randint(vocabulary, valid.shape, generator=generator).masked_fill(~valid, IGNORE_INDEX)
    scale = draw(st.sampled_from(scales))
    heads = [draw(st.integers(1, 3)) for _ in range(2)]
    sizes = [draw(st.tuples(st.integers(1, 4), st.integers(1, 2))) for _ in range(2)]  # of hidden states, of a head
    if equal:
        heads, sizes = [heads[1]] * 2, [sizes[1]] * 2

    def states(d_hidden: int, width: int) -> Dense:
        of_terms = {f"hidden_{stack}": d_hidden for stack in hidden_stacks(is_encoder_decoder=is_encoder_decoder)}
        for kind in attention_kinds(is_encoder_decoder=is_encoder_decoder):
            of_terms |= {f"{kind}_{part}": width for part in "qkv"}
        shapes = {term: (*positions[stack_of(term)].shape, size) for term, size in of_terms.items()}
        shapes["logits"] = (*valid.shape, vocabulary)
        return {key: scale * torch.randn(shape, generator=generator, dtype=DOUBLE) for key, shape in shapes.items()}

    # The student's width can be cut into the teacher's heads.
    teacher = states(sizes[1][0], sizes[1][1] * heads[1])
    student = teacher if equal else states(sizes[0][0], sizes[0][1] * heads[0] * heads[1])
    return Case(labels, positions, student, teacher, *heads)


def states_of(case: Case, dense: Dense, entry: LossEntry, n_heads: int) -> States:
    """As `capture.run` gives them: rows of the logits, and of the rest what the entry compares."""
    terms = term_names(entry, is_encoder_decoder=case.is_encoder_decoder)
    hidden = {term.removeprefix("hidden_"): dense[term] for term in terms if term.startswith("hidden")}
    heads = {term: HeadStates(dense[term], n_heads) for term in terms if term[:6] in ("enc_sa", "dec_sa", "dec_ca")}
    return States(LazyLogits(dense["logits"][case.valid]), hidden, heads, case.positions)


def learn(case: Case, entry: LossEntry, *, window: Window | None = None, scales: Mapping[str, float] = NO_SCALES):
    """The loss, its terms, and its gradient by the student's dense states (zeros where there is none)."""
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in case.student.items()}
    student = states_of(case, leaves, entry, case.student_heads)
    teacher = states_of(case, case.teacher, entry, case.teacher_heads)
    loss, terms = distillation_loss(student, teacher, case.batch, entry, window or case.window, scales)
    return loss.detach(), terms, gradients(loss, leaves)


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def assert_finite(gradient: Mapping[str, Tensor]) -> None:
    assert all(torch.isfinite(each).all() for each in gradient.values())


# ------------------------------------------------------------------------------------------------------------ reference


def reference(case: Case, entry: LossEntry) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient from all positions (B, T, V), one target after another, from the definitions."""
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in case.student.items()}
    terms = []
    for term in term_names(entry, is_encoder_decoder=case.is_encoder_decoder):
        if term == "forward":
            rows = -F.log_softmax(leaves["logits"], -1).gather(-1, case.labels.clamp_min(0)[..., None])[..., 0]
            terms.append((rows * case.valid).sum() / max(1, case.window.tokens))
            continue
        if term == "logits":
            rows = reference_kl(leaves["logits"], case.teacher["logits"], entry.temperature) * case.valid
            values = [row.sum() / max(1, int(valid.sum())) for row, valid in zip(rows, case.valid, strict=True)]
        else:
            pairs = zip(leaves[term], case.teacher[term], case.positions[stack_of(term)], strict=True)
            n_heads = 1 if term.startswith("hidden") else case.teacher_heads
            is_causal = term == "hidden_dec" or term.startswith("dec_sa")
            values = [
                reference_relations(ours[valid], theirs[valid], n_heads, is_causal=is_causal, is_kl=entry.kl_loss)
                for ours, theirs, valid in pairs
            ]
        terms.append(sum(values) / len(values))
    [weight] = entry.weights.values()
    loss = weight * sum(terms) / len(terms)
    return loss.detach(), gradients(loss, leaves)


def reference_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(B, T) of logits (B, T, V), padding included."""
    if temperature > 0:
        p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
        return temperature**2 * (p * (p / q).log()).sum(-1)
    p, q = teacher.softmax(-1), student.softmax(-1)
    # A token is in the nucleus if all that are more probable hold less than p of the mass.
    more_probable = p[..., None, :] > p[..., :, None]
    kept = (p[..., None, :] * more_probable).sum(-1) < -temperature
    cut = p * kept / (p * kept).sum(-1, keepdim=True)
    return torch.where(kept, cut * (cut / q).clamp_min(1e-300).log(), 0.0).sum(-1)


def reference_relations(student: Tensor, teacher: Tensor, n_heads: int, *, is_causal: bool, is_kl: bool) -> Tensor:
    """Of one target's states (L, W) without padding: row by row, head by head."""
    if not len(student):
        return student.sum()
    heads = zip(student.chunk(n_heads, -1), teacher.chunk(n_heads, -1), strict=True)
    values = []
    for ours, theirs in heads:
        r, s = (states @ states.T / states.shape[-1] ** 0.5 for states in (ours, theirs))
        seen = [range(row + 1 if is_causal else len(r)) for row in range(len(r))]
        if is_kl:
            pairs = [
                (s[row, list(columns)].softmax(-1), r[row, list(columns)].softmax(-1))
                for row, columns in enumerate(seen)
            ]
            values.append(sum((p * (p / q).log()).sum() for p, q in pairs) / len(pairs))
        else:
            differences = torch.cat([(r - s)[row, list(columns)] for row, columns in enumerate(seen)])
            values.append(differences.square().mean().sqrt())
    return sum(values) / n_heads


@for_each(ENTRIES)
@PROPERTY
@given(case=cases())
def test_valid_rows_give_what_dense_positions_give(entry, case):
    loss, terms, gradient = learn(case, entry)
    expected, expected_gradient = reference(case, entry)
    assert tuple(terms) == term_names(entry, is_encoder_decoder=case.is_encoder_decoder)
    torch.testing.assert_close(loss, expected, **CLOSE)
    torch.testing.assert_close(gradient, expected_gradient, **CLOSE)


# ------------------------------------------------------------------------------------------------------ zero and signs


@for_each((LOGITS, replace(NUCLEUS, temperature=-1.0), *RELATIONS))
@PROPERTY
@given(case=cases(equal=True))
def test_equal_models_are_at_zero(entry, case):
    loss, terms, gradient = learn(case, entry)
    assert abs(loss.item()) < 1e-12
    assert all(abs(term.item()) < 1e-12 for term in terms.values())
    assert all(each.abs().max() < 1e-9 for each in gradient.values())


@PROPERTY
@given(case=cases(equal=True), top_p=st.floats(0.01, 0.99))
def test_a_nucleus_asks_an_equal_model_for_the_mass_outside_it(case, top_p):
    loss, _, _ = learn(case, replace(NUCLEUS, logits_weight=1.0, temperature=-top_p))
    logits = case.teacher["logits"]
    flat = nucleus(logits.flatten(0, 1), top_p).view_as(logits)
    rows = (logits.logsumexp(-1) - flat.logsumexp(-1)) * case.valid
    expected = (rows.sum(1) / case.valid.sum(1).clamp_min(1)).mean()
    torch.testing.assert_close(loss, expected, **CLOSE)


@for_each(KL_ENTRIES)
@PROPERTY
@given(case=cases(scales=(0.01, 1.0, 10.0)))
def test_kl_is_never_negative(entry, case):
    for dtype, least in ((DOUBLE, -1e-12), (torch.float32, -1e-5)):
        _, terms, _ = learn(case.to(dtype), entry)
        assert all(term.item() >= least for term in terms.values())


# -------------------------------------------------------------------------------------------------------------- padding


def with_padding(case: Case, value: float) -> Case:
    """The case with other numbers at all padded positions, of both models."""

    def other(dense: Dense, value: float) -> Dense:
        masks = {key: case.valid if key == "logits" else case.positions[stack_of(key)] for key in dense}
        return {key: tensor.masked_fill(~masks[key][..., None], value) for key, tensor in dense.items()}

    return replace(case, student=other(case.student, value), teacher=other(case.teacher, -value / 3))


@for_each(ENTRIES)
@PROPERTY
@given(case=cases(), value=st.sampled_from([0.0, -7.5, 1e5, 1e19, -1e38]))
def test_padded_states_have_no_influence(entry, case, value):
    """Up to numbers whose products are infinite in float32."""
    case = case.to(torch.float32)
    loss, terms, gradient = learn(case, entry)
    other_loss, other_terms, other_gradient = learn(with_padding(case, value), entry)
    assert other_loss == loss
    assert other_terms == terms
    torch.testing.assert_close(other_gradient, gradient)
    for key, each in other_gradient.items():
        mask = case.valid if key == "logits" else case.positions[stack_of(key)]
        assert not each[~mask].any()


@for_each(ENTRIES)
@PROPERTY
@given(case=cases(), data=st.data())
def test_a_target_of_padding_alone_changes_only_the_denominators(entry, case, data):
    n_more = data.draw(st.integers(1, 2))
    chosen = case.rows(slice(0, 1))
    nothing = replace(
        chosen,
        labels=torch.full_like(chosen.labels, IGNORE_INDEX),
        positions={stack: torch.zeros_like(mask) for stack, mask in chosen.positions.items()},
    )
    wide = case
    for _ in range(n_more):
        wide = wide.beside(nothing)
    n = len(case.labels)
    loss, _, gradient = learn(case, entry)
    same_loss, _, same_gradient = learn(wide, entry, window=case.window)
    torch.testing.assert_close(same_loss, loss, **CLOSE)
    torch.testing.assert_close({key: each[:n] for key, each in same_gradient.items()}, gradient, **CLOSE)
    assert not any(each[n:].any() for each in same_gradient.values())
    share = 1.0 if entry is FORWARD else n / (n + n_more)  # NLL is a mean over tokens, of which there are no more
    torch.testing.assert_close(learn(wide, entry)[0], loss * share, **CLOSE)


@for_each(ENTRIES)
@PROPERTY
@given(case=cases(all_masked=True), dtype=st.sampled_from([DOUBLE, torch.float32, torch.bfloat16]))
def test_padding_alone_is_zero_not_nan(entry, case, dtype):
    loss, terms, gradient = learn(case.to(dtype), entry)
    assert loss == 0
    assert all(term == 0 for term in terms.values())
    assert not any(each.any() for each in gradient.values())  # NaN counts as any


# ---------------------------------------------------------------------------------------------------------------- rules


@PROPERTY
@given(case=cases(), temperature=st.floats(0.25, 8))
def test_a_temperature_divides_both_sides_logits_and_multiplies_by_its_square(case, temperature):
    loss, _, gradient = learn(case, replace(LOGITS, temperature=temperature))
    cool = replace(
        case,
        student=case.student | {"logits": case.student["logits"] / temperature},
        teacher=case.teacher | {"logits": case.teacher["logits"] / temperature},
    )
    plain, _, plain_gradient = learn(cool, replace(LOGITS, temperature=1.0))
    torch.testing.assert_close(loss, plain * temperature**2, **CLOSE)
    torch.testing.assert_close(gradient["logits"], plain_gradient["logits"] * temperature, **CLOSE)


@for_each(ENTRIES)
@PROPERTY
@given(case=cases(), data=st.data())
def test_a_loss_is_its_weight_times_the_mean_of_its_scaled_terms(entry, case, data):
    names = term_names(entry, is_encoder_decoder=case.is_encoder_decoder)
    known = data.draw(st.lists(st.sampled_from(names), unique=True))  # a term without a scale has scale 1
    scales = {name: data.draw(st.floats(0.1, 40)) for name in known}
    _, plain_terms, _ = learn(case, entry)
    loss, terms, gradient = learn(case, entry, scales=scales)
    assert terms == plain_terms, "what is noted is not scaled"
    [weight] = entry.weights.values()
    expected = weight * sum(scales.get(name, 1.0) * value for name, value in terms.items()) / len(names)
    torch.testing.assert_close(loss, expected, **CLOSE)
    doubled_loss, _, doubled = learn(case, entry, scales={name: 2 * scales.get(name, 1.0) for name in names})
    torch.testing.assert_close(doubled_loss, 2 * loss, **CLOSE)
    torch.testing.assert_close(doubled, {key: 2 * each for key, each in gradient.items()}, **CLOSE)


@PROPERTY
@given(case=cases(), weights=st.lists(st.floats(0.05, 2), min_size=4, max_size=4), kl_loss=st.booleans())
def test_objectives_add_up_by_their_weights(case, weights, kl_loss):
    names = ("forward", "logits", "hidden", "attention_relation")
    keys = {f"{name}_weight": weight for name, weight in zip(names, weights, strict=True)}
    entry = LossEntry(name="all", **keys, kl_loss=kl_loss, temperature=1.5)
    loss, terms, gradient = learn(case, entry)
    alone = [
        learn(case, LossEntry(name=key, **{key: value}, kl_loss=kl_loss, temperature=1.5))
        for key, value in keys.items()
    ]
    torch.testing.assert_close(loss, sum(each[0] for each in alone), **CLOSE)
    assert terms == {name: value for each in alone for name, value in each[1].items()}
    for key, each in gradient.items():
        torch.testing.assert_close(each, sum(one[2][key] for one in alone), **CLOSE)


# -------------------------------------------------------------------------------------------------------------- windows


@for_each(ENTRIES)
@PROPERTY
@given(case=cases(), data=st.data())
def test_the_shares_of_a_window_add_up_to_one_batch(entry, case, data):
    """However its targets are dealt to micro-batches."""
    n = len(case.labels)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1))) if n > 1 else [])
    parts = [slice(*ends) for ends in zip([0, *cuts], [*cuts, n], strict=True)]
    shares = [learn(case.rows(part), entry, window=case.window) for part in parts]
    loss, terms, gradient = learn(case, entry)
    torch.testing.assert_close(sum(share[0] for share in shares), loss, **CLOSE)
    for name, value in terms.items():
        torch.testing.assert_close(sum(share[1][name] for share in shares), value, **CLOSE)
    for key, each in gradient.items():
        torch.testing.assert_close(torch.cat([share[2][key] for share in shares]), each, **CLOSE)


# -------------------------------------------------------------------------------------------------------------- formats


@for_each(ENTRIES)
@PROPERTY
@given(case=cases())
def test_float32_is_close_to_float64(entry, case):
    exact, _, exact_gradient = learn(case, entry)
    loss, terms, gradient = learn(case.to(torch.float32), entry)
    assert {value.dtype for value in (loss, *terms.values())} == {torch.float32}
    torch.testing.assert_close(loss.double(), exact, atol=1e-5, rtol=1e-4)
    for key, each in gradient.items():
        torch.testing.assert_close(each.double(), exact_gradient[key], atol=1e-5, rtol=1e-4)


@for_each(ENTRIES)
@PROPERTY
@given(case=cases(scales=(0.3, 1.0)))
def test_bfloat16_is_finite_and_close_to_float64(entry, case):
    """Rounded states are close; all that is computed from them is computed in float32."""
    rounded = case.to(torch.bfloat16)
    loss, terms, gradient = learn(rounded, entry)
    assert {value.dtype for value in (loss, *terms.values())} == {torch.float32}
    assert_finite(gradient)
    torch.testing.assert_close(loss.double(), learn(rounded.to(DOUBLE), entry)[0], atol=1e-5, rtol=1e-4)
    if entry is NUCLEUS:  # which tokens are inside is a matter of a rounding at times
        sets = [nucleus(each.teacher["logits"][case.valid].float(), 0.8).isinf() for each in (case, rounded)]
        assume(torch.equal(*sets))
    torch.testing.assert_close(loss.double(), learn(case, entry)[0], atol=3e-2, rtol=3e-2)


@for_each(ENTRIES)
@PROPERTY
@given(case=cases(scales=(30.0, 100.0)), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_large_states_give_finite_losses_and_gradients(entry, case, dtype):
    """Beyond float16's range once they are multiplied."""
    loss, _, gradient = learn(case.to(dtype), entry)
    assert torch.isfinite(loss)
    assert_finite(gradient)
