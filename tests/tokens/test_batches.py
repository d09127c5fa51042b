"""From texts to tokens to batches: truncation, masks, labels and order."""

import copy
import threading
from itertools import product

import numpy as np
import pytest
import torch
from conftest import DECODER_ONLY_NAMES, ENCODER_DECODER_NAMES, FAMILY_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from src.config.constants import IGNORE_INDEX
from src.config.errors import UserError
from src.config.flags.train import FineTuneArguments
from src.tokens import preprocessing
from src.tokens.batch import Batch, collate, pad_sequences
from src.tokens.chat_preprocessing import preprocessor_of
from src.tokens.order import chunks, epoch_order, least_padding, longest_first
from src.tokens.preprocessing import Preprocessor
from src.tokens.ragged import Ragged
from src.tokens.tokenized import TokenizedDatasets

PROMPT = "summarize:"
TEXT = "the red cat sees a dog near the old house"
TARGET = "a cat likes the bird"


def preprocessor(tokenizer, *, max_input_length=64, max_labels_length=32, task_prompt="", decoder_only=False):
    return Preprocessor(tokenizer, not decoder_only, max_input_length, max_labels_length, task_prompt)


def ids(tokenizer, text: str) -> list[int]:
    """Tokens of a text, without special ones."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def rows(ragged: Ragged) -> list[list[int]]:
    return [ragged[row].tolist() for row in range(len(ragged))]


def inputs_of(made: Preprocessor, *texts: str) -> list[list[int]]:
    return rows(made.encode_inputs(texts).tokens)


def labels_of(made: Preprocessor, *targets: str) -> list[list[int]]:
    return rows(made.encode_labels(targets).tokens)


def with_special_tokens(tokenizer, template: str):
    """A copy of a tokenizer that also has a BOS token and adds special tokens as `template` says."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"bos_token": "<s>"})
    special = [("<s>", changed.bos_token_id), ("</s>", changed.eos_token_id)]
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return changed


@pytest.fixture(scope="module")
def t5(tiny_tokenizers):
    return tiny_tokenizers["t5"]


@pytest.fixture(scope="module")
def gpt2(tiny_tokenizers):
    return tiny_tokenizers["gpt2"]


# ----------------------------------------------------------------------------------------------- encoder-decoder models


@pytest.mark.parametrize("prompt", ["summarize:", "summarize: ", " summarize:  "])
def test_a_prompt_is_a_prefix_and_one_space_follows_it(t5, prompt):
    made = preprocessor(t5, task_prompt=prompt)
    assert inputs_of(made, TEXT) == [t5(f"summarize: {TEXT}")["input_ids"]]


@pytest.mark.parametrize("prompt", ["", "bart", "  "])
def test_the_value_bart_means_no_prompt(t5, gpt2, prompt):
    assert inputs_of(preprocessor(t5, task_prompt=prompt), TEXT) == [t5(TEXT)["input_ids"]]
    assert inputs_of(preprocessor(gpt2, task_prompt=prompt, decoder_only=True), TEXT) == [ids(gpt2, TEXT)]


def test_a_text_too_long_is_cut_at_its_end_and_the_prompt_is_whole(t5):
    whole = t5(f"{PROMPT} {TEXT}")["input_ids"]
    shortest = len(ids(t5, PROMPT)) + 2
    for length in range(shortest, len(whole) + 3):
        [got] = inputs_of(preprocessor(t5, task_prompt=PROMPT, max_input_length=length), TEXT)
        assert got == [*whole[: min(length, len(whole)) - 1], t5.eos_token_id]
        assert got[: len(ids(t5, PROMPT))] == ids(t5, PROMPT)


def test_a_tokenizer_set_to_cut_on_the_left_cuts_no_prompt(t5):
    """Some hub tokenizers come with truncation_side = 'left'."""
    left = copy.deepcopy(t5)
    left.truncation_side = "left"
    [got] = inputs_of(preprocessor(left, task_prompt=PROMPT, max_input_length=20), TEXT)
    assert len(got) == 20
    assert got[: len(ids(t5, PROMPT))] == ids(t5, PROMPT)


