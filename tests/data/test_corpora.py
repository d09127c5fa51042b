"""Corpora, loaded from small files in their publishers' layout."""

import json

import pytest

from src.config.constants import CORPORA
from src.config.errors import UserError
from src.data import hub
from src.data.corpora import registry, request
from src.data.corpora.registry import load_corpus
from src.data.corpora.request import Request
from src.data.splits import SplitSizes


def words(n: int, start: int = 0) -> str:
    return " ".join(f"w{i}" for i in range(start, start + n))


def raw_folder(path, splits: dict) -> str:
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_corpus_has_its_function():
    assert set(registry.CORPUS_FUNCTIONS) == set(CORPORA)


def test_xsum(tmp_path):
    row = {"document": "a long article", "summary": "short", "id": "1"}
    path = raw_folder(tmp_path, {"train": [row, row], "validation": [row], "test": [row]})
    one = {"text": ["a long article"], "target": ["short"]}
    two = {"text": ["a long article"] * 2, "target": ["short"] * 2}
    assert load_corpus("xsum", Request(path)) == {"train": two, "dev": one, "test": one}


def test_art(tmp_path):
    row = {"gem_id": "1", "observation_1": "It rained.", "observation_2": "I got wet.", "target": "No umbrella."}
    path = raw_folder(tmp_path, {split: [row | {"references": ["x"]}] for split in ("train", "validation", "test")})
    expected = {"text": ["It rained.; outcome: I got wet."], "target": ["No umbrella."]}
    assert load_corpus("art", Request(path)) == dict.fromkeys(("train", "dev", "test"), expected)


def question(i: int) -> dict:
    return {"id": i, "context": f"c{i}", "question": f"q{i}", "answers": {"text": [f"a{i}", "b"], "answer_start": [0]}}


def test_squad_asks_for_the_first_answer_and_shares_a_small_validation_split(tmp_path, caplog):
    path = raw_folder(tmp_path, {"train": [question(0)], "validation": [question(i) for i in range(1, 21)]})
    datasets = load_corpus("squad", Request(path))
    assert datasets["train"] == {"text": ["c0; answer: a0"], "target": ["q0"]}
    assert {split: len(rows["text"]) for split, rows in datasets.items()} == {"train": 1, "dev": 2, "test": 18}
    assert sorted(datasets["dev"]["target"] + datasets["test"]["target"]) == sorted(f"q{i}" for i in range(1, 21))
    assert "shared in proportion" in caplog.text


def test_squad_validation_has_1570_rows_of_dev_and_the_rest_is_test(tmp_path):
    path = raw_folder(tmp_path, {"train": [question(0)], "validation": [question(i) for i in range(1_700)]})
    datasets = load_corpus("squad", Request(path))
    assert (len(datasets["dev"]["text"]), len(datasets["test"]["text"])) == (1_570, 130)
    assert not set(datasets["dev"]["text"]) & set(datasets["test"]["text"])
    assert load_corpus("squad", Request(path, seed=7)) == datasets  # the draw belongs to the corpus, not to --seed


def test_squad_question_without_answer(tmp_path):
    bad = question(1) | {"answers": {"text": [], "answer_start": []}}
    path = raw_folder(tmp_path, {"train": [question(0), bad]})
    with pytest.raises(UserError, match="split 'train', row 1: 'answers' must be"):
        load_corpus("squad", Request(path))


def test_bisect_filters(tmp_path, monkeypatch):
    """Of 20 source words, 9 to 17 (0.45 to 0.85) may be in the target."""

    def pair(shared: int, n_source: int = 20, n_target: int = 20) -> dict:
        target = f"{words(shared)} {words(n_target - shared, start=100)}".strip()
        return {"gem_id": "1", "source": words(n_source), "target": target, "references": []}

    good = [pair(9), pair(17), pair(23, 50, 50)]
    bad = [pair(8), pair(18), pair(10, 19), pair(10, 20, 19), pair(25, 51, 50), pair(25, 50, 51), pair(0)]
    splits = ("train", "validation", "test", "challenge_bisect", "challenge_hsplit")
    path = raw_folder(tmp_path, dict.fromkeys(splits, good + bad))
    datasets = load_corpus("bisect", Request(path))
    assert datasets["train"]["target"] == [row["target"] for row in good]
    assert {split: len(rows["text"]) for split, rows in datasets.items()} == {"train": 3, "dev": 3, "test": 9}
    monkeypatch.setattr(registry, "BISECT_TRAIN_ROWS", 2)
    assert len(load_corpus("bisect", Request(path))["train"]["text"]) == 2


