"""Special tokens in texts, exact prompts, and truncation at the beginning."""

import copy
import json

import pytest
from conftest import FAMILY_NAMES
from tiny_runs import ft_flags
from tiny_students import byte_level, unigram, wordpiece
from transformers import NllbTokenizer

import ft_main
from src.config.errors import UserError
from src.models.multilingual import set_languages
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets
from tests.models.test_multilingual import LETTERS
from tests.tokens.test_batches import ids, inputs_of, labels_of, with_special_tokens

NAMED = "a </s> b <pad> c<unk>"


def control_tokens(tokenizer, tokens: list[int]) -> list[int]:
    return [token for token in tokens if token in set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}]


# --------------------------------------------------------------------------------------------- special tokens in texts


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_texts_that_name_special_tokens_are_text(tiny_tokenizers, family):
    tokenizer = tiny_tokenizers[family]
    kind = family in ("t5", "bart")
    made = Preprocessor(tokenizer, kind, 64, 64)
    (text, plain), (target, _) = (encode(made, NAMED, "a b") for encode in (inputs_of, labels_of))
    around = 1 if kind else 0  # T5's and BART's EOS
    assert len(control_tokens(tokenizer, text)) == len(control_tokens(tokenizer, plain))
    assert len(control_tokens(tokenizer, text)) >= around
    assert target[-1] == tokenizer.eos_token_id
    assert not control_tokens(tokenizer, target[:-1][1:])
    assert inputs_of(made, "a b") == [plain]
    by_flag = Preprocessor(tokenizer, kind, 64, 64, special_tokens_in_text=True)
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id} <= set(labels_of(by_flag, NAMED)[0][:-1])


def test_names_in_texts_do_not_change_the_ids_of_other_added_tokens():
    tokenizer = byte_level([])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|special|>"]})
    tokenizer.add_tokens(["<think>"])
    [labels] = labels_of(Preprocessor(tokenizer, False, 64, 64), "<think> a <|special|>")
    assert tokenizer.convert_tokens_to_ids("<think>") in labels
    assert tokenizer.convert_tokens_to_ids("<|special|>") not in labels


@pytest.mark.parametrize(
    ("tokenizer", "kind"),
    [(unigram(["<", ">", "/"]), True), (byte_level([]), False), (wordpiece(["<", ">", "/"]), True)],
    ids=["unigram", "bytes", "wordpiece"],
)
def test_a_text_with_their_names_is_written_as_it_was(tokenizer, kind):
    """A model of the kind Unigram has their names in its vocabulary, too."""
    text = "say </s> now" if kind is False or tokenizer.eos_token == "</s>" else "say </s> [ SEP ] now"
    labels = labels_of(Preprocessor(tokenizer, kind, 64, 64), text)[0]
    assert labels[-1] == tokenizer.eos_token_id not in labels[:-1]
    written = tokenizer.decode(labels[:-1]).replace(" ", "")
    if tokenizer.unk_token_id not in labels:
        assert written == text.replace(" ", "")


def test_the_prompt_s_control_tokens_stay_while_the_text_s_are_text(tiny_tokenizers):
    t5 = tiny_tokenizers["t5"]
    made = Preprocessor(t5, True, 64, 8, task_prompt="<pad> say:")
    control, text = inputs_of(made, "a cat", "a </s> cat")
    assert control[0] == text[0] == t5.pad_token_id
    assert control_tokens(t5, text) == [t5.pad_token_id, t5.eos_token_id]
    assert text[-2:] == control[-2:]


def test_a_language_named_in_a_text_is_a_word(tmp_path):
    tokenizer = NllbTokenizer(vocab={piece: index for index, (piece, _) in enumerate(LETTERS)}, merges=[])
    set_languages(tokenizer, "it", "eng_Latn", "deu_Latn")
    made = Preprocessor(tokenizer, True, 64, 64)
    [text] = inputs_of(made, "a fra_Latn b")
    english, french = tokenizer.convert_tokens_to_ids(["eng_Latn", "fra_Latn"])
    assert text[0] == english and french not in text and text[-1] == tokenizer.eos_token_id
    assert labels_of(made, "a fra_Latn")[0][0] == tokenizer.convert_tokens_to_ids("deu_Latn")


def test_one_that_is_found_is_warned_of_once(tiny_models, tmp_path, tiny_dataset, capsys):
    data = copy.deepcopy(tiny_dataset)
    data["train"]["target"][3] = "a </s> cat."
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data))
    ft_main.main(ft_flags(tiny_models["t5"]["student"], path, tmp_path / "a", epochs=1))
    said = capsys.readouterr().out
    assert said.count("warning: train: texts contain names of special tokens (</s>), which are read as text; ") == 1
    assert "--special_tokens_in_text True" in said
    flags = ft_flags(tiny_models["t5"]["student"], path, tmp_path / "b", epochs=1, special_tokens_in_text=True)
    ft_main.main(flags)
    assert "special tokens" not in capsys.readouterr().out


@pytest.mark.parametrize("decoder_only", [True, False])
def test_a_text_that_begins_with_bos_gets_no_second(tiny_tokenizers, decoder_only):
    tokenizer = with_special_tokens(tiny_tokenizers["gpt2" if decoder_only else "t5"], "<s> $A </s>")
    made = Preprocessor(tokenizer, not decoder_only, 64, 8, special_tokens_in_text=True)
    plain, rendered = inputs_of(made, "a cat", "<s>a cat")
    assert plain[0] == rendered[0] == tokenizer.bos_token_id
    assert rendered.count(tokenizer.bos_token_id) == 1