def test_labels_are_the_target_and_eos_also_when_cut(t5):
    whole = ids(t5, TARGET)
    for length in range(1, len(whole) + 3):
        [got] = labels_of(preprocessor(t5, max_labels_length=length), TARGET)
        assert got == [*whole[: length - 1], t5.eos_token_id]


def test_labels_end_once_where_the_tokenizer_adds_no_eos(t5):
    bare = copy.deepcopy(t5)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    whole = ids(t5, TARGET)
    assert labels_of(preprocessor(bare), TARGET, "") == [[*whole, t5.eos_token_id], [t5.eos_token_id]]
    assert labels_of(preprocessor(bare, max_labels_length=4), TARGET) == [[*whole[:3], t5.eos_token_id]]
    assert inputs_of(preprocessor(bare), TEXT, "") == [ids(t5, TEXT), [t5.eos_token_id]]


def test_a_bart_like_tokenizer_keeps_its_bos_and_eos(t5):
    bart = with_special_tokens(t5, "<s> $A </s>")
    start, end, words = bart.bos_token_id, bart.eos_token_id, ids(t5, TARGET)
    assert labels_of(preprocessor(bart), TARGET, "") == [[start, *words, end], [start, end]]
    assert labels_of(preprocessor(bart, max_labels_length=4), TARGET) == [[start, *words[:2], end]]
    for length in (1, 2):
        [got] = labels_of(preprocessor(bart, max_labels_length=length), TARGET)
        assert len(got) <= length
        assert got[-1] == end


def test_empty_texts_and_targets_are_rows_like_others(t5):
    assert inputs_of(preprocessor(t5), "", TEXT) == [[t5.eos_token_id], t5(TEXT)["input_ids"]]
    assert labels_of(preprocessor(t5), "", TARGET) == [[t5.eos_token_id], t5(TARGET)["input_ids"]]
    [prompted] = inputs_of(preprocessor(t5, task_prompt=PROMPT), "")
    assert prompted[: len(ids(t5, PROMPT))] == ids(t5, PROMPT)
    assert prompted[-1] == t5.eos_token_id


# -------------------------------------------------------------------------------------------------- decoder-only models


def test_a_context_is_text_then_prompt_and_labels_go_on_from_there(gpt2):
    """Context and labels together are the tokens of the sentence `text prompt target`, and EOS."""
    made = preprocessor(gpt2, task_prompt="summarize: ", decoder_only=True)
    [context], [labels] = inputs_of(made, TEXT), labels_of(made, TARGET)
    assert context == ids(gpt2, f"{TEXT} summarize:")
    assert [*context, *labels] == [*ids(gpt2, f"{TEXT} summarize: {TARGET}"), gpt2.eos_token_id]


def test_without_a_prompt_the_target_goes_on_from_the_text(gpt2):
    made = preprocessor(gpt2, decoder_only=True)
    [context], [labels] = inputs_of(made, TEXT), labels_of(made, TARGET)
    assert [*context, *labels] == [*ids(gpt2, f"{TEXT} {TARGET}"), gpt2.eos_token_id]


def test_only_the_text_of_a_context_is_cut(gpt2):
    text, suffix = ids(gpt2, TEXT), ids(gpt2, f" {PROMPT}")
    for length in range(len(suffix) + 1, len(suffix) + len(text) + 3):
        made = preprocessor(gpt2, task_prompt=PROMPT, decoder_only=True, max_input_length=length)
        assert inputs_of(made, TEXT) == [[*text[: length - len(suffix)], *suffix]]


def test_a_decoder_only_target_too_long_is_cut_and_ends(gpt2):
    whole = ids(gpt2, f" {TARGET}")
    for length in range(1, len(whole) + 3):
        made = preprocessor(gpt2, decoder_only=True, max_labels_length=length)
        assert labels_of(made, TARGET) == [[*whole[: length - 1], gpt2.eos_token_id]]


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_target_is_eos_alone(gpt2, blank):
    assert labels_of(preprocessor(gpt2, decoder_only=True), blank) == [[gpt2.eos_token_id]]


