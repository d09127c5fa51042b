"""Several references per input: scoring, training, and errors."""

import json
import tracemalloc
from itertools import zip_longest

import pyarrow
import pyarrow.parquet
import pytest
import sacrebleu
import torch
from conftest import slow
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from tiny_runs import ft_flags, gen_flags, kd_flags, read, rows

import ft_main
import gen_main
import kd_main
import prepare_datasets_main
from src.config.cli import run_script
from src.data.formats import read_datasets
from src.data.references import count_references, first_references, row_for_each_reference
from src.data.schema import check_trainable
from src.evaluation.metrics import METRICS, bertscore, meteor, sacrebleu_metrics, score_definitions, score_texts
from tests.evaluation.test_metrics import WORDNET

PREDICTIONS = ["the cat sat on the mat", "a dog ran", "", "where is it ?"]
SEVERAL = [
    ["a cat sat on a mat", "the cat sat on mats"],
    "a dog ran home",
    ["the end", "an end", ""],
    ["where is it ?"],
]
LISTS = [each if isinstance(each, list) else [each] for each in SEVERAL]


def score(name: str, predictions: list, references: list, *, final: bool = False) -> dict[str, float]:
    return score_texts(predictions, references, [name], final=final)


# --------------------------------------------------------------------------------------------------------------- scores


def test_bleu_and_chrf_are_those_of_sacrebleu():
    """Also where rows differ in how many references they have."""
    streams = [list(stream) for stream in zip_longest(*LISTS)]
    assert score("sacrebleu", PREDICTIONS, SEVERAL) == {"sacrebleu": sacrebleu.corpus_bleu(PREDICTIONS, streams).score}
    assert score("chrf", PREDICTIONS, SEVERAL) == {"chrf": sacrebleu.corpus_chrf(PREDICTIONS, streams).score}


def test_rouge_is_that_of_rouge_score():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    best = [scorer.score_multi(texts, prediction) for prediction, texts in zip(PREDICTIONS, LISTS, strict=True)]
    scores = score("rouge", PREDICTIONS, SEVERAL)
    for kind in ("rouge1", "rouge2", "rougeL"):
        mean = 100 * sum(row[kind].fmeasure for row in best) / len(best)
        assert scores[f"{kind}_f"] == pytest.approx(mean)


def test_gleu_of_several_references():
    """Of "a b c", "a b d" matches 2 of 3 words and "x" none; then as with one reference."""
    assert score("gleu", ["a b c"], [["x", "a b d"]]) == score("gleu", ["a b c"], ["a b d"])


def test_the_lowest_word_error_rate_counts():
    """1 edit for 4 words, 2 for 2; an empty reference is one word long."""
    assert score("wer", ["a b c d", ""], [["a b c x", "a b"], ["a", ""]]) == {"wer": pytest.approx(12.5)}


def test_the_best_meteor_of_a_row(monkeypatch):
    monkeypatch.setattr("nltk.corpus.wordnet", WORDNET)
    best = meteor.mean_meteor(["the cat sat"], [["a dog", "the cat sat"]], WORDNET)
    assert best == meteor.mean_meteor(["the cat sat"], [["the cat sat"]], WORDNET)
    assert score("meteor", ["car", "x"], [["zzz", "auto"], "x"]) == score("meteor", ["car", "x"], ["auto", "x"])


def test_the_best_bertscore_of_a_row(monkeypatch):
    monkeypatch.setattr(bertscore, "embed", lambda model, tokenizer, texts: (texts,) * 3)
    scores_of = {"a": [0.1, 0.9, 0.3], "b": [0.5, 0.2, 0.4], "c": [0.0, -0.2, 0.2]}
    monkeypatch.setattr(
        bertscore, "greedy_match", lambda *sides: torch.tensor([scores_of[text] for text in sides[1][0]])
    )
    monkeypatch.setattr(bertscore, "BATCH_SIZE", 2)
    made = bertscore.bertscore_with(torch.nn.Identity(), None, ["x", "yyyy"], [["a", "b"], ["c"]])
    assert list(made.values()) == pytest.approx([100 * (0.5 + 0.0) / 2, 100 * (0.9 - 0.2) / 2, 100 * (0.4 + 0.2) / 2])


