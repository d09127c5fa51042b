"""Sample, filter and name splits."""

import numpy as np
import pytest

from src.config.errors import UserError
from src.data import splits


def rows(n: int, prefix: str = "t") -> dict:
    return {"text": [f"{prefix}{i}" for i in range(n)], "target": [f"y{i}" for i in range(n)], "id": list(range(n))}


def test_sample_draws_without_replacement_and_leaves_the_rest_in_order():
    sampled, rest = splits.sample_rows(rows(10), 4, seed=42)
    assert len(set(sampled["id"])) == 4
    assert rest["id"] == sorted(set(range(10)) - set(sampled["id"]))
    assert sampled["text"] == [f"t{i}" for i in sampled["id"]]
    assert sampled["target"] == [f"y{i}" for i in sampled["id"]]


def test_sample_draws_the_rows_the_published_suite_draws():
    """It calls RandomState(seed).choice(rows, size, replace=False); the figures keep the stream from ever changing."""
    sampled, _ = splits.sample_rows(rows(10), 4, seed=42)
    assert sampled["id"] == [8, 1, 5, 0]
    for n, size, seed in ((100, 7, 0), (9_000, 1_570, 42)):
        expected = np.random.RandomState(seed).choice(list(range(n)), size=size, replace=False).tolist()
        assert splits.sample_rows(rows(n), size, seed=seed)[0]["id"] == expected