def test_an_empty_text_without_prompt_gets_one_token_to_go_on_from(gpt2):
    assert inputs_of(preprocessor(gpt2, decoder_only=True), "") == [[gpt2.eos_token_id]]
    with_bos = copy.deepcopy(gpt2)
    with_bos.add_special_tokens({"bos_token": "<s>"})
    assert inputs_of(preprocessor(with_bos, decoder_only=True), "") == [[with_bos.bos_token_id]]


def test_an_empty_text_with_a_prompt_is_the_prompt(gpt2):
    assert inputs_of(preprocessor(gpt2, task_prompt=PROMPT, decoder_only=True), "") == [ids(gpt2, f" {PROMPT}")]


def test_a_llama_like_tokenizer_begins_contexts_and_nothing_else_with_bos(gpt2):
    llama = with_special_tokens(gpt2, "<s> $A")
    made = preprocessor(llama, task_prompt=PROMPT, decoder_only=True)
    suffix = ids(gpt2, f" {PROMPT}")
    assert inputs_of(made, TEXT, "") == [
        [llama.bos_token_id, *ids(gpt2, TEXT), *suffix],
        [llama.bos_token_id, *suffix],
    ]
    assert labels_of(made, TARGET) == [[*ids(gpt2, f" {TARGET}"), llama.eos_token_id]]
    short = preprocessor(llama, task_prompt=PROMPT, decoder_only=True, max_input_length=len(suffix) + 3)
    assert inputs_of(short, TEXT) == [[llama.bos_token_id, *ids(gpt2, TEXT)[:2], *suffix]]


def test_an_eos_that_the_tokenizer_adds_does_not_end_the_context(gpt2):
    """A model that reads EOS before the prompt takes the text for finished."""
    ending = with_special_tokens(gpt2, "$A </s>")
    made = preprocessor(ending, task_prompt=PROMPT, decoder_only=True)
    suffix = ids(gpt2, f" {PROMPT}")
    assert inputs_of(made, TEXT, "") == [[*ids(gpt2, TEXT), *suffix], suffix]
    assert labels_of(made, TARGET, "") == [[*ids(gpt2, f" {TARGET}"), ending.eos_token_id], [ending.eos_token_id]]
    both = with_special_tokens(gpt2, "<s> $A </s>")
    assert inputs_of(preprocessor(both, decoder_only=True), TEXT, "") == [
        [both.bos_token_id, *ids(gpt2, TEXT)],
        [both.bos_token_id],
    ]


def test_a_bos_that_is_the_eos_token_stays(gpt2):
    """OPT and GPT-2 begin with the token they end with."""
    opt = copy.deepcopy(gpt2)
    opt.add_special_tokens({"bos_token": "</s>"})
    opt.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", opt.eos_token_id)]
    )
    made = preprocessor(opt, task_prompt=PROMPT, decoder_only=True)
    suffix = ids(gpt2, f" {PROMPT}")
    assert inputs_of(made, TEXT, "") == [[opt.eos_token_id, *ids(gpt2, TEXT), *suffix], [opt.eos_token_id, *suffix]]


def test_an_eos_that_the_text_itself_ends_with_stays(gpt2):
    made = Preprocessor(gpt2, False, 64, 32, special_tokens_in_text=True)
    assert inputs_of(made, "a cat</s>") == [[*ids(gpt2, "a cat"), gpt2.eos_token_id]]


def test_a_tokenizer_that_merges_words_changes_only_the_rows_where_it_does():
    """What a target becomes must not depend on which other targets are tokenized with it."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "x", " ", "c", "d", " d", "x ", "x c"])}
    merges = [(" ", "d"), ("x", " "), ("x ", "c")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    spanning = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    made = preprocessor(spanning, decoder_only=True)
    assert ids(spanning, "x c") == [vocabulary["x c"]]
    alone = [labels_of(made, target)[0] for target in ("d", "c")]
    assert alone == [[vocabulary[" d"], 1], [vocabulary["c"], 1]]
    assert labels_of(made, "d", "c") == alone


# ---------------------------------------------------------------------------------------------------- room for the text


def test_a_tokenizer_that_drops_what_it_does_not_know():
    """Byte pairs without a token for unknown text: of the anchor, too, nothing is left."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "</s>": 2}, merges=[]))
    made = preprocessor(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), decoder_only=True)
    assert inputs_of(made, "ab", "axb") == [[0, 1], [0, 1]]
    assert labels_of(made, "ba") == [[1, 0, 2]]


