"""Truncation by the length limits: exact counts, and one warning if much is cut."""

import copy
import threading

import numpy as np
import pytest
from conftest import ALL_LETTERS
from tiny_runs import ft_flags, gen_flags
from tokenizers import processors
from transformers import ByT5Tokenizer

import ft_main
import gen_main
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets
from src.tokens.truncation import Cuts, Lengths, cut_warnings, percent


def tokens(*lengths: int, limit: int) -> Lengths:
    return Lengths.of(np.array(lengths, dtype=np.int32), limit)


def test_lengths():
    assert tokens(3, 5, 4, 9, limit=4) == Lengths(limit=4, n=4, mean=5.25, longest=9, n_cut=2, enough=9)
    assert tokens(limit=4) == Lengths(limit=4)
    assert (tokens(3, 5, 4, 9, limit=4).share, tokens(limit=4).share) == (0.5, 0.0)


def test_what_would_leave_99_percent_whole():
    assert tokens(*range(1, 101), limit=9).enough == 99
    assert tokens(*range(1, 102), limit=9).enough == 100
    assert tokens(*[7] * 99, 500, limit=9).enough == 7


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0 %"), (0.0001, "0.1 %"), (0.012, "1.2 %"), (0.1, "10 %"), (0.996, "100 %"), (1, "100 %")]
)
def test_percent(share, shown):
    assert percent(share) == shown


def test_a_tenth_may_be_cut_without_a_word():
    few = Cuts(tokens(*[3] * 9, 8, limit=4), tokens(*[3] * 9, 8, limit=4))
    assert cut_warnings(few) == {}
    more = Cuts(tokens(*[3] * 8, 7, 8, limit=4), tokens(*[3] * 7, 6, 7, 8, limit=5))
    assert cut_warnings(more)["inputs"] == (
        "2 of 10 (20 %) inputs are cut to --max_input_length 4 at their end (--truncation_side); 8 would keep 99 % of "
        "them whole"
    )
    assert cut_warnings(more)["targets"] == (
        "3 of 10 (30 %) targets are cut to --max_labels_length 5; 8 would keep 99 % of them whole"
    )


def test_most_targets():
    half, most = (Cuts(tokens(1, limit=9), tokens(*lengths, limit=4)) for lengths in ((3, 4, 5, 6), (3, 5, 6)))
    assert "most" not in cut_warnings(half)["targets"]
    assert cut_warnings(most)["targets"].startswith("most targets are truncated: 2 of 3 (67 %) targets are cut to")
    assert cut_warnings(Cuts(tokens(1, limit=9))) == {}


def test_targets_that_are_nothing():
    cuts = Cuts(tokens(1, limit=9), tokens(*[1] * 1200, limit=2), n_empty=1100)
    assert cut_warnings(cuts)["empty targets"] == (
        "1,100 of 1,200 targets are empty after truncation: the text is blank, or --max_labels_length 2 is too small"
    )


# ------------------------------------------------------------------------------------------------------------- counting


def bart_like(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"bos_token": "<s>"})
    special = [("<s>", changed.bos_token_id), ("</s>", changed.eos_token_id)]
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    changed.backend_tokenizer.post_processor = template
    return changed


