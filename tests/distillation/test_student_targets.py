"""Targets that the student writes: on which steps, and that the labels are exactly what it wrote."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FAMILY_NAMES

from src.config.constants import IGNORE_INDEX
from src.config.experiments.schema import LossEntry
from src.decoding.generate import write_tokens
from src.decoding.settings import decoding_of
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.distillation.student_targets import student_writes, with_student_targets
from src.models.forward import target_labels, target_logits
from src.models.loading import load_model
from src.tokens.batch import Batch
from tests.decoding.test_generate import EOS, INPUTS, babbler, batch_of, cut

KINDS = ("t5", "gpt2")  # encoder-decoder and decoder-only
ENTRY = LossEntry(name="own", logits_weight=1.0, generate_labels_weight=1.0)
LENGTH = 8  # at most that many tokens of a target
LABELS = torch.tensor([[3, EOS], [EOS, IGNORE_INDEX], [4, EOS], [5, EOS]])  # what a person wrote


def batch_for(model) -> Batch:
    return replace(batch_of(model, INPUTS), labels=LABELS.clone())


def sampled(model, batch: Batch, *, seed: int, length: int = LENGTH) -> list[list[int]]:
    """What the student in eval mode writes, each target up to its first EOS."""
    decoding = decoding_of("sampling", num_beams=1, targets_per_input=1, max_new_tokens=length)
    torch.manual_seed(seed)
    return [cut(row) for row in write_tokens(model.eval(), batch, decoding)]


def labels_of(model, batch: Batch, *, seed: int, length: int = LENGTH, entry: LossEntry = ENTRY) -> list[list[int]]:
    """The labels that `with_student_targets` gives, without their padding, which is behind them and nowhere else."""
    torch.manual_seed(seed)
    labels = with_student_targets(model, batch, entry, length).labels
    valid = labels != IGNORE_INDEX
    assert torch.equal(valid.long().cummin(dim=1).values.bool(), valid)
    assert labels.shape[1] == valid.sum(dim=1).max(), "no column of padding alone"
    return [row[mask].tolist() for row, mask in zip(labels, valid, strict=True)]


# ------------------------------------------------------------------------------------------------------ on which steps


def decisions(share: float, n_steps: int, *, seed: int = 42, epoch: int = 0) -> list[bool]:
    return [student_writes(share, seed=seed, epoch=epoch, step=step) for step in range(n_steps)]


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (0, False), (1.0, True), (1, True)])
def test_none_and_all_are_exact(share, expected):
    assert set(decisions(share, 2000)) == {expected}


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_any_share_is_kept_over_many_steps(share):
    """0.7 is 0.7; four standard deviations, and each epoch draws anew."""
    n_steps = 4000
    near = 4 * (share * (1 - share) / n_steps) ** 0.5
    first, second = (decisions(share, n_steps, epoch=epoch) for epoch in (0, 1))
    assert sum(first) / n_steps == pytest.approx(share, abs=near)
    assert sum(second) / n_steps == pytest.approx(share, abs=near)
    both = sum(a and b for a, b in zip(first, second, strict=True)) / n_steps
    assert both == pytest.approx(share**2, abs=near)


def test_steps_take_turns_without_a_pattern():
    """A step says nothing about the next."""
    written = decisions(0.5, 4000)
    same = sum(a == b for a, b in zip(written, written[1:], strict=False)) / 3999
    assert same == pytest.approx(0.5, abs=0.03)


def test_the_place_alone_decides():
    """The same on every process and in a resumed run: nobody's generator is asked, and none is moved."""
    expected = decisions(0.5, 50)
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        assert decisions(0.5, 50) == expected
        assert [student_writes(0.5, seed=42, epoch=0, step=step) for step in reversed(range(50))] == expected[::-1]
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert all(isinstance(each, bool) for each in expected)


def test_seed_and_epoch_make_other_decisions():
    places = [{"seed": seed, "epoch": epoch} for seed in (0, 42, 43) for epoch in (0, 1, 2)]
    assert len({tuple(decisions(0.5, 64, **place)) for place in places}) == len(places)


# ----------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_labels_are_what_was_sampled(family):
    model = babbler(family, seed=3, eos_bias=0.0)
    batch = batch_for(model)
    lengths = set()
    for seed in range(6):
        expected = sampled(model, batch, seed=seed)
        assert labels_of(model, batch, seed=seed) == expected
        lengths |= {(len(target), target[-1] == EOS) for target in expected}
    assert {ended for _, ended in lengths} == {True, False}, "some must end, and some must be cut"
    assert len(lengths) > 2


def test_it_samples_from_the_nucleus_and_at_temperature_1():
    """Of (0.60, 0.36, 0.04), the last is never written; the others as often as 0.60 to 0.36."""
    model = babbler("gpt2", seed=0)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.fill_(-30.0)[5:8] = torch.tensor([0.60, 0.36, 0.04]).log()
    labels = labels_of(model, batch_of(model, INPUTS * 10), seed=0, length=10)
    tokens = [token for target in labels for token in target]
    assert len(tokens) == 400
    assert set(tokens) == {5, 6}
    assert tokens.count(5) / 400 == pytest.approx(0.625, abs=0.08)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"generate_top_p": 1.0}, {5, 6, 7}),
        ({"generate_top_k": 1}, {5}),
        ({"generate_top_k": 2, "generate_top_p": 1.0}, {5, 6}),
        ({"generate_top_p": 0.5}, {5}),
        ({"generate_temperature": 0.05}, {5}),
        ({"generate_temperature": 5.0}, {5, 6, 7}),
    ],
)
def test_the_entry_says_how_it_samples(settings, tokens):
    model = babbler("gpt2", seed=0)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.fill_(-1e4)[5:8] = torch.tensor([0.60, 0.36, 0.04]).log()
    entry = replace(ENTRY, **settings)
    labels = labels_of(model, batch_of(model, INPUTS * 10), seed=0, length=10, entry=entry)
    assert {token for target in labels for token in target} == tokens


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_student_finds_its_own_targets_most_probable(family):
    """So they stand where teacher forcing looks for them: nearly all mass is on one token each time."""
    model = babbler(family, seed=2, peak=100.0)
    batch = batch_for(model)
    own = with_student_targets(model, batch, ENTRY, LENGTH)
    with torch.no_grad():
        assert torch.equal(target_logits(model, own).argmax(-1), target_labels(own))
    assert len(set(target_labels(own).tolist())) > 2, "a model that says one thing would prove little"