def test_the_callers_tokenizer_is_left_as_it_was(t5):
    """It is saved with the student: a limit in its tokenizer.json would cut texts in whatever opens that file."""
    left = copy.deepcopy(t5)
    left.truncation_side = "left"
    before = left.backend_tokenizer.to_str()
    made = preprocessor(left, max_input_length=5, max_labels_length=4)
    assert [len(inputs_of(made, TEXT)[0]), len(labels_of(made, TARGET)[0])] == [5, 4]
    assert left.backend_tokenizer.to_str() == before
    assert left.truncation_side == "left"


@pytest.mark.parametrize("template", ["$A </s>", "<s> $A </s>"])
def test_a_prompt_that_leaves_no_room_is_refused_by_name(t5, template):
    tokenizer = with_special_tokens(t5, template)
    fixed = len(ids(t5, PROMPT)) + template.count("s>")
    for length in range(1, fixed + 1):
        with pytest.raises(UserError, match="--max_input_length.*--task_prompt") as caught:
            preprocessor(tokenizer, task_prompt=PROMPT, max_input_length=length)
        assert f"{fixed + 1} or more" in str(caught.value)
        assert "\n" not in str(caught.value)
    [got] = inputs_of(preprocessor(tokenizer, task_prompt=PROMPT, max_input_length=fixed + 1), TEXT)
    assert len(got) == fixed + 1
    n_words = len(ids(t5, PROMPT)) + 1
    assert [token for token in got if token not in tokenizer.all_special_ids] == ids(t5, f"{PROMPT} {TEXT}")[:n_words]


@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> $A </s>"])
def test_a_suffix_that_leaves_no_room_is_refused_by_name(gpt2, template):
    tokenizer = with_special_tokens(gpt2, template)
    fixed = len(ids(gpt2, f" {PROMPT}")) + template.count("<s>")
    for length in range(1, fixed + 1):
        with pytest.raises(UserError, match="--max_input_length.*--task_prompt"):
            preprocessor(tokenizer, task_prompt=PROMPT, max_input_length=length, decoder_only=True)
    made = preprocessor(tokenizer, task_prompt=PROMPT, max_input_length=fixed + 1, decoder_only=True)
    [got] = inputs_of(made, TEXT)
    assert [token for token in got if token not in tokenizer.all_special_ids] == [
        ids(gpt2, TEXT)[0],
        *ids(gpt2, f" {PROMPT}"),
    ]


def test_one_token_of_text_is_enough(gpt2):
    made = preprocessor(gpt2, decoder_only=True, max_input_length=1)
    assert inputs_of(made, TEXT, "") == [ids(gpt2, TEXT)[:1], [gpt2.eos_token_id]]