@given(st.lists(st.tuples(st.text("ab ,", max_size=9), st.text("ab ,", max_size=9)), min_size=1, max_size=5))
def test_a_list_of_one_is_that_one(pairs):
    predictions, references = map(list, zip(*pairs, strict=True))
    names = ["wer", "gleu", "rouge", "sacrebleu", "chrf"]
    alone = score_texts(predictions, references, names, final=False)
    assert score_texts(predictions, [[text] for text in references], names, final=False) == alone


def test_definitions_say_how_many_references():
    names = list(METRICS)
    one, several = score_definitions(names), score_definitions(names, n_references="var")
    assert one == score_definitions(names, n_references="1")
    assert "nrefs:1|" in one["sacrebleu"]
    assert "nrefs:var|" in several["sacrebleu"]
    assert "nrefs:4|" in score_definitions(names, n_references="4")["chrf"]
    assert several["wer"] == f"{one['wer']}; nrefs:var, of a row the best"
    assert several["nll"] == f"{one['nll']}; of the first reference"
    assert not any("refs" in text for name, text in one.items() if name not in ("sacrebleu", "chrf"))


@pytest.mark.parametrize(
    ("targets", "count"),
    [(["a", "b"], "1"), ([["a"], "b"], "1"), ([["a", "b"], ["c", "d"]], "2"), ([["a", "b"], "c"], "var"), ([], "1")],
)
def test_count_references(targets, count):
    assert count_references(targets) == count


# ----------------------------------------------------------------------------------------------------------------- rows


def test_a_row_for_each_reference():
    columns = {"text": ["x", "y"], "target": [["a", "b"], "c"], "id": [1, 2]}
    assert row_for_each_reference(columns) == {"text": ["x", "x", "y"], "target": ["a", "b", "c"], "id": [1, 1, 2]}
    assert first_references(columns["target"]) == ["a", "c"]
    plain = {"text": ["x"], "target": ["a"]}
    assert row_for_each_reference(plain) is plain


@pytest.fixture(scope="module")
def several(tiny_dataset) -> dict:
    """The copy task with two references of most inputs, and of every fourth one."""

    def lists(texts: list[str]) -> list:
        return [text if i % 4 == 0 else [text, " ".join(text.split()[::-1])] for i, text in enumerate(texts)]

    return {
        split: columns if split == "unlabeled" else {**columns, "target": lists(columns["target"])}
        for split, columns in tiny_dataset.items()
    }


def saved(path, datasets: dict):
    path.write_text(json.dumps(datasets))
    return path


@pytest.mark.parametrize("how", ["all", *slow("first")])
def test_a_run_on_several_references(tiny_models, several, tmp_path, how):
    """It learns what it learns of a file with the same rows, and scores against all references."""
    path, model = saved(tmp_path / "several.json", several), tiny_models["t5"]["student"]
    learned = {**several["train"], "target": first_references(several["train"]["target"])}
    if how == "all":
        learned = row_for_each_reference(several["train"])
        assert len(learned["text"]) == 32 + 24
    by_hand = saved(tmp_path / "by_hand.json", {**several, "train": learned})
    flags = {"metrics": ("rouge", "chrf", "wer", "gleu"), "several_references": how}
    ft_main.main(ft_flags(model, path, tmp_path / "out", **flags))
    ft_main.main(ft_flags(model, by_hand, tmp_path / "other", **flags))
    assert rows(tmp_path / "out") == rows(tmp_path / "other")
    assert rows(tmp_path / "out", "train_losses.csv") == rows(tmp_path / "other", "train_losses.csv")
    for key, composed in read(tmp_path / "out" / "eval_generations.json").items():
        split, epoch, step = key.replace("__epoch", " ").replace("__step", " ").split()
        assert composed["references"] == several[split]["target"]
        (scores,) = (
            row for row in rows(tmp_path / "out") if [row["split"], row["epoch"], row["step"]] == [split, epoch, step]
        )
        for name, value in score("chrf", composed["predictions"], composed["references"]).items():
            assert float(scores[name]) == value
    definitions = read(tmp_path / "out" / "run.json")["score_definitions"]
    assert "nrefs:var|" in definitions["sacrebleu"]
    assert definitions["wer"].endswith("; nrefs:var, of a row the best")