def test_bisect_counts_distinct_words(tmp_path):
    source = f"{words(10)} {' '.join(['w0'] * 10)}"  # 20 words, 10 distinct
    target = f"{words(5)} {words(15, start=100)}"  # 5 of the 10
    path = raw_folder(tmp_path, {"train": [{"source": source, "target": target}]})
    assert load_corpus("bisect", Request(path))["train"]["text"] == [source]


def shakespeare_file(path, n: dict, unlabeled: int = 3) -> str:
    raw = {}
    for split, k in n.items():
        originals = [f"{split} {i} {words(8)}" for i in range(k)]
        raw[split] = {"original": originals, "modern": [words(8 + i % 40) for i in range(k)]}
    raw["unlabeled"] = {"original": [f"line {i}" for i in range(unlabeled)]}
    path.write_text(json.dumps(raw))
    return str(path)


def test_shakespeare_pools_filters_and_draws(tmp_path):
    path = shakespeare_file(tmp_path / "s.json", {"train": 7_000, "dev": 500, "test": 600})
    datasets = load_corpus("shakespeare", Request(path))
    assert {split: len(rows["text"]) for split, rows in datasets.items()} == {
        "train": 7_000, "dev": 750, "test": 350, "unlabeled": 3
    }  # fmt: skip
    texts = [text for split in ("train", "dev", "test") for text in datasets[split]["text"]]
    assert len(set(texts)) == 8_100
    assert {text.split()[0] for text in datasets["train"]["text"]} == {"train", "dev", "test"}
    assert datasets["unlabeled"] == {"text": ["line 0", "line 1", "line 2"]}
    assert load_corpus("shakespeare", Request(path, seed=1)) == datasets


def test_shakespeare_draw_does_not_depend_on_the_machine(tmp_path):
    """The first rows, computed as the published suite does: RandomState(42).choice(n, size, replace=False)."""
    datasets = load_corpus("shakespeare", Request(shakespeare_file(tmp_path / "s.json", {"train": 8_100})))
    drawn = [[int(text.split()[1]) for text in datasets[split]["text"][:4]] for split in ("train", "dev", "test")]
    assert drawn == [[2818, 6922, 5993, 3245], [2625, 5131, 3140, 5791], [9, 64, 119, 143]]


def test_shakespeare_keeps_pairs_of_8_to_50_words(tmp_path, caplog):
    lengths = [(7, 8), (8, 7), (51, 50), (50, 51), (8, 8), (50, 50), (8, 50)]
    raw = {"original": [words(a) for a, _ in lengths], "modern": [words(b) for _, b in lengths]}
    (tmp_path / "s.json").write_text(json.dumps({"train": raw}))
    datasets = load_corpus("shakespeare", Request(str(tmp_path / "s.json")))
    kept = {
        (len(x.split()), len(y.split())) for d in datasets.values() for x, y in zip(d["text"], d["target"], strict=True)
    }
    assert kept == {(8, 8), (50, 50), (8, 50)}
    assert list(datasets) == ["train", "dev", "test"]
    assert "only 3 rows" in caplog.text


