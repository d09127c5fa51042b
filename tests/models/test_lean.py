"""Faster replacement modules: same function, same distribution, same saved model."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.activations import NewGELUActivation

from src.models.lean import FewDrawsDropout, made_lean
from src.models.loading import load_model

STATES = torch.randn(7, 5, 33, generator=torch.Generator().manual_seed(0)) * 3  # not a multiple of four numbers
STOCK = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}


def test_the_activation_is_the_same_function():
    ours_in, stock_in = STATES.clone().requires_grad_(), STATES.clone().requires_grad_()
    ours, stock = nn.GELU(approximate="tanh")(ours_in), NewGELUActivation()(stock_in)
    torch.testing.assert_close(ours, stock)
    ours.square().sum().backward()
    stock.square().sum().backward()
    torch.testing.assert_close(ours_in.grad, stock_in.grad)


@pytest.mark.parametrize("family", STOCK)
def test_a_loaded_model_has_them_and_gives_and_saves_what_a_stock_one_does(family, dropout_models, tmp_path):
    folder = dropout_models[family]["teacher"]
    loaded, stock = load_model(folder), STOCK[family].from_pretrained(folder).eval()
    kinds = {type(module) for module in loaded.modules()}
    assert kinds >= {FewDrawsDropout, nn.GELU}
    assert not kinds & {NewGELUActivation, nn.Dropout}
    ids = torch.arange(5, 17).view(2, 6)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if family == "t5" else {})
    torch.testing.assert_close(loaded(**inputs).logits, stock(**inputs).logits)
    for name, model in (("ours", loaded), ("stock", stock)):
        model.save_pretrained(tmp_path / name)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "stock"))
    assert ours.keys() == theirs.keys()
    assert loaded.config.to_dict() | {"_name_or_path": ""} == stock.config.to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    ones = torch.ones(401, 997)
    dropped = FewDrawsDropout(rate)(ones)
    n, expected = ones.numel(), rate * ones.numel()
    deviation = (n * rate * (1 - rate)) ** 0.5
    assert abs(int((dropped == 0).sum()) - expected) < 4 * deviation
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)), rtol=1e-3, atol=0)
    for places in (slice(0, None, 4), slice(1, None, 4), slice(2, None, 4), slice(3, None, 4)):  # of a 64-bit draw
        share = float((dropped.flatten()[places] == 0).float().mean())
        assert abs(share - rate) < 5 * (rate * (1 - rate) / (n / 4)) ** 0.5


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    is_dropped = (FewDrawsDropout(0.5)(torch.ones(400_000)) == 0).float().view(-1, 4)
    between = torch.corrcoef(is_dropped.T) - torch.eye(4)
    assert between.abs().max() < 5 / 100_000**0.5


def test_dropout_has_the_gradient_of_what_it_did_and_follows_the_seed():
    states = STATES.clone().requires_grad_()
    torch.manual_seed(3)
    dropped = FewDrawsDropout(0.3)(states)
    dropped.sum().backward()
    torch.testing.assert_close(states.grad * STATES, dropped.detach())
    torch.manual_seed(3)
    assert torch.equal(FewDrawsDropout(0.3)(STATES), dropped)
    assert not torch.equal(FewDrawsDropout(0.3)(STATES), dropped)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1e-4])
def test_other_rates_are_torchs(rate):
    torch.manual_seed(0)
    ours = FewDrawsDropout(rate)(STATES)
    torch.manual_seed(0)
    assert torch.equal(ours, nn.Dropout(rate)(STATES))


def test_nothing_is_dropped_in_eval_mode():
    assert FewDrawsDropout(0.5).eval()(STATES) is STATES


def test_an_exchanged_module_is_in_the_mode_of_the_former(dropout_models):
    for is_training in (False, True):
        model = AutoModelForSeq2SeqLM.from_pretrained(dropout_models["t5"]["teacher"]).train(is_training)
        assert {module.training for module in made_lean(model).modules()} == {is_training}
