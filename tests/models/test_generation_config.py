"""Generation settings of a model: used by our loop and by `generate`, saved, and printed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import slow
from tiny_runs import ft_flags, gen_flags, read
from transformers import GenerationConfig

import ft_main
import gen_main
from src.config.cli import run_script
from src.config.errors import UserError
from src.decoding.generate import write_tokens
from src.decoding.sampling_support import why_unsupported
from src.decoding.settings import decoding_of
from src.models.generation_config import changed_settings
from src.models.loading import load_model
from tests.decoding.test_generate import INPUTS, babbler, batch_of, cut

OWN = {"no_repeat_ngram_size": 2, "min_length": 6, "length_penalty": 0.3, "early_stopping": True}
PROCESSED = [
    {"no_repeat_ngram_size": 2, "repetition_penalty": 0.8},
    {"min_length": 9},
    {"min_new_tokens": 10, "suppress_tokens": [5, 6], "forced_eos_token_id": 1},
    *slow({"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 7, "no_repeat_ngram_size": 2}),
]


@pytest.mark.parametrize("settings", PROCESSED, ids=str)
@pytest.mark.parametrize("family", ["gpt2", *slow("t5", "bart", "llama")])
def test_our_loop_writes_what_generate_writes(family, settings):
    """Greedily, for inputs of different lengths, of which some end early."""
    changed = 0
    for seed in range(4):
        model = babbler(family, seed=seed)
        plain = written(model, targets=1)
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        assert why_unsupported(model) is None
        batch = batch_of(model, INPUTS)
        rows = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=12, do_sample=False
        )
        start = 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1]
        expected = [cut(row) for row in rows[:, start:]]
        assert written(model, targets=1) == expected
        changed += expected != plain
    assert changed


def written(model, *, targets: int) -> list[list[int]]:
    decoding = decoding_of("beam_search", num_beams=1, targets_per_input=targets, max_new_tokens=12)
    return [cut(row) for row in write_tokens(model, batch_of(model, INPUTS), decoding)]


def test_samples_obey_too():
    """With several targets of an input, each has its own prefix."""
    model = babbler("t5", seed=0, peak=0.4)
    model.generation_config.no_repeat_ngram_size, model.generation_config.min_new_tokens = 1, 5
    decoding = decoding_of("sampling", num_beams=1, targets_per_input=20, max_new_tokens=8)
    torch.manual_seed(0)
    targets = [cut(row) for row in write_tokens(model, batch_of(model, INPUTS), decoding)]
    assert all(len(set(target)) == len(target) >= 6 or len(target) == 8 for target in targets)
    assert len(set(map(tuple, targets))) > 60


def test_settings_are_told_from_what_flags_decide():
    ids = GenerationConfig(num_beams=4, max_length=99, do_sample=True, top_k=5, min_length=0, length_penalty=1.0, **{
        "no_repeat_ngram_size": 3, "early_stopping": True})  # fmt: skip
    assert changed_settings(ids) == {"no_repeat_ngram_size": 3, "early_stopping": True}


@pytest.fixture
def model(tiny_models, tmp_path) -> Path:
    folder = tmp_path / "bart"
    shutil.copytree(tiny_models["bart"]["student"], folder)
    ids = read(folder / "generation_config.json") | OWN | {"num_beams": 3, "max_length": 11}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    return folder


def test_a_run_keeps_and_says_them(model, tmp_path, tiny_dataset_path, capsys):
    ft_main.main(ft_flags(model, tiny_dataset_path, tmp_path / "out", epochs=1, max_labels_length=12))
    said = capsys.readouterr().out
    expected = "min_length 6, length_penalty 0.3, early_stopping True, no_repeat_ngram_size 2"
    assert f"{model} generates with its own settings: {expected} (--model_generation_settings False leaves them" in said
    kept = read(tmp_path / "out" / "model" / "generation_config.json")
    assert OWN.items() <= kept.items()
    assert kept["num_beams"] == 3 and "max_length" not in kept
    assert changed_settings(load_model(str(tmp_path / "out" / "model")).generation_config) == OWN
    gen_main.main(gen_flags(str(model), tiny_dataset_path, tmp_path / "gen", max_labels_length=12))
    targets = read(tmp_path / "gen" / "generated_datasets.json")["test"]["generated"]
    assert f"{model} generates with its own settings" in capsys.readouterr().out
    gen_main.main(
        gen_flags(
            str(model), tiny_dataset_path, tmp_path / "plain", max_labels_length=12, model_generation_settings=False
        )
    )
    assert f"--model_generation_settings False: {model} generates without {expected}" in capsys.readouterr().out
    assert read(tmp_path / "plain" / "generated_datasets.json")["test"]["generated"] != targets


def test_the_flag_of_a_generation_type_wins(model, monkeypatch):
    loaded = load_model(str(model))
    penalties = []

    def search(_model, _batch, settings):
        penalties.append(settings.length_penalty)
        return torch.zeros(4, 3).long(), torch.zeros(4)

    monkeypatch.setattr("src.decoding.generate.beam_search", search)
    for kind in ("beam_search", "beam_search_short", "beam_search_long"):
        decoding = decoding_of(kind, num_beams=2, targets_per_input=1, max_new_tokens=8)
        write_tokens(loaded, batch_of(loaded, INPUTS), decoding)
    assert penalties == [0.3, 0.4, 2.0]
    assert loaded.generation_config.length_penalty == 0.3


def test_more_tokens_than_there_may_be_are_refused(model, tmp_path, tiny_dataset_path, capsys, monkeypatch):
    monkeypatch.setattr("src.training.setup.load_model", None)
    flags = ft_flags(model, tiny_dataset_path, tmp_path / "out", max_labels_length=5)
    with pytest.raises(UserError, match="its generation config has min_length 6, more than --max_labels_length 5"):
        ft_main.main(flags)
    assert not (tmp_path / "out").exists()
    (model / "generation_config.json").write_text(json.dumps({"no_repeat_ngram_size": "two"}))
    assert run_script(ft_main.main, flags) == 2
    assert "generation_config.json" in capsys.readouterr().err
