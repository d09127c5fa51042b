"""Metrics: values worked out by hand, degenerate texts, and the choice of metrics."""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from src.config import constants
from src.config.errors import UserError
from src.evaluation import metrics
from src.evaluation.metrics import (
    METRICS,
    bertscore,
    meteor,
    resolve_metrics,
    score_columns,
    score_definitions,
    score_texts,
)
from src.evaluation.metrics.metric import Metric
from src.evaluation.metrics.word_metrics import RougeTokenizer, gleu_words, wer_words

ROOT = Path(__file__).parents[2]
TEXT_METRICS = ("wer", "gleu", "rouge", "sacrebleu", "chrf")  # need neither a model nor downloaded data
SENTENCES = ["the cat sat on the mat", "a dog, barking, ran to the house", "where is the 3rd one ?"]


def score(predictions, references, *names):
    return score_texts(predictions, references, names or TEXT_METRICS, final=False)


# --- degenerate texts


def test_identical_texts_have_the_best_scores():
    scores = score(SENTENCES, SENTENCES)
    assert scores.pop("wer") == 0
    assert scores == pytest.approx(dict.fromkeys(scores, 100.0))


def test_one_empty_prediction_scores_zero_everywhere_and_all_words_wrong():
    scores = score([""], ["the cat"])
    assert scores.pop("wer") == 100
    assert scores == dict.fromkeys(scores, 0.0)


def test_empty_against_empty_is_no_word_error_and_no_nan():
    scores = score([""], [""])
    assert scores == dict.fromkeys(scores, 0.0)


def test_empty_prediction_counts_as_a_row():
    sentence = "the cat sat on the mat"
    scores = score([sentence, ""], [sentence, sentence])
    assert scores["rouge1_f"] == scores["rougeL_p"] == scores["wer"] == 50
    assert scores["gleu_1"] == scores["gleu_4"] == 50  # half of all n-grams
    # all n-grams match, but only half of the length is there: brevity penalty exp(1 − 2)
    assert scores["sacrebleu"] == pytest.approx(36.7879, abs=1e-3)


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="no rows"):
        score([], [])


def test_unequal_lengths_are_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="2 predictions, but 1 references"):
        score(["a", "b"], ["a"])


# --- values worked out by hand


def test_sacrebleu_is_the_geometric_mean_of_four_precisions():
    # 4/5, 3/4, 2/3 and 1/2 of the n-grams match; lengths are equal
    assert score(["a b c d e"], ["a b c d f"], "sacrebleu") == {"sacrebleu": pytest.approx(100 * 0.2**0.25)}


def test_sacrebleu_pools_counts_over_the_corpus():
    # 1-grams 7/8, 2-grams 5/6, 3-grams 3/4, 4-grams 1/2
    expected = 100 * (7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** 0.25
    assert score(["a b c d", "e f g h"], ["a b c d", "e f g x"], "sacrebleu")["sacrebleu"] == pytest.approx(expected)


def test_chrf_averages_the_character_orders_that_exist():
    # "ab" / "ac": one of two characters, none of one pair
    assert score(["ab"], ["ac"], "chrf") == {"chrf": pytest.approx(25.0)}


def test_chrf_weighs_recall_twice():
    # precision 1 for the only common order, recall 1/2: F2 = 5PR / (4P + R)
    assert score(["a"], ["ab"], "chrf")["chrf"] == pytest.approx(100 * 5 * 0.5 / 4.5)


def test_rouge_precision_recall_and_f():
    scores = score(["the cat sat"], ["the cat sat on the mat"], "rouge")
    expected = {"rouge1": (1, 1 / 2, 2 / 3), "rouge2": (1, 2 / 5, 4 / 7), "rougeL": (1, 1 / 2, 2 / 3)}
    for kind, values in expected.items():
        assert [scores[f"{kind}_{side}"] for side in "prf"] == pytest.approx([100 * value for value in values])


def test_rouge_l_follows_the_order_of_words_and_is_a_mean_over_rows():
    # the longest common subsequence of "b a" and "a b" has one word of two
    scores = score(["b a", "x"], ["a b", "y"], "rouge")
    assert (scores["rouge1_f"], scores["rougeL_f"], scores["rouge2_f"]) == (50, 25, 0)


def test_rouge_does_not_stem_but_ignores_case():
    assert score(["Cats running"], ["cat run"], "rouge")["rouge1_f"] == 0
    assert score(["CAT run"], ["cat RUN"], "rouge")["rouge1_f"] == 100


def test_gleu_by_maximal_order():
    # "a b c" / "a b d": 2 of 3 words; with pairs 3 of 5; with triples 3 of 6
    assert score(["a b c"], ["a b d"], "gleu") == pytest.approx({"gleu_1": 200 / 3, "gleu_2": 60.0, "gleu_4": 50.0})


def test_gleu_pools_over_the_corpus_and_takes_the_larger_count():
    # 2 of max(3, 3) and 1 of max(1, 4)
    assert score(["a b c", "x"], ["a b d", "x y z w"], "gleu")["gleu_1"] == pytest.approx(100 * 3 / 7)


def test_gleu_uses_white_space_tokens_as_they_are():
    assert score(["cat."], ["cat ."], "gleu")["gleu_1"] == 0


def test_wer_splits_punctuation_off_and_ignores_case():
    assert score(["The Cat sat."], ["the cat stood ."], "wer") == {"wer": 25}


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("b a", "a b", 100),  # two edits
        ("x a b", "a b", 50),  # insertion
        ("a", "a b", 50),  # deletion
        ("a b c d", "z", 400),  # it may pass 100
        ("", "a b c", 100),
        ("a b c", "", 300),  # a reference without words counts as one word
        ("  ", "", 0),
    ],
)
def test_wer_of_one_row(prediction, reference, expected):
    assert score([prediction], [reference], "wer")["wer"] == expected


