"""The fused GELU of loaded models: the same function, the same logits, the same saved model."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.activations import NewGELUActivation

from src.models.loading import fuse_gelu, load_model

STATES = torch.randn(7, 5, 33, generator=torch.Generator().manual_seed(0)) * 3
STOCK = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}


def test_the_activation_is_the_same_function():
    ours_in, stock_in = STATES.clone().requires_grad_(), STATES.clone().requires_grad_()
    ours, stock = nn.GELU(approximate="tanh")(ours_in), NewGELUActivation()(stock_in)
    torch.testing.assert_close(ours, stock)
    ours.square().sum().backward()
    stock.square().sum().backward()
    torch.testing.assert_close(ours_in.grad, stock_in.grad)


@pytest.mark.parametrize("family", STOCK)
def test_a_loaded_model_has_it_and_gives_and_saves_what_a_stock_one_does(family, dropout_models, tmp_path):
    folder = dropout_models[family]["teacher"]
    loaded, stock = load_model(folder), STOCK[family].from_pretrained(folder).eval()
    kinds = {type(module) for module in loaded.modules()}
    assert nn.GELU in kinds and NewGELUActivation not in kinds
    ids = torch.arange(5, 17).view(2, 6)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if family == "t5" else {})
    torch.testing.assert_close(loaded(**inputs).logits, stock(**inputs).logits)
    for name, model in (("ours", loaded), ("stock", stock)):
        model.save_pretrained(tmp_path / name)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "stock"))
    assert ours.keys() == theirs.keys()
    assert loaded.config.to_dict() | {"_name_or_path": ""} == stock.config.to_dict() | {"_name_or_path": ""}


def test_modules_stay_in_their_mode(dropout_models):
    for is_training in (False, True):
        model = AutoModelForSeq2SeqLM.from_pretrained(dropout_models["t5"]["teacher"]).train(is_training)
        assert {module.training for module in fuse_gelu(model).modules()} == {is_training}
