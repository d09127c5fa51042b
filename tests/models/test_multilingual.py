"""Multilingual models: languages are set, forced, saved and required."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from conftest import slow
from tiny_runs import ft_flags, gen_flags, kd_flags, read, rows
from transformers import (
    AutoModelForSeq2SeqLM,
    M2M100Config,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    NllbTokenizer,
)

import ft_main
import gen_main
import kd_main
from src.config.errors import UserError
from src.models.generation_config import fit_to_tokenizer
from src.models.loading import load_model, load_tokenizer
from src.models.multilingual import language_tokens
from src.tokens.preprocessing import Preprocessor

PAIRS = [("the cat sees", "der hund sieht"), ("a dog", "ein hund"), ("the cat", "die katze"), ("a cat sees", "sieht")]
LETTERS = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
LETTERS += [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
CODES = {
    "nllb": ("eng_Latn", "deu_Latn"),
    "mbart": ("en_XX", "de_DE"),
    "mbart50": ("en_XX", "de_DE"),
    "m2m": ("en", "de"),
}


def tokenizer_of(kind: str, folder: Path):
    if kind == "nllb":
        return NllbTokenizer(vocab={piece: index for index, (piece, _) in enumerate(LETTERS)}, merges=[])
    if kind == "mbart":
        codes = [(code, 0.0) for code in MBartTokenizer().lang_code_to_id]
        return MBartTokenizer(vocab=[*LETTERS, *codes, ("<mask>", 0.0)])
    if kind == "mbart50":
        return MBart50Tokenizer(vocab=LETTERS)
    folder.mkdir(parents=True, exist_ok=True)
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for pair in PAIRS for text in pair), model_writer=made, vocab_size=24,
        model_type="char", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spm.model").write_bytes(made.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    names = dict.fromkeys(
        ["<s>", "<pad>", "</s>", "<unk>", *map(pieces.id_to_piece, range(3, pieces.get_piece_size()))]
    )
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    files = {"vocab_file": str(folder / "vocab.json"), "spm_file": str(folder / "spm.model"), "num_madeup_words": 0}
    languages = list(M2M100Tokenizer(**files).lang_token_to_id)
    return M2M100Tokenizer(**files, additional_special_tokens=languages)  # as in the hub's folders


def model_folder(kind: str, folder: Path, seed: int) -> Path:
    tokenizer = tokenizer_of(kind, folder / "parts")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    config = (M2M100Config if kind in ("nllb", "m2m") else MBartConfig)(
        vocab_size=len(tokenizer),
        decoder_start_token_id=2,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        **sizes,
        **heads,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, list[Path]]:
    root = tmp_path_factory.mktemp("multilingual")
    return {kind: [model_folder(kind, root / f"{kind}{seed}", seed) for seed in (0, 1)] for kind in CODES}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.json"
    columns = {"text": [text for text, _ in PAIRS], "target": [target for _, target in PAIRS]}
    path.write_text(json.dumps(dict.fromkeys(("train", "dev", "test"), columns)))
    return path


@pytest.mark.parametrize("kind", ["nllb", *slow(*(kind for kind in CODES if kind != "nllb"))])
def test_the_whole_road_in_its_languages(kind, folders, data, tmp_path, capsys):
    source, target = CODES[kind]
    teacher, student = folders[kind]
    named = {"source_language": source, "target_language": target}
    ft_main.main(ft_flags(str(teacher), data, tmp_path / "ft", metric_for_best_model="chrf", **named))
    assert f"languages: {source} → {target}" in capsys.readouterr().out
    made = tmp_path / "ft" / "model"
    check_folder(made, source, target)

    gen_main.main(gen_flags(str(made), data, tmp_path / "gen"))
    assert f"languages: {source} → {target}" in capsys.readouterr().out
    texts = read(tmp_path / "gen" / "generated_datasets.json")["test"]["generated"]
    assert len(texts) == len(PAIRS) and not any(target in text for row in texts for text in row)

    pairing = {"teacher": str(made), "student": str(student)}
    kd_main.main(kd_flags(pairing, data, tmp_path / "kd", metric_for_best_model="chrf", task_prompt="bart"))
    assert f"languages: {source} → {target}" in capsys.readouterr().out
    check_folder(tmp_path / "kd" / "model", source, target)
    assert rows(tmp_path / "kd")


def check_folder(folder: Path, source: str, target: str) -> None:
    """The saved tokenizer and model speak the languages to whoever opens them."""
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder))
    fit_to_tokenizer(model, tokenizer)
    codes = language_tokens(tokenizer)
    preprocessor = Preprocessor(tokenizer, True, 32, 32)
    inputs, labels = (
        row.tokens[0].tolist() for row in (preprocessor.encode_inputs(["a cat"]), preprocessor.encode_labels(["hund"]))
    )
    ids = model.generation_config
    assert codes[source] in inputs and codes[target] not in inputs
    if codes[target] in labels:
        assert labels[0] == ids.forced_bos_token_id == codes[target] and labels[-1] == tokenizer.eos_token_id
        assert read(folder / "generation_config.json")["forced_bos_token_id"] == codes[target]
    else:  # the decoder starts with it
        assert model.config.decoder_start_token_id == ids.decoder_start_token_id == codes[target]
        assert read(folder / "config.json")["decoder_start_token_id"] == codes[target]
        assert labels[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", CODES)
def test_without_languages_a_multilingual_model_is_refused_with_the_list(kind, folders, data, tmp_path, monkeypatch):
    monkeypatch.setattr("src.training.setup.load_model", None)
    source, target = CODES[kind]
    for given, missing in (({}, "source"), ({"source_language": source}, "target")):
        with pytest.raises(UserError, match=rf"--{missing}_language: .* is multilingual; give one of .*{target}"):
            ft_main.main(ft_flags(str(folders[kind][0]), data, tmp_path / "out", **given))
    with pytest.raises(UserError, match="--target_language: .* does not know 'german'; possible: "):
        wrong = {"source_language": source, "target_language": "german"}
        ft_main.main(ft_flags(str(folders[kind][0]), data, tmp_path / "out", **wrong))
    with pytest.raises(UserError, match="--source_language: .* is multilingual"):
        gen_main.main(gen_flags(str(folders[kind][0]), data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_another_model_takes_no_language(tiny_models, data, tmp_path):
    with pytest.raises(UserError, match=r"--target_language: the tokenizer of .* has no languages"):
        ft_main.main(ft_flags(tiny_models["t5"]["student"], data, tmp_path / "out", target_language="de"))


def test_a_server_knows_no_target_language(folders, data, tmp_path):
    source, target = CODES["nllb"]
    flags = {"generation_engine": "server", "server_url": "http://localhost:1/v1", "generation_type": "sampling"}
    flags |= {"source_language": source, "target_language": target}
    with pytest.raises(UserError, match="is multilingual, and a request names no target language"):
        gen_main.main(gen_flags(str(folders["nllb"][0]), data, tmp_path / "gen", **flags))
    assert not (tmp_path / "gen").exists()