@pytest.mark.parametrize("kind", ["t5", "bart-like", "slow"])
def test_what_is_left_is_what_the_tokenizer_itself_would_leave(tiny_tokenizers, tiny_corpus, kind):
    """Of inputs and labels, also by a tokenizer in Python; nothing is tokenized twice to know what was there."""
    tokenizer = {"t5": tiny_tokenizers["t5"], "bart-like": bart_like(tiny_tokenizers["t5"]), "slow": ByT5Tokenizer()}[
        kind
    ]
    texts = [*tiny_corpus[:40], "", "a"]
    whole = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    for limit in (3, 6, 11, 30):
        made = Preprocessor(copy.deepcopy(tokenizer), True, max_input_length=limit, max_labels_length=limit)
        own = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        for encoded in (made.encode_inputs(texts), made.encode_labels(texts)):
            assert [encoded.tokens[row].tolist() for row in range(len(texts))] == own
            assert encoded.whole.tolist() == whole


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_cuts_of_a_split_by_hand(tiny_tokenizers, family):
    tokenizer = tiny_tokenizers[family]
    is_encoder_decoder = family == "t5"
    prompt = "summarize:"
    texts, targets = ["the red cat", "a dog sees the old house", "the red cat"], ["a", "a cat finds a bird", ""]

    def n(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    if is_encoder_decoder:
        inputs = [n(f"{prompt} {text}") + 1 for text in texts]
    else:
        inputs = [n(text) + n(f" {prompt}") for text in texts]
    labels = [n(target if is_encoder_decoder else f" {target}") + 1 for target in targets[:2]] + [1]
    limits = (inputs[0], labels[1] - 1)
    made = Preprocessor(tokenizer, is_encoder_decoder, *limits, task_prompt=prompt)
    data = TokenizedDatasets({"dev": {"text": texts[:1]}, "train": {"text": texts, "target": targets}}, made)
    assert data.split("dev").cuts == Cuts(Lengths(limits[0], 1, inputs[0], inputs[0], 0, inputs[0]))
    cuts = data.split("train").cuts
    assert cuts.inputs == Lengths(limits[0], 3, pytest.approx(sum(inputs) / 3), inputs[1], 1, inputs[1])
    assert cuts.targets == Lengths(limits[1], 3, pytest.approx(sum(labels) / 3), labels[1], 1, labels[1])
    assert cuts.n_empty == 1


@pytest.mark.parametrize(
    ("target", "limit", "is_empty"),
    [
        ("", 9, True),
        (" \n\t", 9, True),
        ("a cat", 1, True),  # EOS alone is left
        ("cat", 2, False),
        ("日", 9, False),  # an unknown word is one
        ("</s>", 9, True),
        ("<pad>", 9, True),
    ],
)
@pytest.mark.parametrize("kind", ["t5", "gpt2", "bart-like"])
def test_what_counts_as_nothing(tiny_tokenizers, kind, target, limit, is_empty):
    """BART's BOS is nothing either."""
    tokenizer = bart_like(tiny_tokenizers["t5"]) if kind == "bart-like" else tiny_tokenizers[kind]
    limit_of_kind = limit + (limit > 1 and kind == "bart-like")
    made = Preprocessor(tokenizer, kind != "gpt2", 32, limit_of_kind, special_tokens_in_text=True)
    assert made.encode_labels([target, "cat", target]).n_empty == 2 * is_empty + (limit == 1)


def test_a_word_boundary_alone_is_nothing(tiny_tokenizers):
    """SentencePiece's first token may be the space before a word that is spelled out."""
    tokenizer = tiny_tokenizers["t5"]
    boundary = next(token for token in tokenizer.get_vocab().values() if not tokenizer.decode([token]).strip()
                    and token not in tokenizer.all_special_ids)  # fmt: skip
    word = next(w for w in (*ALL_LETTERS, "qu") if tokenizer(w)["input_ids"][0] == boundary)
    counts = [Preprocessor(tokenizer, True, 32, limit).encode_labels([word]).n_empty for limit in (2, 3)]
    assert counts == [1, 0]


# --------------------------------------------------------------------------------------------------------------- saying

LONG = "the red cat sees a dog near the old house"


def warnings_of(printed: str) -> list[str]:
    return [line.removeprefix("warning: ") for line in printed.splitlines() if line.startswith("warning: ")]


def test_every_kind_is_said_once_for_the_first_split_where_it_occurs(tiny_tokenizers, capsys):
    """Also of a split that is tokenized ahead, and then by whoever asks for it, not by the thread."""
    fine = {"text": ["a"] * 4, "target": ["a"] * 4}
    cut = {"text": [LONG] * 4, "target": [LONG] * 4}
    blank = {"text": [LONG] * 4, "target": ["", "", LONG, LONG]}
    made = Preprocessor(tiny_tokenizers["t5"], True, 8, 4)
    data = TokenizedDatasets({"dev": blank, "train_0": fine, "train_1": cut, "train_2": blank, "train_3": blank}, made)
    data.split("train_0")
    assert capsys.readouterr().out == ""
    data.tokenize_ahead("train_1")
    data._coming.result()
    assert capsys.readouterr().out == ""
    data.split("train_1")
    first = warnings_of(capsys.readouterr().out)
    assert [line.partition("4 of 4")[0] for line in first] == ["train_1: ", "train_1: most targets are truncated: "]
    data.split("dev")
    assert capsys.readouterr().out == ""
    data.split("train_2")
    (line,) = warnings_of(capsys.readouterr().out)
    assert line.startswith("train_2: 2 of 4 targets are empty after truncation")
    data.split("train_3")
    assert capsys.readouterr().out == ""


def test_the_thread_itself_says_nothing(tiny_tokenizers, monkeypatch):
    threads = []
    monkeypatch.setattr("src.tokens.tokenized.say", lambda line: threads.append(threading.current_thread()))
    made = Preprocessor(tiny_tokenizers["t5"], True, 8, 4)
    data = TokenizedDatasets({"train": {"text": [LONG], "target": [LONG]}}, made)
    data.tokenize_ahead("train")
    data.split("train")
    assert threads == [threading.main_thread()] * 2


def test_a_run_says_it_once(tiny_models, rotation_path, tmp_path, capsys):
    """Three training splits, dev, test: all are cut."""
    flags = {"max_labels_length": 3, "max_input_length": 3, "epochs": 3, "test_every_n_epochs": 1}
    ft_main.main(ft_flags(tiny_models["t5"]["student"], rotation_path, tmp_path / "out", **flags))
    said = [line for line in warnings_of(capsys.readouterr().out) if "--max_" in line]
    assert [line.partition(";")[0] for line in said] == [
        "train_0: 10 of 10 (100 %) inputs are cut to --max_input_length 3 at their end (--truncation_side)",
        "train_0: most targets are truncated: 10 of 10 (100 %) targets are cut to --max_labels_length 3",
    ]


def test_writing_warns_of_inputs_alone(tiny_models, rotation_path, tmp_path, capsys):
    flags = {"max_labels_length": 2, "max_input_length": 3, "split_for_generation": ("train_0", "dev")}
    gen_main.main(gen_flags(tiny_models["gpt2"]["student"], rotation_path, tmp_path / "out", **flags))
    (line,) = (line for line in warnings_of(capsys.readouterr().out) if "--max_" in line)
    assert line.startswith("train_0: 10 of 10 (100 %) inputs are cut to --max_input_length 3")
