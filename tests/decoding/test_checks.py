"""Checks of a model at loading: tiny models of many types are accepted, or refused in one line."""

from pathlib import Path

import pytest
import torch
from model_types import write_tiny_model
from transformers import GPT2LMHeadModel

from src.config.errors import UserError
from src.config.flags.train import FineTuneArguments
from src.decoding.checks import check_decoding
from src.decoding.settings import decoding_of
from src.models.checks_before_loading import check_lengths, check_model_files
from src.models.loading import load_config, load_model

POSITIONS = 64  # of a tiny model, where it has a table or says how far it was trained


@pytest.fixture(scope="module")
def tiny(tiny_tokenizers, tmp_path_factory):
    """The folder of a tiny model of a type, with changed values of its config."""
    root = tmp_path_factory.mktemp("types")

    def folder(model_type: str, **changes) -> str:
        path: Path = root / "_".join([model_type, *map(str, changes)])
        if not path.exists():
            write_tiny_model(model_type, path, tiny_tokenizers["gpt2"], seed=0, changes=changes)
        return str(path)

    return folder


def flags(max_input_length: int = 16, max_labels_length: int = 8, num_beams: int = 1) -> FineTuneArguments:
    lengths = {"max_input_length": max_input_length, "max_labels_length": max_labels_length}
    return FineTuneArguments(output_dir="o", dataset_path="d", num_beams=num_beams, **lengths)


# --------------------------------------------------------------------------------------------------------- its states


def test_a_model_that_reads_what_follows(tiny):
    """BERT is one unless its config makes it a decoder."""
    with pytest.raises(
        UserError, match="'bert' also reads the tokens that follow.* is_decoder or causal, set it to true"
    ) as e:
        load_model(tiny("bert", is_decoder=False))
    assert "\n" not in str(e.value)
    check_decoding(load_model(tiny("bert")), "bert", flags())


@pytest.mark.parametrize("model_type", ["rwkv", "trocr", "xlstm"])
def test_a_model_that_takes_padding_for_text(tiny, model_type):
    with pytest.raises(UserError, match=f"'{model_type}' gives other logits for a text in a batch"):
        load_model(tiny(model_type))


@pytest.mark.parametrize("model_type", ["mamba", "bloom", "opt", "switch_transformers", "bart", "mixtral"])
def test_a_model_that_tells_padding_from_text(tiny, model_type):
    check_decoding(load_model(tiny(model_type)), model_type, flags(num_beams=2))


def test_a_model_of_several_streams(tiny):
    """ProphetNet projects a stream for each of the tokens to come."""
    with pytest.raises(UserError, match="does not read one state for each token"):
        load_model(tiny("prophetnet"))


def test_other_formats_are_not_compared(tiny):
    """bfloat16 rounds so much that an expert may be chosen otherwise."""
    load_model(tiny("bert", is_decoder=False), dtype=torch.bfloat16)


# -------------------------------------------------------------------------------------------------------- its lengths


@pytest.mark.parametrize("model_type", ["gpt_neo", "biogpt", "openai-gpt", "gpt_bigcode", "ctrl", "mpt", "codegen"])
def test_no_positions_for_input_and_target(tiny, model_type):
    name = tiny(model_type)
    model = load_model(name)
    check_decoding(model, name, flags(POSITIONS - 8, 8))
    with pytest.raises(
        UserError, match=f"max_labels_length: {POSITIONS + 1} tokens, but .* has positions for {POSITIONS}"
    ):
        check_decoding(model, name, flags(POSITIONS - 8, 9))


@pytest.mark.parametrize("model_type", ["led", "bigbird_pegasus", "blenderbot-small"])
def test_no_positions_on_one_side(tiny, model_type):
    name = tiny(model_type)
    model = load_model(name)
    check_decoding(model, name, flags(POSITIONS, POSITIONS))
    for flag, lengths in (("--max_input_length", (65, 8)), ("--max_labels_length", (8, 65))):
        with pytest.raises(UserError, match=f"^{flag}: 65 tokens, but .* has positions for {POSITIONS}"):
            check_decoding(model, name, flags(*lengths))


@pytest.mark.parametrize(
    ("model_type", "warned"), [("llama", True), ("mixtral", True), ("t5", False), ("bloom", False)]
)
def test_other_models_are_only_warned_of(tiny, model_type, warned, capsys):
    name = tiny(model_type)
    check_lengths(name, flags(100, 80))
    check_decoding(load_model(name), name, flags(100, 80))
    assert (f"180 tokens, but {name} was trained on at most {POSITIONS}" in capsys.readouterr().out) == warned


# -------------------------------------------------------------------------------------------------------- its writing


def test_a_model_that_cannot_be_searched_by_beams(tiny, monkeypatch):
    name = tiny("bloom")
    model = load_model(name)
    generate = type(model).generate

    def one_beam(self, *args, num_beams, **kwargs):
        if num_beams > 1:
            raise ValueError("its cache cannot be reordered")
        return generate(self, *args, num_beams=num_beams, **kwargs)

    monkeypatch.setattr(type(model), "generate", one_beam)
    check_decoding(model, name, flags())
    with pytest.raises(UserError, match="'bloom' cannot generate with 4 beams: its cache cannot be reordered"):
        check_decoding(model, name, flags(num_beams=4))
    sampling = decoding_of("sampling", num_beams=4, targets_per_input=2, max_new_tokens=8)
    check_decoding(model, name, flags(num_beams=4), sampling)


def test_a_model_that_cannot_be_trained(tiny):
    """Reformer wants one length when it learns."""
    with pytest.raises(UserError, match="'reformer' cannot be trained here: .*axial_pos_shape"):
        check_decoding(load_model(tiny("reformer")), "reformer", flags())


def test_a_trial_leaves_no_trace(tiny, recwarn):
    model = load_model(tiny("bloom"))
    torch.manual_seed(1)
    state, ids = torch.get_rng_state(), model.generation_config.to_dict()
    check_decoding(model, "bloom", flags(num_beams=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config.to_dict() == ids
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not [warning for warning in recwarn if warning.category is UserWarning]


# ------------------------------------------------------------------------------------------- models that see and hear


def test_the_text_part_of_a_model_that_sees(tiny):
    """Llama 4: the class that writes text is configured by a part of what the folder's config holds."""
    name = tiny("llama4")
    assert load_config(name).model_type == "llama4_text"
    check_model_files(name)
    model = load_model(name)
    assert not any("vision" in key for key in model.state_dict())


@pytest.mark.parametrize("model_type", ["whisper", "qwen2_audio", "mllama"])
def test_a_model_without_a_class_that_writes_is_refused_by_its_config(tiny, model_type):
    with pytest.raises(
        UserError, match=f"model type '{model_type}.*': transformers has no class for it that generates text"
    ):
        check_model_files(tiny(model_type))


def test_a_model_that_needs_another_package(tiny, monkeypatch):
    """Gemma 3n sees with a package that may not be installed."""
    name = tiny("gpt2")

    def lacking(*_args, **_kwargs):
        raise ImportError("\nTimmWrapperModel requires the PIL library but it was not found in your environment.\n")

    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", lacking)
    with pytest.raises(UserError, match="weights cannot be read: TimmWrapperModel requires the PIL library"):
        load_model(name)