def test_lengths_and_prompt_come_from_the_flags(t5, tmp_path):
    config = FineTuneArguments(
        output_dir=str(tmp_path), dataset_path="d.json", max_input_length=20, max_labels_length=7, task_prompt="modern:"
    )
    made = preprocessor_of(config, t5, {}, is_encoder_decoder=True)
    assert (made.max_input_length, made.max_labels_length, made.prompt) == (20, 7, "modern: ")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    text=st.text("abcdehst ", max_size=40),
    target=st.text("abcdehst ", max_size=40),
    lengths=st.tuples(st.integers(12, 30), st.integers(1, 12)),
    family=st.sampled_from(FAMILY_NAMES),
)
def test_whatever_the_text_rows_fit_and_labels_end(tiny_tokenizers, text, target, lengths, family):
    tokenizer = tiny_tokenizers[family]
    decoder_only = family in DECODER_ONLY_NAMES
    made = preprocessor(tokenizer, max_input_length=lengths[0], max_labels_length=lengths[1], decoder_only=decoder_only)
    [got], [labels] = inputs_of(made, text), labels_of(made, target)
    assert 1 <= len(got) <= lengths[0]
    assert 1 <= len(labels) <= lengths[1]
    assert labels[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in labels[:-1]
    # What is not cut can be read back.
    if len(labels) < lengths[1]:
        assert tokenizer.decode(labels, skip_special_tokens=True).strip() == target.strip()


# -------------------------------------------------------------------------------------------------------------- batches


def one_split(made: Preprocessor, texts: list[str], targets: list[str] | None):
    columns = {"text": texts} if targets is None else {"text": texts, "target": targets}
    return TokenizedDatasets({"train": columns}, made).split("train")


@pytest.mark.parametrize("family", ENCODER_DECODER_NAMES)
def test_encoder_inputs_are_padded_on_the_right(tiny_tokenizers, family):
    tokenizer = tiny_tokenizers[family]
    made = preprocessor(tokenizer)
    batch = collate(made, one_split(made, ["a cat", TEXT], [TARGET, "dog"]), [0, 1])
    short, long = (tokenizer(text)["input_ids"] for text in ("a cat", TEXT))
    padding = len(long) - len(short)
    assert batch.input_ids.tolist() == [[*short, *[tokenizer.pad_token_id] * padding], long]
    assert batch.attention_mask.tolist() == [[1] * len(short) + [0] * padding, [1] * len(long)]
    assert batch.labels[0].tolist() == tokenizer(TARGET)["input_ids"]
    short = tokenizer("dog")["input_ids"]
    assert batch.labels[1].tolist() == short + [IGNORE_INDEX] * (batch.labels.shape[1] - len(short))


@pytest.mark.parametrize("family", DECODER_ONLY_NAMES)
def test_contexts_are_padded_on_the_left_and_labels_on_the_right(tiny_tokenizers, family):
    tokenizer = tiny_tokenizers[family]
    made = preprocessor(tokenizer, decoder_only=True)
    batch = collate(made, one_split(made, ["a cat", TEXT], [TARGET, "dog"]), [0, 1])
    short, long = ids(tokenizer, "a cat"), ids(tokenizer, TEXT)
    padding = len(long) - len(short)
    assert batch.input_ids.tolist() == [[*[tokenizer.pad_token_id] * padding, *short], long]
    assert batch.attention_mask.tolist() == [[0] * padding + [1] * len(short), [1] * len(long)]
    assert batch.labels[0, -1] == tokenizer.eos_token_id
    assert batch.labels[1, -1] == IGNORE_INDEX


@pytest.mark.parametrize("decoder_only", [True, False])
def test_a_real_eos_is_never_masked_where_pad_is_eos(t5, gpt2, decoder_only):
    tokenizer = copy.deepcopy(gpt2 if decoder_only else t5)
    tokenizer.pad_token = tokenizer.eos_token
    made = Preprocessor(tokenizer, not decoder_only, 64, 32, special_tokens_in_text=True)
    texts = ["a cat</s>", TEXT] if decoder_only else ["a cat", TEXT]
    batch = collate(made, one_split(made, texts, ["", TARGET]), [0, 1])
    eos = tokenizer.eos_token_id
    [own] = inputs_of(made, texts[0])
    assert own[-1] == eos
    assert batch.input_ids[0][batch.attention_mask[0] == 1].tolist() == own
    assert batch.attention_mask.sum(dim=1).tolist() == [len(own), batch.input_ids.shape[1]]
    assert (batch.labels != IGNORE_INDEX).sum(dim=1).tolist() == [1, batch.labels.shape[1]]
    assert batch.labels[0, 0] == eos
    assert batch.labels[1, -1] == eos


def test_a_batch_names_its_rows_and_follows_their_order(t5):
    made = preprocessor(t5)
    split = one_split(made, ["a cat", "a dog", "a cat", "a bird"], ["1", "2", "3", "4"])
    batch = collate(made, split, np.array([3, 0, 2]))
    assert batch.rows == (3, 0, 2)
    assert all(type(row) is int for row in batch.rows)
    assert torch.equal(batch.input_ids[1], batch.input_ids[2])
    assert not torch.equal(batch.input_ids[0], batch.input_ids[1])
    assert batch.input_ids.dtype == batch.labels.dtype == batch.attention_mask.dtype == torch.int64


def test_without_targets_there_are_no_labels(t5):
    made = preprocessor(t5)
    split = one_split(made, ["a cat"], None)
    assert split.labels is None
    batch = collate(made, split, [0])
    assert batch.labels is None
    assert batch.to(torch.device("meta")).labels is None


def test_a_batch_moves_with_all_its_tensors():
    batch = Batch(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 4), (5, 7))
    moved = batch.to(torch.device("meta"))
    assert {moved.input_ids.device.type, moved.attention_mask.device.type, moved.labels.device.type} == {"meta"}
    assert moved.rows == (5, 7)
    assert batch.labels.device.type == "cpu"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    sequences=st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5).filter(any),
    left=st.booleans(),
)
def test_padding_is_where_the_mask_is_zero(sequences, left):
    """Also where the padding's value is a token: it is told by the mask alone."""
    padded, mask = pad_sequences([np.array(each, dtype=np.int32) for each in sequences], 3, on_the_left=left)
    assert padded.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    for sequence, row, place in zip(sequences, padded, mask, strict=True):
        assert row[place == 1].tolist() == sequence
        assert (row[place == 0] == 3).all()
        assert place.tolist() == sorted(place.tolist(), reverse=not left)


