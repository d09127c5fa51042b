"""Packed weights: same results, and the model is unchanged afterwards."""

import platform

import pytest
import torch
from conftest import FAMILY_NAMES
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.decoding.generate import write_tokens
from src.decoding.settings import Decoding
from src.models import lazy_logits
from src.models import packed_linear as packed_module
from src.models.lazy_logits import LazyLogits, OutputProjection
from src.models.packed_linear import packed, packed_head, product
from tests.decoding.test_generate import INPUTS, babbler, batch_of

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
needs_layout = pytest.mark.skipif(not IS_X86, reason="has another library for products")


@needs_layout
@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (2, 3, 16), (0, 16)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_that_of_linear(shape, with_bias):
    torch.manual_seed(0)
    rows, weight = torch.randn(shape), torch.randn(301, 16)
    bias = torch.randn(301) if with_bias else None
    made = product(rows, packed(weight), bias)
    torch.testing.assert_close(made, F.linear(rows, weight, bias), rtol=1e-5, atol=1e-5)
    assert made.shape == (*shape[:-1], 301)


@needs_layout
def test_rows_and_weights_may_be_views():
    torch.manual_seed(0)
    rows, weight = torch.randn(4, 7, 16)[:, -1], torch.randn(16, 50).T
    torch.testing.assert_close(product(rows, packed(weight)), rows @ weight.T, rtol=1e-5, atol=1e-5)


@needs_layout
def test_the_layout_is_a_copy():
    weight = torch.nn.Parameter(torch.randn(20, 8))
    rows, layout = torch.randn(3, 8), packed(weight)
    before = product(rows, layout)
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(product(rows, layout), before)


def test_what_has_no_layout(monkeypatch):
    """Other formats and devices, large weights, other processors, builds without oneDNN."""
    weight = torch.randn(4, 8)
    assert packed(weight.double()) is packed(weight.bfloat16()) is packed(weight.to("meta")) is None
    with monkeypatch.context() as patched:
        patched.setattr(packed_module, "LARGEST", weight.numel() * 4 - 1)
        assert packed(weight) is None
    with monkeypatch.context() as patched:
        patched.setattr(platform, "machine", lambda: "arm64")
        assert packed(weight) is None
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert packed(weight) is None
    assert (packed(weight) is not None) == IS_X86


@needs_layout
def test_a_projection_with_a_layout_makes_the_same_logits():
    torch.manual_seed(0)
    rows, plain = torch.randn(7, 16), OutputProjection(torch.randn(50, 16), torch.randn(50), 2.0)
    layouted = plain.packed()
    assert plain.layout is None and layouted.layout is not None
    for few in (slice(None), slice(2, 5)):
        torch.testing.assert_close(
            LazyLogits(rows, layouted).some(few), LazyLogits(rows, plain).some(few), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(
        LazyLogits(rows, layouted).first_tokens(30).logits, LazyLogits(rows, plain).first_tokens(30).logits
    )


@needs_layout
def test_logits_at_once_stay_below_what_is_new_memory_each_time():
    """glibc's malloc asks the kernel for blocks of 32 MiB each time anew."""
    for vocabulary in (2_000, 32_128, 32_768, 151_936):
        projection = OutputProjection(torch.empty(vocabulary, 1)).packed()
        assert 0.9 * 2**25 < 4 * vocabulary * LazyLogits(torch.empty(9, 1), projection).rows_at_once < 2**25


@needs_layout
@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("decoding", [Decoding(8, 2, num_beams=2), Decoding(8, 1)], ids=["beams", "greedy"])
def test_writing_is_the_same_with_and_without(family, decoding, monkeypatch):
    model, made = babbler(family, seed=0), []
    stock = packed_module.packed

    def counted(weight):
        made.append(weight.shape)
        return stock(weight)

    for module in (packed_module, lazy_logits):
        monkeypatch.setattr(module, "packed", counted)
    batch = batch_of(model, INPUTS)
    written = write_tokens(model, batch, decoding)
    assert made == [(model.config.vocab_size, model.get_output_embeddings().in_features)]
    for module in (packed_module, lazy_logits):
        monkeypatch.setattr(module, "packed", lambda weight: None)
    assert torch.equal(write_tokens(model, batch, decoding), written)


@needs_layout
def test_the_head_is_as_it_was_afterwards():
    """After an error too, and with weights that have changed since."""
    model = babbler("gpt2", seed=0)
    head, ids = model.get_output_embeddings(), torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(KeyboardInterrupt), packed_head(model):
            assert "forward" in vars(head)
            torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)
            raise KeyboardInterrupt
        assert "forward" not in vars(head)
        assert torch.equal(model(ids).logits, before)
        head.weight.mul_(2)
        with packed_head(model):
            torch.testing.assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)
            assert not torch.allclose(model(ids).logits, before)


@needs_layout
def test_under_autocast_the_head_multiplies_in_the_format_of_autocast():
    model, ids = babbler("gpt2", seed=0), torch.tensor([[3, 4, 5]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        with packed_head(model):
            assert torch.equal(model(ids).logits, expected)
    assert expected.dtype == torch.bfloat16
