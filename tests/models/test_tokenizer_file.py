"""Tokenizers produce the tokens of their tokenizer.json, whatever class transformers chooses."""

import json
from pathlib import Path

import pytest
from tiny_runs import ft_flags, gen_flags
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MBartTokenizer, PreTrainedTokenizerFast

import ft_main
import gen_main
from src.config.errors import UserError
from src.models import tokenizer_file
from src.models.checks_before_loading import check_same_tokenizer
from src.models.loading import load_tokenizer
from src.models.multilingual import set_languages
from tests.models.test_multilingual import LETTERS

SENTENCES = [f"The cat saw {year} birds." for year in range(1990, 2040)]
THREE_DIGITS = r"\p{N}{1,3}"


def backend(*, pattern: str = THREE_DIGITS) -> Tokenizer:
    """A byte-level tokenizer with a pre-tokenizer of its own."""
    made = Tokenizer(models.BPE())
    made.decoder = decoders.ByteLevel()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    return made


def folder_of(folder: Path, own: Tokenizer, model_type: str, tokenizer_class: str) -> Path:
    """A model folder as the hub has them: tokenizer.json beside a config that names a class."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if model_type == "qwen2":
        sizes["num_key_value_heads"] = 1
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = AutoConfig.for_model(model_type, vocab_size=own.get_vocab_size() + 8, **sizes, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    own.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": tokenizer_class, "eos_token": "<end>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


KINDS = [
    ("qwen2", "PreTrainedTokenizerFast"),
    ("qwen2", "Qwen2Tokenizer"),
    ("gpt2", "GPT2Tokenizer"),
]


@pytest.mark.parametrize(("model_type", "tokenizer_class"), KINDS)
def test_a_pretokenizer_of_its_own_is_kept_and_exported(model_type, tokenizer_class, tmp_path):
    own = backend()
    folder = folder_of(tmp_path / "model", own, model_type, tokenizer_class)
    text = "The cat saw 2023 birds."
    expected = own.encode(text).ids
    if model_type == "qwen2":
        stock = AutoTokenizer.from_pretrained(folder)
        assert stock(text)["input_ids"] != expected, "transformers follows the file by itself: the repair may go"
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer(text)["input_ids"] == expected
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)

    data = tmp_path / "data.json"
    columns = {"text": SENTENCES[:4], "target": SENTENCES[:4]}
    data.write_text(json.dumps(dict.fromkeys(("train", "dev", "test"), columns)))
    ft_main.main(ft_flags(str(folder), data, tmp_path / "ft", epochs=1, metric_for_best_model="chrf"))
    made = tmp_path / "ft" / "model"
    assert Tokenizer.from_file(str(made / "tokenizer.json")).encode(text).ids == expected
    assert load_tokenizer(str(made))(text)["input_ids"] == expected
    gen_main.main(gen_flags(str(made), data, tmp_path / "gen"))


def test_a_difference_that_only_the_data_show(tmp_path):
    own = backend(pattern="§")
    split = pre_tokenizers.Split("aw ca", "isolated")
    own.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    folder = folder_of(tmp_path / "model", own, "gpt2", "GPT2Tokenizer")
    text = "I saw cats"
    assert load_tokenizer(str(folder))(text)["input_ids"] != own.encode(text).ids
    assert load_tokenizer(str(folder), [text])(text)["input_ids"] == own.encode(text).ids


def test_a_multilingual_tokenizer_keeps_its_normalizer_and_its_languages(tmp_path):
    made = MBartTokenizer(
        vocab=[*LETTERS, *((code, 0.0) for code in MBartTokenizer().lang_code_to_id), ("<mask>", 0.0)]
    )
    made._tokenizer.normalizer = normalizers.NFKC()
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mbart"}')
    assert "ﬁ" in AutoTokenizer.from_pretrained(tmp_path).tokenize("ﬁne")
    tokenizer = load_tokenizer(str(tmp_path))
    set_languages(tokenizer, "it", "en_XX", "de_DE")
    tokens = [
        tokenizer.convert_ids_to_tokens(tokenizer(**read)["input_ids"])
        for read in ({"text": "ﬁne"}, {"text_target": "ﬁne"})
    ]
    assert tokens == [["▁", *"fine", "</s>", "en_XX"], ["▁", *"fine", "</s>", "de_DE"]]


def test_teacher_and_student_must_split_alike():
    ours, theirs = (
        PreTrainedTokenizerFast(tokenizer_object=backend(), eos_token="<end>", pad_token="<pad>") for _ in range(2)
    )
    check_same_tokenizer(ours, theirs)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(UserError, match="they have the same vocabulary but split .* in different ways"):
        check_same_tokenizer(ours, theirs)


def test_two_readings_that_stay_different_are_refused(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "model", backend(), "gpt2", "GPT2Tokenizer")
    monkeypatch.setattr(tokenizer_file, "_read_differently", lambda *_: "a text")
    with pytest.raises(UserError, match="transformers and its tokenizer.json make different tokens of 'a text'"):
        load_tokenizer(str(folder))
