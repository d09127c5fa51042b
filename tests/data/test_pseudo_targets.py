"""Merge pseudo-targets into train_0, train_1, …"""

import pytest

from src.config.errors import UserError
from src.data.pseudo_targets import Merge, input_hash, merge_pseudo_targets

ORIGINAL = {
    "train": {"text": ["a", "b"], "target": ["A", "B"]},
    "unlabeled": {"text": ["u", "v", "w"]},
    "dev": {"text": ["d"], "target": ["D"]},
    "ft": {"text": ["a"], "target": ["A"]},
}
GENERATED = {
    "train": {"generated": ["a0", "a1", "b0", "b1"]},
    "unlabeled": {"generated": ["u0", "u1", "v0", "v1", "w0", "w1"]},
}


def with_text(generated: dict, k: int = 2) -> dict:
    """The file that --add_original_data True writes."""
    repeated = {s: {n: [v for v in vs for _ in range(k)] for n, vs in ORIGINAL[s].items()} for s in generated}
    return {split: {**repeated[split], **columns} for split, columns in generated.items()}


@pytest.mark.parametrize("generations", [GENERATED, with_text(GENERATED)], ids=["without text", "with text"])
def test_the_ith_target_of_every_input_goes_to_train_i(generations):
    merged = merge_pseudo_targets(ORIGINAL, generations, Merge())
    assert list(merged) == ["train_0", "train_1", "unlabeled", "dev", "ft"]
    for i in range(2):
        assert merged[f"train_{i}"] == {
            "text": ["a", "b", "a", "b", "u", "v", "w"],
            "target": ["A", "B", *(f"{text}{i}" for text in "abuvw")],
        }
    assert {split: merged[split] for split in ("unlabeled", "dev", "ft")} == {
        split: ORIGINAL[split] for split in ("unlabeled", "dev", "ft")
    }


@pytest.mark.parametrize(
    ("switches", "texts", "first_targets"),
    [
        ({"use_labeled": False}, "ab uvw", ["A", "B", "u0", "v0", "w0"]),
        ({"use_unlabeled": False}, "ab ab", ["A", "B", "a0", "b0"]),
        ({"use_original": False}, "abuvw", ["a0", "b0", "u0", "v0", "w0"]),
        ({"use_original": False, "use_labeled": False}, "uvw", ["u0", "v0", "w0"]),
        ({"use_original": False, "use_unlabeled": False}, "ab", ["a0", "b0"]),
    ],
)
def test_switches(switches, texts, first_targets):
    merged = merge_pseudo_targets(ORIGINAL, GENERATED, Merge(**switches))
    assert merged["train_0"] == {"text": list(texts.replace(" ", "")), "target": first_targets}
    assert "train_1" in merged
    assert "train" not in merged


def test_only_the_labeled_pairs():
    merged = merge_pseudo_targets(ORIGINAL, GENERATED, Merge(use_labeled=False, use_unlabeled=False))
    assert merged["train_0"] == ORIGINAL["train"]
    assert "train_1" not in merged


def test_rows_with_equal_text_are_one_input_across_splits_in_file_order():
    original = {
        "train": {"text": ["a", "b", "a"], "target": ["A", "B", "A2"]},
        "unlabeled": {"text": ["a", "c"]},
    }
    generations = {
        "train": {"text": ["a", "b", "a"], "generated": ["1", "2", "3"]},
        "unlabeled": {"text": ["a", "c", "c"], "generated": ["4", "5", "6"]},
    }
    merged = merge_pseudo_targets(original, generations, Merge(use_original=False))
    # No input has more than two targets for each time that it stands in the data.
    assert merged["train_0"] == {"text": ["a", "a", "b", "c"], "target": ["1", "4", "2", "5"]}
    assert merged["train_1"] == {"text": ["a", "c"], "target": ["3", "6"]}
    assert "train_2" not in merged
    turned = dict(reversed(generations.items()))
    merged = merge_pseudo_targets(original, turned, Merge(use_original=False))
    assert [merged[f"train_{i}"]["target"][0] for i in range(2)] == ["4", "1"]


def test_fewer_targets_than_there_are():
    merged = merge_pseudo_targets(ORIGINAL, GENERATED, Merge(n_per_input=1))
    assert [split for split in merged if split.startswith("train")] == ["train_0"]