def test_wer_is_a_mean_over_rows_not_over_words():
    assert score(["a", "a b c d"], ["b", "a b c d"], "wer")["wer"] == 50


# --- Unicode


def test_words_of_other_scripts():
    assert wer_words("«Ça va?»") == ["«", "ça", "va", "?", "»"]
    assert wer_words("हिन्दी।") == ["हिन्दी", "।"]  # combining vowels stay in their word
    assert wer_words("日本。ok_1") == ["日", "本", "。", "ok", "_", "1"]
    assert wer_words("STRASSE 😀") == wer_words("straße 😀")


# One sentence of each script, and the words of it that ROUGE counts.
SCRIPTS = {
    "Cyrillic": ("Старый кот, пёс-друг № 5.", ["старый", "кот", "пёс", "друг", "5"]),
    "Greek": ("Η παλιά γάτα!", ["η", "παλιά", "γάτα"]),
    "Arabic": ("القطة القديمة ١٢", ["القطة", "القديمة", "١٢"]),
    "Hebrew": ("החתול הישן", ["החתול", "הישן"]),
    "Devanagari": ("पुरानी बिल्ली।", ["पुरानी", "बिल्ली"]),
    "Hangul": ("오래된 고양이", ["오래된", "고양이"]),
    "Han": ("老猫，AB 7", ["老", "猫", "ab", "7"]),
    "Kana": ("ねコー。", ["ね", "コ", "ー"]),
    "Thai": ("แมว", ["แ", "ม", "ว"]),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_of_any_script_are_scored(script):
    """Equal texts have all points, texts without a common word none, and half of the words some."""
    text, expected = SCRIPTS[script]
    assert RougeTokenizer().tokenize(text) == expected
    same = score([text], [text], "rouge", "gleu", "wer", "chrf")
    assert same["rouge1_f"] == same["rougeL_f"] == same["gleu_4"] == pytest.approx(100)
    assert same["rouge2_f"] == (100 if len(expected) > 1 else 0)
    assert same["wer"] == 0
    other = score(["zebra"], [text], "rouge", "gleu", "wer")
    assert (other["rouge1_f"], other["gleu_1"]) == (0, 0)
    half = " ".join(expected[: len(expected) // 2])
    assert 20 < score([half], [text], "rouge")["rouge1_r"] < 70


@given(st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cc"]), max_size=40))
def test_latin_texts_have_the_words_of_the_rouge_package(text):
    assert RougeTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


def test_characters_of_scripts_without_spaces_are_words():
    assert gleu_words("老猫 ab，cd") == ["老", "猫", "ab，cd"]
    assert wer_words("老猫 AB，cd") == ["老", "猫", "ab", "，", "cd"]
    assert score(["老猫看"], ["老狗看"], "wer", "gleu") == pytest.approx(
        {"wer": 100 / 3, "gleu_1": 100 * 2 / 3, "gleu_2": 40, "gleu_4": 100 / 3}
    )


@pytest.mark.parametrize(("tokenize", "expected"), [("13a", 0.0), ("zh", 59.46), ("char", 59.46)])
def test_bleu_has_the_tokenizer_that_is_asked_for(tokenize, expected):
    """Four of five characters are right: n-gram precisions of 4/5, 3/4, 2/3, 1/2. For 13a they are one word."""
    options = {"sacrebleu": {"tokenize": tokenize}}
    scores = score_texts(["老猫看见你"], ["老猫看见他"], ["sacrebleu"], final=False, options=options)
    assert scores["sacrebleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 if expected else 0.0)
    assert f"tok:{tokenize}" in score_definitions(["sacrebleu"], options)["sacrebleu"]


def test_a_tokenizer_that_does_not_work_here_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(UserError, match="^--bleu_tokenize ja-mecab: Japanese tokenization requires"):
        score_definitions(["sacrebleu"], {"sacrebleu": {"tokenize": "ja-mecab"}})


def test_every_score_has_a_definition():
    columns = score_columns(tuple(METRICS), final=True)
    definitions = score_definitions(tuple(METRICS))
    assert set(definitions) == {*columns, *metrics.LIKELIHOOD_SCORES}
    assert all(definitions.values())


def test_unicode_texts_match_themselves():
    scores = score(["Ça va très bien !", "日本 語 です ね"], ["Ça va très bien !", "日本 語 です ね"])
    assert scores["wer"] == 0
    assert [scores[name] for name in ("gleu_4", "sacrebleu", "chrf")] == pytest.approx([100] * 3)
    assert scores["rouge1_f"] == 100


# --- METEOR, with a dictionary of one synonym


def lemma(name):
    return SimpleNamespace(name=lambda: name)


WORDNET = SimpleNamespace(
    ensure_loaded=lambda: None,
    synsets=lambda word: [SimpleNamespace(lemmas=lambda: [lemma("car"), lemma("auto")])] if word == "car" else [],
)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The cat sat", "the cat sat", 1 - 0.5 / 27),  # one chunk of three matches
        ("car", "auto", 0.5),  # synonym
        ("cats", "cat", 0.5),  # stem
        ("a b", "b a", 0.5),  # two chunks of two matches
        ("a", "a b", 0.5 * 0.5 / (0.9 + 0.1 * 0.5)),  # precision 1, recall 1/2, alpha 0.9
        ("One. two.", "one . two .", 1 - 0.5 / 64),  # full stops are words within a text too
        ("", "a", 0),
        ("a", "", 0),
        ("", "", 0),
        ("xyz", "a", 0),
    ],
)
def test_meteor_of_one_row(prediction, reference, expected):
    assert meteor.mean_meteor([prediction], [[reference]], WORDNET) == pytest.approx(100 * expected)


def test_meteor_is_a_mean_over_rows(monkeypatch):
    monkeypatch.setattr("nltk.corpus.wordnet", WORDNET)
    assert meteor.missing() is None
    assert score(["car", ""], ["auto", "a"], "meteor") == {"meteor": pytest.approx(25.0)}


def test_meteor_without_wordnet_says_how_to_get_it(monkeypatch):
    from nltk.corpus import LazyCorpusLoader, WordNetCorpusReader

    monkeypatch.setattr("nltk.data.path", [])
    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    assert "nltk.downloader wordnet" in meteor.missing()


# --- BERTScore, with a tiny model of random weights


@pytest.fixture(scope="module")
def tiny_model_folder(tmp_path_factory):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat", "dog"]
    vocabulary = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 11}
    folder = tmp_path_factory.mktemp("bertscore_model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder)
    return str(folder)


def test_bertscore_is_computed_in_the_final_test_alone(monkeypatch, tiny_model_folder):
    monkeypatch.setattr(bertscore, "MODEL_NAME", tiny_model_folder)
    texts = ["the cat sat on the mat", "dog"]
    assert score_texts(texts, texts, ["bertscore"], final=False) == {}
    scores = score_texts(texts, texts, ["bertscore"], final=True)
    assert scores == pytest.approx(dict.fromkeys(bertscore.SCORES, 100.0), abs=1e-3)


def test_bertscore_without_words_is_zero_and_counts(monkeypatch, tiny_model_folder):
    monkeypatch.setattr(bertscore, "MODEL_NAME", tiny_model_folder)
    scores = bertscore.bertscore(["the cat", "", "the", ""], [["the cat"], ["dog"], [" "], [""]])
    assert scores == pytest.approx(dict.fromkeys(bertscore.SCORES, 25.0), abs=1e-3)


def test_bertscore_does_not_depend_on_the_batch(monkeypatch, tiny_model_folder):
    monkeypatch.setattr(bertscore, "MODEL_NAME", tiny_model_folder)
    predictions = ["the cat sat", "mat dog on the the", "dog", "cat zzz"]
    references = [["the dog sat on"], ["the mat"], ["cat"], ["the mat on dog sat"]]
    alone = [bertscore.bertscore([pred], [ref]) for pred, ref in zip(predictions, references, strict=True)]
    means = {name: sum(row[name] for row in alone) / 4 for name in bertscore.SCORES}
    assert means["bertscore_f1"] < 99
    monkeypatch.setattr(bertscore, "BATCH_SIZE", 3)
    assert bertscore.bertscore(predictions, references) == pytest.approx(means, abs=1e-3)


def test_bertscore_reads_the_ninth_layer(monkeypatch, tiny_model_folder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    used = {}
    monkeypatch.setattr(bertscore, "MODEL_NAME", tiny_model_folder)
    monkeypatch.setattr(bertscore, "bertscore_with", lambda model, *rest: used.update(model=model) or {})
    bertscore.bertscore(["the"], [["the"]])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    everything = AutoModel.from_pretrained(tiny_model_folder).eval()
    ids = tokenizer(["the cat"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ninth = everything(ids, output_hidden_states=True).hidden_states[9]
    vectors, _, is_word = bertscore.embed(used["model"].eval(), tokenizer, ["the cat"])
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(ninth, dim=-1))
    assert is_word.tolist() == [[False, True, True, False]]


def test_greedy_match_by_hand():
    import torch

    x, y, diagonal = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]
    predicted, wanted = torch.tensor([[x, y]]), torch.tensor([[x, diagonal, y]])
    prediction = bertscore.Embedded(predicted, torch.tensor([[True, True]]), torch.tensor([[True, True]]))
    padded = torch.tensor([[True, True, False]])  # the last vector of the reference is padding
    # the words x, y find 1 and 0.8; x and the diagonal are found by 1 and 0.8
    scores = bertscore.greedy_match(prediction, bertscore.Embedded(wanted, padded, padded))
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.9, 0.9]]))
    # with y a special token of the reference, it may be taken but does not count itself
    real, is_word = torch.tensor([[True, True, True]]), torch.tensor([[True, True, False]])
    scores = bertscore.greedy_match(prediction, bertscore.Embedded(wanted, real, is_word))
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.9, 2 * 0.9 / 1.9]]))


