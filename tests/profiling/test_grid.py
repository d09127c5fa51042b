"""The grid: which models with which layers, and which lengths and beams."""

import pytest

from src.config.errors import UserError
from src.config.flags.profile import ProfileArguments
from src.profiling.grid import Cell, Form, cells_of, forms_of


def arguments(**flags):
    return ProfileArguments(**{"output_file_path": "out.csv", "model_name": ("t5-small",), **flags})


def test_each_length_with_each_or_in_pairs():
    lengths = {"input_length": (8, 16), "target_length": (4, 2), "num_beams": (1, 4)}
    assert cells_of(arguments(**lengths)) == [Cell(i, t, b) for i in (8, 16) for t in (4, 2) for b in (1, 4)]
    assert cells_of(arguments(**lengths, paired_lengths=True)) == [
        Cell(8, 4, 1), Cell(8, 4, 4), Cell(16, 2, 1), Cell(16, 2, 4)
    ]  # fmt: skip
    assert cells_of(arguments(input_length=(8, 8))) == [Cell(8, 32, 1)]


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "form"),
    [
        ("m", None, None, Form("m", "m", None, None)),
        ("m_prune", None, None, Form("m_prune", "m", None, (0, -1))),
        ("m_prune0_1:", None, None, Form("m_prune0_1:", "m", (0, 1), None)),
        ("m", None, (0, 5), Form("m_prune0_5", "m", None, (0, 5))),
        ("m", (0, 1), None, Form("m_prune0_1:", "m", (0, 1), None)),
        ("m", (0,), (0, -1), Form("m_prune0:0_-1", "m", (0,), (0, -1))),
        ("m_prune0_1:", None, (3,), Form("m_prune0_1:3", "m", (0, 1), (3,))),
    ],
)
def test_layers_kept_by_names_and_flags(name, encoder, decoder, form):
    config = arguments(model_name=(name, name), enc_layers_to_keep=encoder, dec_layers_to_keep=decoder)
    assert forms_of(config) == [form]


def test_a_name_and_a_flag_that_contradict_each_other():
    with pytest.raises(UserError, match="m_prune0: says which layers to keep; leave out --dec_layers_to_keep"):
        forms_of(arguments(model_name=("m_prune0",), dec_layers_to_keep=(0,)))