def test_an_input_with_fewer_targets_is_in_fewer_splits(caplog):
    generations = {"unlabeled": {"text": list("uuuvw"), "generated": ["0", "1", "2", "3", "4"]}}
    original = {"train": ORIGINAL["train"], "unlabeled": ORIGINAL["unlabeled"]}
    merged = merge_pseudo_targets(original, generations, Merge(use_labeled=False, n_per_input=2))
    assert merged["train_0"]["text"] == list("abuvw")
    assert merged["train_1"]["text"] == list("abu")
    assert "inputs have 1 to 3 pseudo-targets" in caplog.text


def test_duplicates_within_an_input_are_kept():
    generations = {"unlabeled": {"generated": ["x"] * 6}}
    merged = merge_pseudo_targets(ORIGINAL, generations, Merge(use_original=False, use_labeled=False))
    assert merged["train_0"] == merged["train_1"] == {"text": list("uvw"), "target": ["x"] * 3}


def test_further_columns_are_kept_where_all_rows_have_them():
    original = {
        "train": {"id": [7, 8], "text": ["a", "b"], "target": ["A", "B"], "act": [1, 2]},
        "unlabeled": {"id": [9], "text": ["u"]},
    }
    generations = {"train": {"generated": ["a0", "a1", "b0", "b1"]}, "unlabeled": {"generated": ["u0", "u1"]}}
    merged = merge_pseudo_targets(original, generations, Merge())
    assert merged["train_1"] == {
        "text": ["a", "b", "a", "b", "u"], "id": [7, 8, 7, 8, 9], "target": ["A", "B", "a1", "b1", "u1"]
    }  # fmt: skip
    labeled = merge_pseudo_targets(original, generations, Merge(use_unlabeled=False))
    assert labeled["train_0"]["act"] == [1, 2, 1, 2]


def test_a_column_of_the_generation_file_alone_is_not_an_inputs():
    generations = {"train": {"text": list("aabb"), "generated": list("1234"), "score": [0.1, 0.2, 0.3, 0.4]}}
    merged = merge_pseudo_targets(ORIGINAL, generations, Merge(use_original=False, use_unlabeled=False))
    assert merged["train_0"] == {"text": ["a", "b"], "target": ["1", "3"]}


def test_splits_that_are_already_merged_are_replaced():
    original = {**ORIGINAL, "train_0": ORIGINAL["dev"], "train_9": ORIGINAL["dev"]}
    merged = merge_pseudo_targets(original, GENERATED, Merge())
    assert [split for split in merged if split.startswith("train")] == ["train_0", "train_1"]
    assert merged["train_0"]["text"] != ["d"]


def test_absent_generations_are_warned_of(caplog):
    merged = merge_pseudo_targets(ORIGINAL, {"unlabeled": GENERATED["unlabeled"]}, Merge(generations_source="g.json"))
    assert merged["train_0"]["text"] == list("abuvw")
    assert caplog.records[0].getMessage() == (
        "g.json: no pseudo-targets of ['train']: only those of ['unlabeled'] are used"
    )


@pytest.mark.parametrize(
    ("original", "generations", "switches", "message"),
    [
        (ORIGINAL, GENERATED, {"n_per_input": 3}, "g.json: --n_augmentations_per_example 3 .* at most 2"),
        (ORIGINAL, {"dev": {"generated": ["x"]}}, {}, r"g.json: no pseudo-targets of .* only of \['dev'\]"),
        ({"dev": ORIGINAL["dev"]}, GENERATED, {}, "o.json: no split 'train'"),
        ({"train": ORIGINAL["train"]}, GENERATED, {}, "split 'unlabeled' is not in o.json"),
        (ORIGINAL, {"train": {"text": ["a", "z"], "generated": ["1", "2"]}}, {}, "split 'train', row 1: its text"),
        (ORIGINAL, {"train": {"text": ["u"], "generated": ["1"]}}, {}, "split 'train', row 0: its text"),
        (ORIGINAL, {"train": {"generated": ["1", "2", "3"]}}, {}, "3 pseudo-targets cannot be shared equally"),
        (ORIGINAL, {"train": {"generated": ["1"]}}, {}, "1 pseudo-targets cannot be shared equally by the 2 rows"),
    ],
)
def test_what_cannot_be_merged(original, generations, switches, message):
    merge = Merge(**switches, original_source="o.json", generations_source="g.json")
    with pytest.raises(UserError, match=message):
        merge_pseudo_targets(original, generations, merge)