def test_same_seed_same_rows_other_seed_other_rows():
    first, again, other = (splits.sample_rows(rows(50), 20, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_train_size_and_what_is_left_of_train():
    data = {"train": rows(10), "dev": rows(2)}
    assert splits.sample_train(data, 3, rest_to_unlabeled=False, seed=0).keys() == {"train", "dev"}
    with_rest = splits.sample_train(data, 3, rest_to_unlabeled=True, seed=0)
    assert len(with_rest["train"]["id"]) == 3
    assert sorted(with_rest["train"]["id"] + with_rest["unlabeled"]["id"]) == list(range(10))


def test_own_unlabeled_rows_are_not_replaced_and_an_empty_rest_is_no_split():
    own = {"train": rows(10), "unlabeled": {"text": ["own"]}}
    assert splits.sample_train(own, 3, rest_to_unlabeled=True, seed=0)["unlabeled"] == {"text": ["own"]}
    assert "unlabeled" not in splits.sample_train({"train": rows(3)}, 3, rest_to_unlabeled=True, seed=0)
    assert "unlabeled" not in splits.sample_train({"train": rows(3)}, None, rest_to_unlabeled=True, seed=0)


@pytest.mark.parametrize("size", [None, 5, 6])
def test_all_rows_are_taken_as_they_are(size, caplog):
    result = splits.sample_split({"test": rows(5)}, "test", size, seed=0)
    assert result == {"test": rows(5)}
    expected = ["split 'test': 6 rows asked for, there are 5: all are taken"] if size == 6 else []
    assert [record.getMessage() for record in caplog.records] == expected


def test_sampling_a_split_that_is_not_there_changes_nothing():
    assert splits.sample_split({"train": rows(5)}, "test", 3, seed=0) == {"train": rows(5)}
    assert splits.sample_dev({"train": rows(5)}, 3, 3, seed=0) == {"train": rows(5)}


@pytest.mark.parametrize(("size", "ppl_size"), [(4, 2), (2, 4), (4, 4), (1, 1)])
def test_dev_and_dev_ppl_are_drawn_from_one_sample(size, ppl_size):
    result = splits.sample_dev({"dev": rows(40)}, size, ppl_size, seed=3)
    dev, dev_ppl = set(result["dev"]["id"]), set(result["dev_ppl"]["id"])
    assert (len(dev), len(dev_ppl)) == (size, ppl_size)
    pool, _ = splits.sample_rows(rows(40), max(size, ppl_size), seed=3)
    assert result["dev"] == (splits.sample_rows(pool, size, seed=3)[0] if size < ppl_size else pool)
    assert result["dev_ppl"] == (splits.sample_rows(pool, ppl_size, seed=3)[0] if ppl_size < size else pool)
    assert len(dev | dev_ppl) == max(size, ppl_size)


def test_dev_sizes_that_are_not_given():
    assert splits.sample_dev({"dev": rows(6)}, 3, None, seed=0).keys() == {"dev"}
    result = splits.sample_dev({"dev": rows(6)}, None, 3, seed=0)
    assert result["dev"] == rows(6)
    assert len(result["dev_ppl"]["id"]) == 3
    assert splits.sample_dev({"dev": rows(6)}, None, None, seed=0) == {"dev": rows(6)}


@pytest.mark.parametrize(("size", "ppl_size"), [(9, 9), (9, 2), (2, 9), (None, 9)])
def test_dev_smaller_than_asked_for_warns_once(size, ppl_size, caplog):
    result = splits.sample_dev({"dev": rows(6)}, size, ppl_size, seed=0)
    assert len(result["dev"]["id"]) == min(6, size or 6)
    assert len(result["dev_ppl"]["id"]) == min(6, ppl_size)
    assert len(caplog.records) == 1


def test_ft_splits():
    train = {"text": ["a", "b"], "target": ["1", "2"]}
    own = {"text": ["b", "c", "b"], "target": ["3", "4", "5"]}
    assert splits.add_ft({"train": train, "ft": own}, "full", "f")["ft"] == train
    assert splits.add_ft({"train": train, "ft": own}, "filter", "f")["ft"] == {"text": ["b", "b"], "target": ["3", "5"]}
    assert splits.add_ft({"train": train, "ft": own}, "split", "f")["ft"] == own
    for how in ("filter", "split"):
        with pytest.raises(UserError, match=f"f.json: --add_ft_split {how} needs a split 'ft'"):
            splits.add_ft({"train": train}, how, "f.json")
    with pytest.raises(UserError, match="no text of split 'ft' is in 'train'"):
        splits.add_ft({"train": train, "ft": {"text": ["z"], "target": ["1"]}}, "filter", "f.json")


def test_filter_counts_words_on_both_sides():
    data = {
        "train": {"text": ["a b", "a b c", "a", "a"], "target": ["x", "x", "x y z", " x  y\n"], "id": [0, 1, 2, 3]},
        "unlabeled": {"text": ["a", "a b c"], "target": ["too many words here", "x"]},
    }
    kept = splits.filter_by_words(data, 2, 2, "f.json")
    assert kept["train"] == {"text": ["a b", "a"], "target": ["x", " x  y\n"], "id": [0, 3]}
    assert kept["unlabeled"]["text"] == ["a"]
    assert splits.filter_by_words({"unlabeled": {"text": ["a", "a b c"]}}, 2, 1, "f")["unlabeled"] == {"text": ["a"]}
    with pytest.raises(UserError, match="f.json: split 'dev': no row has at most 1 words"):
        splits.filter_by_words({"dev": {"text": ["a b"], "target": ["x"]}}, 1, 1, "f.json")


def test_debug_sizes():
    cut = splits.debug_rows({"train_0": rows(40), "train_1": rows(5), "dev": rows(40), "ft": rows(16)}, seed=0)
    assert {split: len(columns["id"]) for split, columns in cut.items()} == {
        "train_0": 32, "train_1": 5, "dev": 16, "ft": 16
    }  # fmt: skip


def test_order_of_splits():
    data = {"extra": rows(1), "dev_ppl": rows(1), "dev": rows(1), "train": rows(1)}
    assert list(splits.in_order(data)) == ["train", "dev", "dev_ppl", "extra"]
    assert list(splits.without_splits(data, "extra", "test")) == ["dev_ppl", "dev", "train"]


SHARES = {"train": 70, "dev": 10, "test": 20}


def test_shares_of_a_large_corpus_are_the_sizes_and_the_rest():
    drawn = splits.draw_shares(rows(200), SHARES, seed=42, source="f")
    assert {split: len(columns["id"]) for split, columns in drawn.items()} == {"train": 70, "dev": 10, "test": 120}
    assert sorted(i for columns in drawn.values() for i in columns["id"]) == list(range(200))


@pytest.mark.parametrize(
    ("n", "expected"), [(81, (70, 10, 1)), (80, (56, 8, 16)), (10, (7, 1, 2)), (4, (2, 1, 1)), (3, (1, 1, 1))]
)
def test_shares_of_a_small_corpus_are_in_proportion(n, expected, caplog):
    drawn = splits.draw_shares(rows(n), SHARES, seed=42, source="f")
    assert tuple(len(columns["id"]) for columns in drawn.values()) == expected
    assert sorted(i for columns in drawn.values() for i in columns["id"]) == list(range(n))
    assert len(caplog.records) == (n <= 80)


def test_shares_need_a_row_for_each_split():
    with pytest.raises(UserError, match="f.json: 2 rows that can be used are too few for the splits"):
        splits.draw_shares(rows(2), SHARES, seed=42, source="f.json")