def test_shakespeare_needs_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"datasets/raw/shakespeare/shakespeare_splits.json: .*--dataset_path.*original"
    ):
        load_corpus("shakespeare", Request())
    file = tmp_path / registry.SHAKESPEARE_FILE
    file.parent.mkdir(parents=True)
    shakespeare_file(file, {"train": 20})
    assert len(load_corpus("shakespeare", Request())["train"]["text"]) == 16


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"train": {"original": ["a"]}}, "split 'train': no column modern"),
        ({"unlabeled": {"original": ["a"]}}, "no train, dev or test"),
        ({"train": {"original": ["a"], "modern": [1]}}, "column 'modern', row 0: expected text"),
        ({"train": {"original": ["a", "b"], "modern": ["c"]}}, "equally long"),
        ({"train": {"original": ["a"], "modern": ["b"]}}, "0 rows that can be used are too few"),
        ({"train": {"original": ["a"], "modern": ["b"]}, "unlabeled": {"text": ["a"]}}, "0 rows"),
    ],
)
def test_shakespeare_bad_files(tmp_path, raw, message):
    (tmp_path / "s.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message):
        load_corpus("shakespeare", Request(str(tmp_path / "s.json")))


def test_demo_has_the_sizes_asked_for_and_no_text_twice():
    sizes = SplitSizes(train=30, dev=4, test=5, unlabeled=20, dev_ppl=6)
    datasets = load_corpus("demo", Request(sizes=sizes, seed=3))
    assert {split: len(rows["text"]) for split, rows in datasets.items()} == {
        "dev": 6, "test": 5, "train": 30, "unlabeled": 20
    }  # fmt: skip
    texts = [text for rows in datasets.values() for text in rows["text"]]
    assert len(set(texts)) == len(texts)
    assert list(datasets["unlabeled"]) == ["text"]
    assert load_corpus("demo", Request(sizes=sizes, seed=3)) == datasets
    assert load_corpus("demo", Request(sizes=sizes, seed=4)) != datasets
    more = load_corpus("demo", Request(sizes=SplitSizes(train=99, dev=4, test=5, unlabeled=20, dev_ppl=6), seed=3))
    assert (more["dev"], more["test"]) == (datasets["dev"], datasets["test"])


def test_demo_as_it_comes():
    datasets = load_corpus("demo", Request())
    assert {split: len(rows["text"]) for split, rows in datasets.items()} == {
        "dev": 200, "test": 500, "train": 2_000, "unlabeled": 8_000
    }  # fmt: skip
    with pytest.raises(UserError, match="'demo' has no raw files"):
        load_corpus("demo", Request("x.json"))


def test_raw_files_that_do_not_fit(tmp_path):
    row = {"document": "d", "title": "s"}
    with pytest.raises(UserError, match=r"split 'train': no column summary; it has \['document', 'title'\]"):
        load_corpus("xsum", Request(raw_folder(tmp_path, {"train": [row]})))
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match="no split 'train', only .*; expected a folder with train, validation, test"):
        load_corpus("xsum", Request(raw_folder(tmp_path, {"test": [{"document": "d", "summary": "s"}]})))


def test_missing_evaluation_splits_are_warned_of(tmp_path, caplog):
    path = raw_folder(tmp_path, {"train": [{"document": "d", "summary": "s"}]})
    assert list(load_corpus("xsum", Request(path))) == ["train"]
    assert "no dev, test: the dataset is made without" in caplog.text


@pytest.mark.parametrize("name", ["xsum", "squad", "art", "bisect"])
def test_a_hub_that_cannot_be_had_says_what_to_do_instead(name, monkeypatch):
    def fail(hub_name, *, config=None, splits=()):
        raise UserError(f"hf:{hub_name}: not loaded")

    monkeypatch.setattr(request, "load_hub", fail)
    with pytest.raises(
        UserError, match=r"^hf:\S+: not loaded. Or download it and give --dataset_path a folder with train"
    ):
        load_corpus(name, Request())


def test_hub_splits_are_read_under_the_hubs_names(monkeypatch):
    asked = []

    def load(hub_name, *, config=None, splits=()):
        asked.append((hub_name, splits))
        return {split: {"document": ["d"], "summary": ["s"]} for split in splits}

    monkeypatch.setattr(request, "load_hub", load)
    assert list(load_corpus("xsum", Request())) == ["train", "dev", "test"]
    assert asked == [("EdinburghNLP/xsum", ("train", "validation", "test"))]


def test_offline_hub_load_fails_in_seconds(monkeypatch):
    """Without a network and without a copy in the cache; HF_HUB_OFFLINE is read when the libraries are imported."""
    constants = pytest.importorskip("huggingface_hub.constants")
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf:nobody/nothing: not loaded from the hub") as caught:
        hub.load_hub("nobody/nothing", splits=["train"])
    assert "\n" not in str(caught.value)