def test_inputs_are_not_changed():
    original = {split: {name: list(values) for name, values in columns.items()} for split, columns in ORIGINAL.items()}
    merge_pseudo_targets(original, GENERATED, Merge())
    assert original == ORIGINAL


# ---------------------------------------------------------------------------------------- inputs that stand repeatedly


@pytest.mark.parametrize("is_with_text", [False, True])
def test_an_input_that_stands_twice_does_not_double_the_rotation(is_with_text, caplog):
    """Also once labeled and once unlabeled: K splits of equal use, with its further targets as additional rows."""
    original = {
        "train": {"text": ["a", "a", "b"], "target": ["A", "X", "B"]},
        "unlabeled": {"text": ["b", "c"]},
    }
    generated = {
        "train": {"generated": ["a0", "a1", "x0", "x1", "b0", "b1"]},
        "unlabeled": {"generated": ["y0", "y1", "c0", "c1"]},
    }
    if is_with_text:
        for split, columns in generated.items():
            columns["text"] = [text for text in original[split]["text"] for _ in range(2)]
    merged = merge_pseudo_targets(original, generated, Merge(use_original=False))
    assert [split for split in merged if split.startswith("train")] == ["train_0", "train_1"]
    for i in range(2):
        assert merged[f"train_{i}"]["text"] == ["a", "a", "b", "b", "c"]
        assert merged[f"train_{i}"]["target"] == [f"{name}{i}" for name in "axbyc"]
    assert "2 inputs stand more than once" in caplog.text
    one = merge_pseudo_targets(original, generated, Merge(use_original=False, n_per_input=1))
    assert one["train_0"] == merged["train_0"] and "train_1" not in one
    with pytest.raises(UserError, match="at most 2"):
        merge_pseudo_targets(original, generated, Merge(n_per_input=3))


# ------------------------------------------------------------------------------------------------- other data, or order


def hashed(generated: dict) -> dict:
    return {
        split: columns | {"input_hash": [input_hash(text) for text in ORIGINAL[split]["text"] for _ in range(2)]}
        for split, columns in generated.items()
    }


def test_pseudo_targets_know_their_inputs(caplog):
    merged = merge_pseudo_targets(ORIGINAL, hashed(GENERATED), Merge())
    assert merged == merge_pseudo_targets(ORIGINAL, with_text(GENERATED), Merge())
    assert not caplog.text
    merge_pseudo_targets(ORIGINAL, GENERATED, Merge())
    assert "has neither texts nor hashes of its inputs" in caplog.text


@pytest.mark.parametrize("texts", [["v", "u", "w"], ["u", "v", "x"]])
def test_pseudo_targets_of_other_inputs_are_refused(texts):
    other = ORIGINAL | {"unlabeled": {"text": texts}}
    row = 0 if texts[0] == "v" else 2
    with pytest.raises(UserError, match=f"split 'unlabeled': its pseudo-targets were not written for row {row} of"):
        merge_pseudo_targets(other, hashed(GENERATED), Merge())


# -------------------------------------------------------------------------------------------------- texts that were cut


def with_reasons(generated: dict) -> dict:
    """Of every input's two targets, the second was cut off."""
    return {
        split: {**columns, "finish_reason": ["stop", "length"] * (len(columns["generated"]) // 2)}
        for split, columns in generated.items()
    }


def test_why_a_text_ended_goes_with_it():
    merged = merge_pseudo_targets(ORIGINAL, with_reasons(GENERATED), Merge())
    assert merged["train_0"]["finish_reason"] == [None, None, *["stop"] * 5]
    assert merged["train_1"]["finish_reason"] == [None, None, *["length"] * 5]
    plain = merge_pseudo_targets(ORIGINAL, GENERATED, Merge())
    for split, columns in plain.items():
        assert {name: values for name, values in merged[split].items() if name != "finish_reason"} == columns


def test_texts_that_were_cut_may_be_left_out():
    merged = merge_pseudo_targets(ORIGINAL, with_reasons(GENERATED), Merge(use_cut_off=False))
    assert merged["train_0"]["target"] == ["A", "B", "a0", "b0", "u0", "v0", "w0"]
    assert "train_1" not in merged
    with pytest.raises(UserError, match="no column 'finish_reason' says which"):
        merge_pseudo_targets(ORIGINAL, GENERATED, Merge(use_cut_off=False))