def test_the_likelihood_is_that_of_the_first_reference(tiny_models, several, tmp_path):
    model, path = tiny_models["gpt2"]["student"], saved(tmp_path / "several.json", several)
    first = {s: {**c, "target": first_references(c["target"])} if "target" in c else c for s, c in several.items()}
    flags = {"do_train": False, "metric_for_best_model": "nll"}
    ft_main.main(ft_flags(model, path, tmp_path / "out", **flags))
    ft_main.main(ft_flags(model, saved(tmp_path / "first.json", first), tmp_path / "other", **flags))
    assert rows(tmp_path / "out")[-1]["nll"] == rows(tmp_path / "other")[-1]["nll"]


def test_the_whole_road(tiny_models, several, tmp_path, capsys):
    """Pseudo-targets are written once for an input; labeled pairs have all references, also in the closing phase."""
    path = saved(tmp_path / "several.json", several)
    flags = ["--dataset_name", "", "--dataset_path", str(path), "--output_dir", str(tmp_path)]
    limits = ["--filter_by_length", "True", "--max_labels_length", "30", "--file_name", "original.json"]
    prepare_datasets_main.main([*flags, *limits])
    original = read(tmp_path / "original.json")
    assert original == several | {"ft": several["train"]}

    models = tiny_models["t5"]
    gen_main.main(
        gen_flags(
            models["teacher"], tmp_path / "original.json", tmp_path / "gen", generation_type="sampling",
            num_return_sequences=2, add_original_data=True, split_for_generation=("unlabeled", "train"),
        )
    )  # fmt: skip
    generated = read(tmp_path / "gen" / "generated_datasets.json")
    assert [len(generated[split]["generated"]) for split in ("train", "unlabeled")] == [2 * 32, 2 * 16]
    assert generated["train"]["target"][2:4] == [several["train"]["target"][1]] * 2

    paths = ["--original_dataset_path", str(tmp_path / "original.json"), "--output_dir", str(tmp_path)]
    given = ["--generation_dataset_path", str(tmp_path / "gen" / "generated_datasets.json"), "--file_name", "kd.json"]
    prepare_datasets_main.main([*paths, *given])
    merged = read(tmp_path / "kd.json")
    assert [len(merged[f"train_{i}"]["text"]) for i in range(2)] == [32 + 32 + 16] * 2
    assert merged["train_0"]["target"][:32] == several["train"]["target"]

    capsys.readouterr()
    kd_main.main(kd_flags(models, tmp_path / "kd.json", tmp_path / "out", ft_steps_at_end=1))
    assert "train_0: 104 rows, one for each reference of its 80 inputs" in capsys.readouterr().out
    assert rows(tmp_path / "out")[-1]["epoch"] == "-1"


# ---------------------------------------------------------------------------------------------------------------- files


def write_json_lines(path, columns):
    path = path.with_suffix(".jsonl")
    lines = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    path.write_text("\n".join(map(json.dumps, lines)))


def write_parquet(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path.with_suffix(".parquet"))


def write_arrow(path, columns):
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_file(path.with_suffix(".arrow"), table.schema) as file:
        file.write_table(table)


@pytest.mark.parametrize("write", [write_json_lines, write_parquet, write_arrow])
@pytest.mark.parametrize("hub", [False, True])
def test_files_with_lists(tmp_path, write, hub):
    splits = {
        "train": {"text": ["x", "y"], "target": [["a", "b"], ["c"]]},
        "test": {"text": ["z"], "target": [["a", "b", "d"]]},
    }
    for split, columns in splits.items():
        write(tmp_path / split, columns)
    found = read_datasets(f"hf:{tmp_path}" if hub else tmp_path)
    check_trainable(found, "data")
    assert {split: dict(columns) for split, columns in found.items()} == splits


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ([["a"], []], "row 1: expected text or a list of texts, found an empty list"),
        ([["a"], ["b", None]], "row 1: expected text or a list of texts, found null in a list"),
        ([["a"], ["b", 3]], "row 1: expected text or a list of texts, found a number in a list"),
        ([[["a"]], ["b"]], "row 0: expected text or a list of texts, found a list in a list"),
        ([["a"], None], "row 1: expected text or a list of texts, found null"),
        (["a", {"b": "c"}], "row 1: expected text, found an object"),
    ],
)
@pytest.mark.parametrize("split", ["train", "dev", "test", "ft"])
def test_lists_that_are_refused(tiny_models, tiny_dataset, tmp_path, capsys, target, said, split):
    datasets = {**tiny_dataset, split: {"text": ["x", "y"], "target": target}}
    flags = ft_flags(tiny_models["t5"]["student"], saved(tmp_path / "data.json", datasets), tmp_path / "out")
    assert run_script(ft_main.main, flags) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"data.json: split '{split}', column 'target', {said}\n")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------------ API