@pytest.mark.parametrize("family", KINDS)
def test_a_student_that_ends_at_once_writes_its_eos(family):
    model = babbler(family, seed=0, eos_bias=1e4)
    assert with_student_targets(model, batch_for(model), ENTRY, LENGTH).labels.tolist() == [[EOS]] * len(INPUTS)


@pytest.mark.parametrize("length", [1, 2, LENGTH])
@pytest.mark.parametrize("family", KINDS)
def test_a_student_that_never_ends_is_cut_without_an_eos(family, length):
    model = babbler(family, seed=0, eos_bias=-1e4)
    labels = labels_of(model, batch_for(model), seed=0, length=length)
    assert [len(target) for target in labels] == [length] * len(INPUTS)
    assert not any(EOS in target for target in labels)


@pytest.mark.parametrize("family", KINDS)
def test_where_padding_is_eos_the_real_eos_stays(tiny_models, family):
    """What `generate` fills up with looks like an EOS; only the first one was written."""
    model = load_model(tiny_models[family]["student"])
    model.config.pad_token_id = model.generation_config.pad_token_id = eos = model.config.eos_token_id
    contexts = batch_of(model, INPUTS * 4)
    batch = replace(contexts, input_ids=contexts.input_ids.masked_fill(contexts.attention_mask == 0, eos))
    labels = labels_of(model, batch, seed=0, length=30)
    assert labels == sampled(model, batch, seed=0, length=30)
    ended = [target for target in labels if target[-1] == eos]
    assert any(len(target) < 30 for target in ended)
    assert all(target.count(eos) == 1 for target in ended)


def test_any_of_several_eos_ends_a_target():
    model = babbler("gpt2", seed=3, eos_bias=0.0)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens are equally probable
    model.generation_config.eos_token_id = [EOS, 7]
    labels = labels_of(model, batch_of(model, INPUTS * 4), seed=0, length=30)
    assert {target[-1] for target in labels} >= {EOS, 7}
    assert not any({EOS, 7} & set(target[:-1]) for target in labels)


@pytest.mark.parametrize("family", KINDS)
def test_a_model_that_knows_no_eos_writes_to_the_limit(family):
    model = babbler(family, seed=3)
    model.generation_config.eos_token_id = None
    assert {len(target) for target in labels_of(model, batch_for(model), seed=0)} == {LENGTH}


# -------------------------------------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("family", KINDS)
def test_dropout_is_off_while_it_writes_and_its_mode_comes_back(dropout_models, family, is_training):
    """With dropout other random numbers would be drawn, and other targets written."""
    model = load_model(dropout_models[family]["student"])
    batch = batch_for(model)
    expected = sampled(model, batch, seed=0)
    modes = []
    model.register_forward_hook(lambda module, args, output: modes.append((module.training, torch.is_grad_enabled())))
    model.train(is_training)
    assert labels_of(model, batch, seed=0) == expected
    assert labels_of(model, batch, seed=0) == expected
    assert labels_of(model, batch, seed=1) != expected
    assert set(modes) == {(False, False)}, "neither dropout nor gradients"
    assert {module.training for module in model.modules()} == {is_training}
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("family", KINDS)
def test_the_batch_and_the_weights_are_left_as_they_are(family):
    model = babbler(family, seed=0)
    batch, same = batch_for(model), batch_for(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = with_student_targets(model, batch, ENTRY, LENGTH)
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(getattr(batch, name), getattr(same, name))
    assert own.input_ids is batch.input_ids
    assert own.attention_mask is batch.attention_mask
    assert own.rows == batch.rows
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", KINDS)
def test_a_persons_targets_have_no_influence(family):
    model = babbler(family, seed=0)
    batch = batch_for(model)
    for labels in (None, LABELS + 1):
        assert labels_of(model, replace(batch, labels=labels), seed=4) == labels_of(model, batch, seed=4)


@pytest.mark.parametrize("family", KINDS)
def test_written_targets_are_learnt_from_as_others_are(family):
    """Their tokens, not those they replace, are the window's; the gradient reaches the student."""
    student, teacher = babbler(family, seed=0).train(), babbler(family, seed=1)
    own = with_student_targets(student, batch_for(student), ENTRY, LENGTH)
    entry = LossEntry(name="all", forward_weight=0.5, logits_weight=0.5)
    n_tokens = len(target_labels(own))
    assert n_tokens != len(target_labels(batch_for(student)))
    states, taught = (capture_states(model, own, entry, {}) for model in (student, teacher))
    assert states.logits.logits.shape == (n_tokens, 12)
    loss, _ = distillation_loss(states, taught, own, entry, Window(len(own.rows), n_tokens))
    loss.backward()
    assert torch.isfinite(loss)
    assert student.lm_head.weight.grad.any()
