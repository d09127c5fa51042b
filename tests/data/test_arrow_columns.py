"""Columns that stay in Arrow files read like lists, and every stage of prepare makes the same of both."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny_runs import gen_flags

import gen_main
import prepare_datasets_main
from src.config.errors import UserError
from src.data import columnar_files
from src.data.arrow_columns import ArrowColumn, concatenated, nulls_like, take
from src.data.formats import read_datasets
from src.data.text_hashes import number_by_appearance, text_hashes
from src.data.writers import write_datasets


def column(*chunks: list, rows: list[int] | None = None) -> ArrowColumn:
    return ArrowColumn(pa.chunked_array(list(chunks)), None if rows is None else np.array(rows))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (column(["a", "b"], ["c"]), ["a", "b", "c"]),
        (column(["a", "b"], ["c"], rows=[2, 0, 2]), ["c", "a", "c"]),
        (column(list("abc"), list("defgh"), rows=[1, 2, 3, 4, 6, 7, 0, 1, 2]), list("bcdeghabc")),
        (column(["a", "b"], ["c", "d"])[1:3], ["b", "c"]),
        (column(["a", "b"], ["c", "d"])[::2], ["a", "c"]),
        (column(["a", "b"], ["c", "d"], rows=[3, 1, 0])[1:], ["b", "a"]),
        (column(["a", "b"], ["c", "d"], rows=[3, 1, 0]).take(np.array([0, 0])), ["d", "d"]),
        (take(column(["a"], ["b"]), [1]), ["b"]),
        (take(["a", "b"], np.array([1, 0])), ["b", "a"]),
        (concatenated([column(["a"]), column(["b", "c"], rows=[1])]), ["a", "c"]),
        (concatenated([column(["a"]), ["b"]]), ["a", "b"]),
        (concatenated([["a"], ["b"]]), ["a", "b"]),
        (concatenated([nulls_like(column(["a"]), 2), column(["b"])]), [None, None, "b"]),
        (nulls_like([], 2), [None, None]),
    ],
)
def test_reads_like_a_list(values, expected):
    assert list(values) == expected
    assert values == expected
    assert len(values) == len(expected)
    assert [values[i] for i in range(len(values))] == expected


def test_what_is_taken_from_files_stays_there():
    assert isinstance(concatenated([column(["a"]), column(["b", "c"], rows=[1])]), ArrowColumn)
    assert isinstance(column(["a"])[0:1], ArrowColumn)


@pytest.mark.parametrize(
    ("values", "is_json"),
    [
        (["a", None], True),
        ([1, None], True),
        ([1.5, None], True),
        ([float("nan")], False),
        ([[["a"], []]], True),
        ([[[1.0], [float("inf")]]], False),
        ([b"a"], False),
        ([{"a": 1}], False),
    ],
)
def test_what_json_can_represent(values, is_json):
    assert column(pa.array(values)).is_json() is is_json


def test_numbers_by_appearance():
    numbers, first_rows = number_by_appearance(text_hashes(["b", "a", ["b", "x"], "c", "a"]))
    assert numbers.tolist() == [0, 1, 0, 2, 1]
    assert first_rows.tolist() == [0, 1, 3]


# ------------------------------------------------------------------------------------------------------------- prepare


@pytest.fixture
def sources(tmp_path) -> dict[str, dict]:
    texts = [f"text {i % 25}" for i in range(30)]
    original = {
        "train": {"text": texts, "target": [f"t{i}" for i in range(30)], "id": list(range(30))},
        "unlabeled": {"text": [f"free {i}" for i in range(9)], "id": list(range(9))},
        "dev": {"text": ["d"], "target": [["r", "s"]], "id": [7]},
    }
    generated = {
        "train": {"text": [text for text in texts for _ in "ab"], "generated": [f"g{i}" for i in range(60)]},
        "unlabeled": {"text": [f"free {i // 2}" for i in range(18)], "generated": [f"u{i}" for i in range(18)]},
    }
    for columns in generated.values():
        columns["finish_reason"] = ["length" if i % 5 == 0 else "stop" for i in range(len(columns["text"]))]
    return {"original": original, "generated": generated}


@pytest.mark.parametrize("written", ["json", "arrow"])
@pytest.mark.parametrize("read", ["json", "arrow"])
@pytest.mark.parametrize(
    "flags",
    [
        ("--dataset_name", "", "--dataset_path", "original", "--val_size", "1", "--test_size", "0.2"),
        ("--dataset_name", "", "--dataset_path", "original", "--train_size", "11", "--unlabeled_size", "4",
         "--unlabeled_split", "True", "--filter_by_length", "True"),
        ("--original_dataset_path", "original", "--generation_dataset_path", "generated"),
        ("--original_dataset_path", "original", "--generation_dataset_path", "generated", "--use_cut_off", "False",
         "--use_original", "False"),
    ],
)  # fmt: skip
def test_prepare_makes_the_same_of_both(tmp_path, sources, flags, read, written):
    def prepare(ending: str, file_name: str) -> dict:
        for name, datasets in sources.items():
            write_datasets(tmp_path / f"{name}.{ending}", datasets)
        given = [str(tmp_path / f"{flag}.{ending}") if flag in sources else flag for flag in flags]
        prepare_datasets_main.main([*given, "--output_dir", str(tmp_path), "--file_name", file_name])
        return {
            split: {name: list(values) for name, values in columns.items()}
            for split, columns in read_datasets(tmp_path / file_name).items()
        }

    assert prepare(read, f"out.{written}") == prepare("json", "plain.json")


def test_a_merge_into_arrow_holds_no_texts(tmp_path, monkeypatch):
    """Its columns are row numbers of the files that it reads."""
    inputs = [f"input {i}" for i in range(50)]
    write_datasets(tmp_path / "o.arrow", {"train": {"text": inputs, "target": inputs}})
    columns = {"text": [text for text in inputs for _ in range(4)], "generated": ["g"] * 200}
    write_datasets(tmp_path / "g.arrow", {"train": columns})
    seen = []
    monkeypatch.setattr("src.prepare_datasets.write_datasets", lambda path, datasets: seen.append(datasets))
    flags = {"original_dataset_path": "o.arrow", "generation_dataset_path": "g.arrow"}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(tmp_path / value))]
    prepare_datasets_main.main([*words, "--output_dir", str(tmp_path), "--file_name", "m.arrow"])
    (merged,) = seen
    assert [f"train_{i}" for i in range(4)] == list(merged)
    assert all(isinstance(values, ArrowColumn) for split in merged.values() for values in split.values())


def test_a_large_parquet_file_is_unpacked_to_a_file(tmp_path, monkeypatch):
    import pyarrow.parquet

    rows = {"text": [f"text {i}" for i in range(100)], "target": ["é"] * 100, "n": list(range(100))}
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "train.parquet")
    plain = read_datasets(tmp_path / "train.parquet")
    monkeypatch.setattr(columnar_files, "IN_MEMORY", 10)
    unpacked = read_datasets(tmp_path / "train.parquet")
    assert isinstance(plain["train"]["text"], list)
    assert isinstance(unpacked["train"]["text"], ArrowColumn)
    assert unpacked == plain


def test_a_column_that_arrow_cannot_hold(tmp_path):
    with pytest.raises(UserError, match="column 'mixed': cannot be written to an Arrow file"):
        write_datasets(tmp_path / "d.arrow", {"train": {"text": ["a", "b"], "mixed": [1, {"a": 2}]}})
    assert list(tmp_path.iterdir()) == []


def test_equal_datasets_give_equal_files(tmp_path):
    datasets = json.loads('{"train": {"text": ["a", "b"], "n": [1, null], "refs": [["x"], []], "none": [null, null]}}')
    for name in ("a", "b"):
        write_datasets(tmp_path / f"{name}.arrow", datasets)
    files = [Path(tmp_path / f"{name}.arrow" / "train.arrow").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    assert read_datasets(tmp_path / "a.arrow") == datasets


def test_generation_answers_in_the_form_of_the_dataset(tmp_path, tiny_models):
    """Arrow for Arrow, row by row as in JSON; it can be merged."""
    texts = [f"The cat sees a {word}." for word in ("dog", "bird", "house", "cat", "dog")]
    datasets = {"train": {"text": texts, "target": texts, "id": list("abcde")}, "unlabeled": {"text": texts[:2]}}
    flags = {"generation_type": "sampling", "num_return_sequences": 3, "batch_size": 2, "add_original_data": True}
    made = {}
    for ending in ("json", "arrow"):
        write_datasets(tmp_path / f"d.{ending}", datasets)
        out = tmp_path / f"gen_{ending}"
        gen_main.main(gen_flags(tiny_models["t5"]["student"], tmp_path / f"d.{ending}", out, **flags))
        made[ending] = out / f"generated_datasets.{ending}"
    assert read_datasets(made["arrow"]) == read_datasets(made["json"])
    assert [entry.name for entry in sorted(made["arrow"].parent.iterdir())] == [made["arrow"].name, "run.json"]
    gen_main.main(gen_flags(tiny_models["t5"]["student"], tmp_path / "d.arrow", made["arrow"].parent, **flags))
    words = ["--original_dataset_path", tmp_path / "d.arrow", "--generation_dataset_path", made["arrow"]]
    prepare_datasets_main.main([*map(str, words), "--output_dir", str(tmp_path), "--file_name", "merged.arrow"])
    assert [len(split["text"]) for split in read_datasets(tmp_path / "merged.arrow").values()] == [12, 12, 12, 2]