# ------------------------------------------------------------------------------------------------------------- datasets


def counting(monkeypatch) -> tuple[list[str], list[str]]:
    """Every text that is tokenized from now on, as an input or as a target."""
    seen: tuple[list[str], list[str]] = ([], [])
    original = Preprocessor.encode_in_chunks

    def count(self, texts, *, labels):
        seen[labels].extend(texts)
        return original(self, texts, labels=labels)

    monkeypatch.setattr(Preprocessor, "encode_in_chunks", count)
    return seen


def test_equal_texts_are_tokenized_once_over_all_splits_and_epochs(t5, monkeypatch):
    texts, targets = counting(monkeypatch)
    data = TokenizedDatasets(
        {
            "train_0": {"text": ["a cat", "a dog", "a cat"], "target": ["1", "2", "3"]},
            "train_1": {"text": ["a dog", "a dog"], "target": ["4", "5"]},
            "dev": {"text": ["a bird"], "target": ["6"]},
        },
        preprocessor(t5),
    )
    assert texts == []  # nothing before its first use
    first = data.split("train_0")
    for _ in range(3):
        assert data.split("train_0") is first
        for name in ("train_1", "dev"):
            data.split(name)
    assert sorted(texts) == ["a bird", "a cat", "a dog"]
    assert targets == ["1", "2", "3", "4", "5", "6"]


def test_a_split_tokenized_ahead_is_the_same(t5, monkeypatch):
    """In another thread, with a tokenizer of its own, once; whichever split is asked for next waits for it."""
    words = ["cat", "dog", "bird", "house"]
    datasets = {
        f"train_{k}": {"text": [f"a {word} {k % 2}" for word in words], "target": [f"{word} {k}" for word in words]}
        for k in range(4)
    }
    plain = TokenizedDatasets(datasets, preprocessor(t5))
    expected = {name: plain.split(name) for name in datasets}
    threads, tokenizers = [], []
    encode = Preprocessor.encode_in_chunks

    def noted(self, texts, *, labels):
        if labels:
            threads.append(threading.current_thread() is threading.main_thread())
            tokenizers.append(self.tokenizer)
        return encode(self, texts, labels=labels)

    monkeypatch.setattr(Preprocessor, "encode_in_chunks", noted)
    data = TokenizedDatasets(datasets, preprocessor(t5))
    made = [data.split("train_0")]
    data.tokenize_ahead("train_1")
    data.tokenize_ahead("train_1")
    made.append(data.split("train_1"))
    data.tokenize_ahead("train_1")  # is there
    data.tokenize_ahead("train_2")
    made += [data.split("train_3"), data.split("train_2")][::-1]
    assert threads == [True, False, False, True]
    assert tokenizers[1] is not tokenizers[0]
    for split in made:
        same = expected[split.name]
        got, wanted = ([each.inputs[i].tolist() for i in each.input_of_row] for each in (split, same))
        assert got == wanted
        assert rows(split.labels) == rows(same.labels)


def test_what_goes_wrong_ahead_is_raised_where_the_split_is_used(t5):
    stored = {"text": ["a", "b"], "target": ["a", "b"], "tokens": [[[1]], [[1]]], "logits": [[[0.0]], [[0.0]]]}
    data = TokenizedDatasets({"train_0": {"text": ["a"], "target": ["a"]}, "train_1": stored}, preprocessor(t5))
    data.tokenize_ahead("train_1")
    with pytest.raises(UserError, match="split 'train_1', row 0"):
        data.split("train_1")