def test_bertscore_is_missing_until_its_model_is_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert f"hf download {bertscore.MODEL_NAME}" in bertscore.missing()
    repository = tmp_path / f"models--{bertscore.MODEL_NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "vocab.json").write_text("{}")
    assert bertscore.missing() is not None  # a download that stopped before the weights
    (snapshot / "pytorch_model.bin").write_text("")
    assert bertscore.missing() is None


# --- the registry and the choice of a run's metrics


def lacking(monkeypatch, *names):
    """Everything else works here, whatever is installed."""
    for name, metric in METRICS.items():
        absent = f"no {name} (get it)" if name in names else None
        monkeypatch.setitem(
            METRICS, name, dataclasses.replace(metric, packages=(), missing=lambda absent=absent: absent)
        )


def test_registry_and_flag_hold_the_same_names():
    assert tuple(METRICS) == constants.METRICS == tuple(metric.name for metric in METRICS.values())
    columns = score_columns(tuple(METRICS), final=True)
    assert len(set(columns)) == len(columns) == 1 + 3 + 9 + 1 + 3 + 1 + 1


def test_columns_are_those_of_the_scores_in_a_stable_order():
    columns = score_columns(TEXT_METRICS, final=False)
    assert columns == score_columns(TEXT_METRICS[::-1], final=False)
    assert columns[:5] == ("wer", "gleu_1", "gleu_2", "gleu_4", "rouge1_p")
    scores = score(["a b"], ["a c"], *TEXT_METRICS[::-1])
    assert tuple(scores) == columns
    assert {type(value) for value in scores.values()} == {float}