def api_rows(target) -> list[dict]:
    known = {"prediction": "the cat", "tokens": ["the", " cat"], "logprobs": [{"the": -0.1}, {" cat": -0.2}]}
    return [
        {"text": "x", "target": ["the cat", "a cat"], "split": "train", **known},
        {"text": "y", "target": "the dog", "split": "train", **known},
        {"text": "u", "split": "unlabeled", **known},
        {"text": "z", "target": target, "split": "test"},
    ]


@pytest.fixture
def prepared(tiny_models, tmp_path, capsys):
    def run(target, *flags: str, name: str = "made.json") -> dict | str:
        (tmp_path / "api.jsonl").write_text("\n".join(map(json.dumps, api_rows(target))))
        paths = ["--logits_dataset_path", str(tmp_path / "api.jsonl"), "--output_dir", str(tmp_path)]
        given = ["--student_name", tiny_models["t5"]["student"], "--file_name", name]
        status = run_script(prepare_datasets_main.main, [*paths, *given, *flags])
        return read_datasets(tmp_path / name) if status == 0 else capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", ["made.json", "made.arrow"])
def test_references_of_an_api_file(prepared, name):
    made = prepared(["a dog", "the dog"], name=name)
    assert made["test"]["target"] == [["a dog", "the dog"]]
    assert made["train_0"]["reference"] == [["the cat", "a cat"], ["the dog"], []]
    assert made["train_0"]["target"] == ["the cat"] * 3
    check_trainable(made, name)


@pytest.mark.parametrize("name", ["made.json", "made.arrow"])
def test_references_instead_of_completions(prepared, name):
    """Each is a row."""
    made = prepared("the dog", "--n_augmentations_per_example", "0", name=name)
    assert made["train_0"]["text"] == ["x", "x", "y"]
    assert made["train_0"]["target"] == made["train_0"]["reference"] == ["the cat", "a cat", "the dog"]
    assert [len(row) for row in made["train_0"]["tokens"]] == [len(row) for row in made["train_0"]["logits"]]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ([], "Expected `array` of length >= 1 - at `$.target`"),
        (["a", 3], "Expected `str`, got `int` - at `$.target[1]`"),
        ([["a"]], "Expected `str`, got `array` - at `$.target[0]`"),
    ],
)
def test_lists_of_an_api_file_that_are_refused(prepared, target, said):
    assert f"api.jsonl: line 4: {said}" in prepared(target)


# -------------------------------------------------------------------------------------------------------------- pieces

TEXTS = st.text("ab .", max_size=12)
ROWS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=9)


@pytest.mark.parametrize("metric", [BLEU(force=True), BLEU(force=True, tokenize="char"), CHRF()])
@given(rows=ROWS, size=st.integers(1, 10))
def test_pieces_give_the_score_of_the_corpus(metric, rows, size):
    """To the last digit, wherever a piece ends, and however many references its rows have."""
    predictions, references = map(list, zip(*rows, strict=True))
    whole = metric.corpus_score(predictions, [list(stream) for stream in zip_longest(*references)]).score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sacrebleu_metrics, "ROWS_AT_ONCE", size)
        assert sacrebleu_metrics.corpus_score(metric, predictions, references) == whole


def peak(score, *args) -> int:
    tracemalloc.start()
    score(*args)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("metric", [BLEU(force=True), *slow(CHRF())])
def test_memory_does_not_grow_with_the_rows(monkeypatch, metric):
    monkeypatch.setattr(sacrebleu_metrics, "ROWS_AT_ONCE", 50)
    texts = [f"row {i} of many, {i * i} is its square" for i in range(1000)]
    references = [[text] for text in texts]
    sacrebleu_metrics.corpus_score(metric, texts, references)  # sacreBLEU keeps texts that it has split into tokens
    whole = peak(metric.corpus_score, texts, [texts])
    assert peak(sacrebleu_metrics.corpus_score, metric, texts, references) < whole / 5
    name = {BLEU: "sacrebleu", CHRF: "chrf"}[type(metric)]
    assert peak(score, name, texts, texts) < whole / 4