def test_rows_of_every_split_read_their_own_text(t5):
    datasets = {
        "train_0": {"text": ["a cat", "a dog", "a cat"], "target": ["a", "b", "c"]},
        "train_1": {"text": ["a bird", "a dog"], "target": ["d", "e"]},
    }
    data = TokenizedDatasets(datasets, preprocessor(t5))
    splits = {name: data.split(name) for name in datasets}
    for name, split in splits.items():
        texts = datasets[name]["text"]
        assert len(split) == data.rows(name) == len(texts)
        got = [split.inputs[place].tolist() for place in split.input_of_row]
        assert got == [t5(text)["input_ids"] for text in texts]
        assert split.input_lengths.tolist() == [len(each) for each in got]
        assert rows(split.labels) == [t5(target)["input_ids"] for target in datasets[name]["target"]]
    assert "train_0" in data
    assert "test" not in data


def test_more_texts_than_fit_one_call_keep_their_order(t5, monkeypatch):
    monkeypatch.setattr(preprocessing, "TEXTS_PER_CALL", 2)
    texts = ["a cat", "", "a dog", "the bird", "house"]
    made = preprocessor(t5)
    assert inputs_of(made, *texts) == [t5(text)["input_ids"] for text in texts]
    assert labels_of(made, *texts) == [t5(text)["input_ids"] for text in texts]
    assert len(made.encode_inputs([]).tokens) == 0


# --------------------------------------------------------------------------------------------------------------- ragged


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=4), max_size=4))
def test_ragged_gives_back_its_sequences(parts):
    together = Ragged.concatenate([Ragged.of(part) for part in parts])
    flat = [sequence for part in parts for sequence in part]
    assert rows(together) == rows(Ragged.of(flat)) == flat
    assert len(together) == len(flat)
    assert together.lengths.tolist() == [len(sequence) for sequence in flat]
    assert together.flat.dtype == np.int32


# ---------------------------------------------------------------------------------------------------------------- order


def test_an_epochs_order_follows_from_seed_and_epoch():
    def order_of(seed, epoch):
        return tuple(epoch_order(50, seed=seed, epoch=epoch))

    orders = {(seed, epoch): order_of(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == len(orders)
    for (seed, epoch), order in orders.items():
        assert sorted(order) == list(range(50))
        assert order_of(seed, epoch) == order


@pytest.mark.parametrize("n_rows", [0, 1, 3, 8])
def test_an_epoch_has_every_row_once(n_rows):
    assert sorted(epoch_order(n_rows, seed=1, epoch=0)) == list(range(n_rows))


def test_every_row_may_come_anywhere_in_an_epoch():
    places = np.array([np.argsort(epoch_order(6, seed=seed, epoch=0)) for seed in range(3000)])
    counts = np.array([np.bincount(column, minlength=6) for column in places.T])
    assert abs(counts - 500).max() < 5 * np.sqrt(3000 * 5 / 36)  # five standard deviations


def test_an_epochs_order_leaves_global_random_states_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    epoch_order(10, seed=1, epoch=1)
    assert (np.random.get_state()[1] == before).all()


# ------------------------------------------------------------------------------------------------------- cut-off texts


@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_text_that_was_cut_off_teaches_no_eos(tiny_tokenizers, decoder_only):
    tokenizer = tiny_tokenizers["gpt2" if decoder_only else "t5"]
    made = preprocessor(tokenizer, decoder_only=decoder_only, max_labels_length=8)
    targets = [TARGET, "a cat", "a cat", "", TARGET]
    columns = {"text": [TEXT] * 5, "target": targets}
    reasons = ["length", "length", "stop", "length", None]
    whole = TokenizedDatasets({"train": columns}, made).split("train").labels
    cut = TokenizedDatasets({"train": {**columns, "finish_reason": reasons}}, made).split("train").labels
    assert all(labels[-1] == tokenizer.eos_token_id for labels in rows(whole))
    assert rows(cut) == [rows(whole)[0][:-1], rows(whole)[1][:-1], *rows(whole)[2:]]  # an empty one keeps its EOS


# -------------------------------------------------------------------------------------------------------------- cutting


def padded(inputs, labels, parts):
    return sum(len(rows) * (inputs[rows].max() + labels[rows].max()) for rows in parts)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=9), st.integers(0, 60))