def test_bertscore_columns_are_final_only():
    assert score_columns(["bertscore", "wer"], final=False) == ("wer",)
    assert score_columns(["bertscore", "wer"], final=True) == ("wer", *bertscore.SCORES)


@pytest.mark.parametrize(
    ("names", "best", "expected"),
    [
        (None, "nll", ()),
        ([], "ppl", ()),
        (None, "rouge2_f", ("rouge",)),
        (["sacrebleu", "wer", "wer"], "sacrebleu", ("wer", "sacrebleu")),
        (["wer"], "gleu_4", ("wer", "gleu")),
        (["bertscore"], "chrf", ("bertscore", "chrf")),
        (["all"], "nll", tuple(METRICS)),
        (["all", "wer"], "sacrebleu", tuple(METRICS)),
    ],
)
def test_resolved_metrics(monkeypatch, names, best, expected):
    lacking(monkeypatch)
    assert resolve_metrics(names, best) == expected


def test_unknown_metric_names_the_nearest(monkeypatch):
    lacking(monkeypatch)
    with pytest.raises(UserError, match=r"--metrics: unknown metric 'sacrebleau'; nearest: 'sacrebleu'"):
        resolve_metrics(["wer", "sacrebleau"], "rouge2_f")


@pytest.mark.parametrize(
    ("best", "message"),
    [
        ("rouge2", "'rouge2' is no score; nearest: 'rouge2_.' of nll ppl wer"),
        ("bertscore_f1", "'bertscore_f1' exists only in the final test"),
        ("", "is no score"),
    ],
)
def test_best_model_needs_a_score_of_every_evaluation(monkeypatch, best, message):
    lacking(monkeypatch)
    with pytest.raises(UserError, match=f"--metric_for_best_model: .*{message}") as refused:
        resolve_metrics(["all"], best)
    possible = str(refused.value).split(" of ")[-1].split()
    assert possible == ["nll", "ppl", *score_columns(tuple(METRICS), final=False)]


