"""Generation with CTranslate2: same output as the model, one conversion, refused if the result would be wrong."""

import copy
import json
import shutil

import pytest
import torch
from conftest import FAMILY_NAMES, slow
from tiny_runs import argv, tree

from src.tokens.batch import collate

pytest.importorskip("ctranslate2", reason="an optional engine")

import gen_main
from src.config.errors import UserError
from src.decoding import ctranslate2_engine
from src.decoding.ctranslate2_engine import CTranslate2Engine
from src.decoding.generate import behind_eos, to_texts, write_tokens
from src.decoding.settings import decoding_of
from src.models.generation_config import fit_to_tokenizer
from src.models.loading import load_model, load_tokenizer
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets

TEXTS = ["the red cat sees", "a dog", "the old house near the bird likes"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    root = tmp_path_factory.getbasetemp() / "ctranslate2"
    monkeypatch.setenv("XDG_CACHE_HOME", str(root))
    return root / "kd4gen" / "ctranslate2"


def sharpened(folder: str):
    """A tiny random model whose tokens differ enough for a search to have one answer, and one that may end anywhere."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    fit_to_tokenizer(model, tokenizer)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(1.5)
    return model, tokenizer


def batch_of(model, tokenizer):
    kind = model.config.is_encoder_decoder
    made = Preprocessor(tokenizer, kind, max_input_length=32, max_labels_length=12)
    return collate(made, TokenizedDatasets({"train": {"text": TEXTS}}, made).split("train"), range(len(TEXTS)))


def decoding(generation_type: str = "beam_search", k: int = 1, num_beams: int = 4):
    return decoding_of(generation_type, num_beams=num_beams, targets_per_input=k, max_new_tokens=8)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_beams_are_those_of_the_model(family, num_beams, tiny_models):
    model, tokenizer = sharpened(tiny_models[family]["teacher"])
    model.generation_config.suppress_tokens = [model.config.pad_token_id]  # which is looked for below
    batch, how = batch_of(model, tokenizer), decoding(num_beams=num_beams)
    ours = CTranslate2Engine(model, tokenizer, "no").write(batch, how)
    assert to_texts(tokenizer, ours) == to_texts(tokenizer, write_tokens(model, batch, how))
    assert not (ours.masked_fill(behind_eos(ours, model.generation_config), -1) == model.config.pad_token_id).any()


@pytest.mark.parametrize("family", ["t5", *slow("gpt2")])
def test_samples_follow_the_seed_and_the_models_distribution(family, tiny_models):
    """First tokens of 2,000 draws against the nucleus of the model's own probabilities."""
    model, tokenizer = sharpened(tiny_models[family]["teacher"])
    batch, engine = batch_of(model, tokenizer), CTranslate2Engine(model, tokenizer, "no")
    how = decoding("sampling", k=2_000)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return engine.write(batch, how)

    first = drawn(0)
    assert first.shape[0] == 2_000 * len(TEXTS)
    assert torch.equal(drawn(0), first)
    assert not torch.equal(drawn(1), first)
    torch.manual_seed(0)
    expected = write_tokens(model, batch, how)[:, 0].view(len(TEXTS), -1)
    size = len(tokenizer)
    for ours, theirs in zip(first[:, 0].view(len(TEXTS), -1), expected, strict=True):
        shares = [torch.bincount(each, minlength=size).float() / len(each) for each in (ours, theirs)]
        assert (shares[0] - shares[1]).abs().sum() / 2 < 0.15  # total variation; two samples of 2,000 differ by 0.07


def test_converted_once(tiny_models, cache, monkeypatch, capsys):
    model, tokenizer = sharpened(tiny_models["t5"]["student"])
    with torch.no_grad():
        model.shared.weight[5] += 0.25
    CTranslate2Engine(model, tokenizer, "no")
    assert "converting the model" in capsys.readouterr().out
    CTranslate2Engine(model, tokenizer, "no")
    assert "converting" not in capsys.readouterr().out
    with torch.no_grad():
        model.shared.weight[5] += 0.25
    CTranslate2Engine(model, tokenizer, "no")
    assert "converting the model" in capsys.readouterr().out
    assert all(len(folder.name) == 32 and (folder / "model.bin").is_file() for folder in cache.iterdir())


def test_a_wrong_conversion_is_noticed(tiny_models, monkeypatch):
    model, tokenizer = sharpened(tiny_models["t5"]["student"])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.decoder.block[0].layer[0].SelfAttention.o.weight.mul_(3)
    folder = ctranslate2_engine.converted(other, tokenizer)
    monkeypatch.setattr(ctranslate2_engine, "converted", lambda *_: folder)
    with pytest.raises(UserError, match="^--generation_engine ctranslate2: the converted model is not the model"):
        CTranslate2Engine(model, tokenizer, "no")


def test_what_it_does_not_do_is_refused(tiny_models):
    model, tokenizer = sharpened(tiny_models["t5"]["student"])
    model.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(UserError, match="generation config sets no_repeat_ngram_size"):
        CTranslate2Engine(model, tokenizer, "no")
    model.generation_config.no_repeat_ngram_size = None
    model.generation_config.forced_bos_token_id = 3
    with pytest.raises(UserError, match="sets forced_bos_token_id"):
        CTranslate2Engine(model, tokenizer, "no")


def test_a_forced_eos_ends_what_is_cut(tiny_models):
    model, tokenizer = sharpened(tiny_models["bart"]["teacher"])
    model.generation_config.forced_eos_token_id = model.generation_config.eos_token_id
    batch = batch_of(model, tokenizer)
    ours = CTranslate2Engine(model, tokenizer, "no").write(batch, decoding(num_beams=1))
    assert torch.equal(ours, write_tokens(model, batch, decoding(num_beams=1))[:, : ours.shape[1]])
    assert (ours == model.generation_config.eos_token_id).any(dim=1).all()


# ------------------------------------------------------------------------------------------------------------- gen_main


def gen(tiny_models, tiny_dataset_path, out, **flags) -> list[str]:
    path = gen_main.main(gen_command(tiny_models, tiny_dataset_path, out, **flags))
    return json.loads(path.read_text())["dev"]["generated"]


def gen_command(tiny_models, tiny_dataset_path, out, **flags) -> list[str]:
    flags = {"model_name": tiny_models["t5"]["teacher"], "dataset_path": tiny_dataset_path, "output_dir": out} | flags
    return argv({"max_labels_length": 8, "max_input_length": 32, "split_for_generation": "dev"} | flags)


@pytest.mark.parametrize("engine", ["ctranslate2", "auto"])
def test_beams_of_gen_main(engine, tiny_models, tiny_dataset_path, tmp_path, monkeypatch):
    used = []
    write = CTranslate2Engine.write
    monkeypatch.setattr(CTranslate2Engine, "write", lambda *args: used.append(1) or write(*args))
    ours = gen(tiny_models, tiny_dataset_path, tmp_path / "a", generation_engine=engine)
    assert used
    assert ours == gen(tiny_models, tiny_dataset_path, tmp_path / "b")


@pytest.mark.parametrize("engine", ["ctranslate2", "auto"])
def test_a_dry_run_converts_nothing(engine, tiny_models, tiny_dataset_path, tmp_path, monkeypatch, capsys):
    """It tries the engine out where the model is converted already."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = gen_command(tiny_models, tiny_dataset_path, tmp_path / "out", generation_engine=engine)
    used = []
    write = CTranslate2Engine.write
    monkeypatch.setattr(CTranslate2Engine, "write", lambda *args: used.append(1) or write(*args))
    gen_main.main([*command, "--dry_run", "True"])
    assert "is not converted for CTranslate2 yet" in capsys.readouterr().out
    assert (used, list(tmp_path.iterdir())) == ([], [])
    gen_main.main(command)
    made = tree(tmp_path)
    used.clear()
    shutil.rmtree(tmp_path / "out")
    gen_main.main([*command, "--dry_run", "True"])
    assert "is not converted" not in capsys.readouterr().out
    assert used
    assert {name: stat for name, stat in tree(tmp_path).items() if name != "."}.items() <= made.items()


def test_auto_samples_with_the_model_and_goes_on_without_a_conversion(
    tiny_models, tiny_dataset_path, tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise UserError("cannot be converted")

    monkeypatch.setattr(ctranslate2_engine, "converted", refuse)
    sampled = {"generation_engine": "auto", "generation_type": "sampling"}
    gen(tiny_models, tiny_dataset_path, tmp_path / "a", **sampled)
    assert "hf is used" not in capsys.readouterr().out
    gen(tiny_models, tiny_dataset_path, tmp_path / "b", generation_engine="auto")
    assert "cannot be converted; --generation_engine auto: hf is used" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be converted"):
        gen(tiny_models, tiny_dataset_path, tmp_path / "c", generation_engine="ctranslate2")


@pytest.mark.parametrize("generation_type", ["diverse_beam_search", "sampling_beam_search"])
def test_types_it_has_not(generation_type, tiny_models, tiny_dataset_path, tmp_path):
    with pytest.raises(
        UserError, match=f"^--generation_engine ctranslate2: does not support {generation_type}; possible: beam"
    ):
        gen(
            tiny_models,
            tiny_dataset_path,
            tmp_path,
            generation_engine="ctranslate2",
            generation_type=generation_type,
        )


def test_what_it_cannot_convert_is_refused(tiny_models, monkeypatch, cache):
    model, tokenizer = sharpened(tiny_models["gpt2"]["teacher"])
    with torch.no_grad():  # of weights that no other test has converted
        model.transformer.wte.weight[5] += 0.5

    def refuses(*_, **__):
        raise ValueError("No conversion is registered for the model configuration X")

    monkeypatch.setattr("ctranslate2.converters.TransformersConverter.convert", refuses)
    before = set(cache.glob("*"))
    with pytest.raises(UserError, match="^--generation_engine ctranslate2: cannot convert a gpt2: No conversion"):
        CTranslate2Engine(model, tokenizer, "no")
    assert set(cache.glob("*")) == before
    model.hf_quantizer = object()
    with pytest.raises(UserError, match="^--generation_engine ctranslate2: does not convert quantized weights"):
        CTranslate2Engine(model, tokenizer, "no")