def test_cutting_costs_least(pairs, pass_tokens):
    """No other way to cut the sorted rows has less padding, the cost of a pass included."""
    inputs, labels = (np.array(column) for column in zip(*pairs, strict=True))
    parts = least_padding(inputs, labels, pass_tokens)
    together = np.concatenate(parts)
    assert sorted(together) == list(range(len(pairs)))
    assert (np.diff((inputs + labels)[together]) >= 0).all()
    costs = []
    for places in product((False, True), repeat=len(pairs) - 1):
        others = np.split(together, [place + 1 for place, cut in enumerate(places) if cut])
        costs.append(padded(inputs, labels, others) + pass_tokens * len(others))
    assert padded(inputs, labels, parts) + pass_tokens * len(parts) == min(costs)


def test_equal_rows_and_small_batches_stay_together():
    lengths = np.full(96, 20)
    assert len(least_padding(lengths, lengths, 1)) == 1
    few = np.array([1, 2, 30])
    assert len(least_padding(few, few, 256)) == 1
    assert len(least_padding(few, few, 0)) == 3


def test_most_padding_is_cut_off():
    """Lengths as in real data: half of a random batch is padding, and a few parts save most of it."""
    rng = np.random.default_rng(0)
    inputs = np.exp(rng.normal(3, 0.45, 96)).astype(int) + 1
    labels = inputs + rng.integers(-2, 4, 96)
    parts = least_padding(inputs, labels, 256)
    filled = (inputs + labels).sum()
    assert filled < 0.6 * padded(inputs, labels, [np.arange(96)])
    assert filled > 0.75 * padded(inputs, labels, parts)
    assert len(parts) <= 6


@pytest.mark.parametrize("left", [True, False])
def test_a_part_of_a_batch_has_no_common_padding(left):
    """A label that is not known, in the middle of a target, is kept where others are."""
    sources, targets = [[5, 6, 7], [8], [9, 3]], [[1, 2], [3], [4, IGNORE_INDEX, 5, IGNORE_INDEX]]
    ids, mask = pad_sequences([np.array(each) for each in sources], 0, on_the_left=left)
    labels, _ = pad_sequences([np.array(each) for each in targets], IGNORE_INDEX, on_the_left=False)
    batch = Batch(ids, mask, labels, (40, 41, 42))
    assert [each.tolist() for each in (batch.lengths.inputs, batch.lengths.labels)] == [[3, 1, 2], [2, 1, 3]]
    part = batch.part(np.array([1, 2]))
    assert part.rows == (41, 42)
    assert part.input_ids.tolist() == ([[0, 8], [9, 3]] if left else [[8, 0], [9, 3]])
    assert part.attention_mask.tolist() == ([[0, 1], [1, 1]] if left else [[1, 0], [1, 1]])
    assert part.labels.tolist() == [[3, IGNORE_INDEX, IGNORE_INDEX], [4, IGNORE_INDEX, 5]]
    [whole] = [batch.part(np.arange(3))]
    assert torch.equal(whole.input_ids, ids) and torch.equal(whole.labels, labels[:, :3])
    moved = batch.to(torch.device("cpu"))
    assert moved.lengths is batch.lengths  # a GPU is not asked


def test_longest_first_keeps_the_order_of_equals():
    assert longest_first(np.array([2, 5, 2, 7, 5])).tolist() == [3, 1, 4, 0, 2]
    lengths = np.random.default_rng(0).integers(0, 9, 5000)  # more than a sort does by insertion
    assert longest_first(lengths).tolist() == sorted(range(5000), key=lambda row: -lengths[row])
    assert longest_first(np.array([], dtype=np.int64)).tolist() == []


def test_chunks_are_consecutive_and_the_last_may_be_short():
    assert list(chunks([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(chunks([1, 2], 5)) == [[1, 2]]
    assert list(chunks([], 2)) == []