def test_what_all_brings_in_is_dropped_with_one_warning_each(monkeypatch, caplog):
    lacking(monkeypatch, "bertscore", "meteor")
    with caplog.at_level(logging.WARNING, logger=metrics.__name__):
        assert resolve_metrics(["all"], "rouge2_f") == TEXT_METRICS
    assert [record.getMessage() for record in caplog.records] == [
        "--metrics all: bertscore is left out, no bertscore (get it)",
        "--metrics all: meteor is left out, no meteor (get it)",
    ]


@pytest.mark.parametrize("names", [["meteor"], ["all", "meteor"]])
def test_what_was_named_must_work(monkeypatch, names):
    lacking(monkeypatch, "meteor")
    with pytest.raises(UserError, match=r"^--metrics needs meteor, but no meteor \(get it\)$"):
        resolve_metrics(names, "nll")


@pytest.mark.parametrize("names", [None, ["all"]])
def test_what_picks_the_best_model_must_work(monkeypatch, names):
    lacking(monkeypatch, "meteor")
    with pytest.raises(UserError, match=r"^--metric_for_best_model needs meteor, but"):
        resolve_metrics(names, "meteor")


def test_metrics_that_were_not_asked_for_are_not_looked_for(monkeypatch):
    lacking(monkeypatch, "bertscore", "meteor", "chrf")
    assert resolve_metrics(["wer"], "nll") == ("wer",)


def test_missing_packages_are_named_with_the_command():
    metric = Metric("mine", (), dict, "", ("sacrebleu",))
    assert metric.why_unavailable() is None
    metric = dataclasses.replace(metric, packages=("sacrebleu", "no_such_module"))
    assert metric.why_unavailable() == "package no-such-module is not installed (pip install no-such-module)"


def test_importing_the_metrics_is_cheap():
    heavy = "{'torch', 'transformers', 'nltk', 'sacrebleu', 'rouge_score', 'rapidfuzz', 'numpy'}"
    program = f"import sys, src.evaluation.metrics; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