# ------------------------------------------------------------------------------------------------ prompts to the letter


def chat() -> tuple:
    tokenizer = byte_level(["Ġmodern", "Ġcat", "Ġassistant", "assistant"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer, *tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])


@pytest.mark.parametrize("spelling", ["<|im_end|>\n<|im_start|>assistant\n", r"<|im_end|>\n<|im_start|>assistant\n"])
def test_a_chat_prompt_is_kept_to_the_letter(spelling):
    tokenizer, start, end = chat()
    made = Preprocessor(tokenizer, False, 64, 64, task_prompt=spelling)
    [read], [target] = inputs_of(made, "a cat"), labels_of(made, "assistant")
    newline, word = ids(tokenizer, "\n"), ids(tokenizer, "assistant")
    assert read == [*ids(tokenizer, "a cat"), end, *newline, start, *word, *newline]
    assert target == [*word, tokenizer.eos_token_id]
    assert tokenizer.decode(read + target[:-1]) == "a cat<|im_end|>\n<|im_start|>assistant\nassistant"


@pytest.mark.parametrize(
    ("prompt", "whole"),
    [
        ("modern:", "a cat modern: modern cat"),
        (" modern:", "a cat modern: modern cat"),
        ("modern: ", "a cat modern: modern cat"),
        ("summarize: ", "a cat summarize: modern cat"),
        ("  modern:", "a cat  modern: modern cat"),
        (r"\nmodern:", "a cat\nmodern: modern cat"),
        ("\tmodern:\n", "a cat\tmodern:\nmodern cat"),
        (r"\n", "a cat\nmodern cat"),
        ("<|im_end|>", "a cat<|im_end|>modern cat"),
        ("", "a cat modern cat"),
        ("  ", "a cat modern cat"),
        ("bart", "a cat modern cat"),
    ],
)
def test_text_prompt_and_target_make_one_text(prompt, whole):
    """And the tokens are those of the whole text, as a model has seen it."""
    tokenizer, *_ = chat()
    made = Preprocessor(tokenizer, False, 64, 64, task_prompt=prompt)
    tokens = inputs_of(made, "a cat")[0] + labels_of(made, "modern cat")[0][:-1]
    assert tokenizer.decode(tokens) == whole
    assert tokens == ids(tokenizer, whole)


def test_a_blank_target_ends_at_once_behind_every_prompt():
    tokenizer, *_ = chat()
    for prompt in ("modern:", r"assistant\n", "<|im_end|>"):
        made = Preprocessor(tokenizer, False, 64, 64, task_prompt=prompt)
        assert labels_of(made, " ", "") == [[tokenizer.eos_token_id]] * 2


def test_an_encoder_decoder_model_s_prompt_is_words_and_a_space(tiny_tokenizers):
    made = Preprocessor(tiny_tokenizers["t5"], True, 64, 8, task_prompt=r" modern\n: ")
    assert made.prompt == r"modern\n: "


def test_stored_targets_follow_a_space(tiny_tokenizers):
    """Data of an API are prepared without a prompt."""
    made = Preprocessor(tiny_tokenizers["gpt2"], False, 64, 8, task_prompt=r"answer:\n")
    n = len(labels_of(made, "a cat")[0])
    columns = {"text": ["x"], "target": ["a cat"], "tokens": [[[1]] * n], "logits": [[[0.0]] * n]}
    data = TokenizedDatasets({"train": columns}, made)
    with pytest.raises(UserError, match="--task_prompt"):
        data.split("train")


# ------------------------------------------------------------------------------------------------ cut at the beginning


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_text_too_long_may_lose_its_beginning(tiny_tokenizers, family):
    tokenizer = with_special_tokens(tiny_tokenizers[family], "<s> $A </s>" if family == "t5" else "<s> $A")
    text = "the red cat sees a dog near the old house"
    whole, right, left = (
        inputs_of(Preprocessor(tokenizer, family == "t5", limit, 8, "modern:", side), text)[0]
        for limit, side in ((64, "right"), (16, "right"), (16, "left"))
    )
    n_prompt = len(ids(tokenizer, "modern:" if family == "t5" else " modern:"))
    n_begin, n_end = (n_prompt + 1, 1) if family == "t5" else (1, n_prompt)  # BOS in both, EOS behind T5's text
    assert len(right) == len(left) == 16 < len(whole)
    assert right == whole[: 16 - n_end] + whole[-n_end:]
    assert left == whole[:n_begin] + whole[n_begin - 16 :]


def test_the_warning_names_the_flag(tiny_models, tmp_path, tiny_dataset_path, capsys):
    flags = ft_flags(tiny_models["t5"]["student"], tiny_dataset_path, tmp_path / "a", epochs=1, max_input_length=8)
    ft_main.main(flags)
    assert "are cut to --max_input_length 8 at their end (--truncation_side)" in capsys.readouterr().out
    ft_main.main([*flags, "--truncation_side", "left", "--overwrite", "True"])
    assert "are cut to --max_input_length 8 at their beginning (--truncation_side)" in capsys.readouterr().out
