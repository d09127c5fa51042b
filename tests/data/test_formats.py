"""Read, check and write dataset files."""

import json
import math
import os
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet
import pytest

from src.config.errors import UserError
from src.data import formats, hub, schema, writers
from src.data.arrow_columns import ArrowColumn
from src.data.json_values import json_form
from src.storage import atomic, json_files

ROWS = {"text": ["a b", 'quote " and, comma', "line\nbreak", "é – 漢 \u2028 🙂"], "target": ["1", "02", "", "d"]}
DATASETS = {"train": ROWS, "dev": {"text": ["x"], "target": ["y"]}, "unlabeled": {"text": ["u"]}}


def write(path: Path, content: str | bytes | dict | list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(content) if isinstance(content, dict | list) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_rows(path: Path, columns: dict) -> None:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_dict(columns)
        (table.to_parquet if path.suffix == ".parquet" else table.to_csv)(str(path))


# ------------------------------------------------------------------------------------------------------------ reading


def test_json_round_trip(tmp_path):
    writers.write_datasets(tmp_path / "d.json", DATASETS)
    assert formats.read_datasets(tmp_path / "d.json") == DATASETS
    assert list(formats.read_datasets(tmp_path / "d.json")) == list(DATASETS)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_one_file_is_the_train_split(tmp_path, suffix):
    write_rows(tmp_path / f"rows{suffix}", ROWS)
    assert formats.read_datasets(tmp_path / f"rows{suffix}") == {"train": ROWS}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".json"])
def test_folder_with_a_file_per_split(tmp_path, suffix):
    write_rows(tmp_path / f"train{suffix}", ROWS)
    write_rows(tmp_path / f"validation{suffix}", DATASETS["dev"])
    (tmp_path / "README.md").write_text("not a split")
    assert formats.read_datasets(tmp_path) == {"train": ROWS, "dev": DATASETS["dev"]}


def test_folder_of_shards_and_other_forms_of_json(tmp_path):
    write_rows(tmp_path / "train" / "0.jsonl", {"text": ["a"], "target": ["1"]})
    write_rows(tmp_path / "train" / "1.parquet", {"text": ["b"], "target": ["2"]})
    write(tmp_path / "dev.json", {"text": ["columns"], "target": ["t"]})
    write(tmp_path / "test.json", '{"text": "line", "target": "t"}\n{"text": "line 2", "target": "t"}\n')
    write(tmp_path / "ft.json", '{"text": "one line", "target": "t"}\n')
    datasets = formats.read_datasets(tmp_path)
    assert datasets["train"] == {"text": ["a", "b"], "target": ["1", "2"]}
    assert datasets["dev"]["text"] == ["columns"]
    assert datasets["test"]["text"] == ["line", "line 2"]
    assert datasets["ft"]["text"] == ["one line"]


def test_folder_saved_by_datasets(tmp_path):
    library = pytest.importorskip("datasets")
    split = library.Dataset.from_dict(ROWS)
    split.save_to_disk(str(tmp_path / "one"))
    library.DatasetDict({"train": split, "validation": split}).save_to_disk(str(tmp_path / "two"))
    assert formats.read_datasets(tmp_path / "one") == {"train": ROWS}
    assert formats.read_datasets(tmp_path / "two") == {"train": ROWS, "dev": ROWS}


def test_max_rows_cuts_every_split(tmp_path):
    writers.write_datasets(tmp_path / "d.json", DATASETS)
    cut = formats.read_datasets(tmp_path / "d.json", max_rows=2)
    assert cut["train"] == {"text": ROWS["text"][:2], "target": ROWS["target"][:2]}
    assert cut["dev"] == DATASETS["dev"]


def test_byte_order_mark_is_no_part_of_the_data(tmp_path):
    path = write(tmp_path / "d.json", b"\xef\xbb\xbf" + json.dumps(DATASETS).encode())
    assert formats.read_datasets(path) == DATASETS
    assert formats.read_datasets(write(tmp_path / "d.csv", b"\xef\xbb\xbftext,target\na,b\n")) == {
        "train": {"text": ["a"], "target": ["b"]}
    }


def test_extra_columns_are_kept(tmp_path):
    datasets = {"train": {"text": ["a"], "target": ["b"], "id": [7], "logits": [[[0.5, -1.25]]]}}
    writers.write_datasets(tmp_path / "d.json", datasets)
    assert formats.read_datasets(tmp_path / "d.json") == datasets


PAIRS = {"text": ["a", "b"], "target": ["1", "2"]}
ODD_COLUMNS: dict[str, tuple] = {  # name: (type, values, as JSON has them; None: left out)
    "score": (pa.float64(), [0.5, math.nan], [0.5, None]),
    "infinite": (pa.float32(), [math.inf, -math.inf], [None, None]),
    "when": (pa.timestamp("us"), [datetime(2026, 1, 2, 3, 4), None], ["2026-01-02T03:04:00", None]),
    "nanoseconds": (pa.timestamp("ns"), [1, None], ["1970-01-01T00:00:00.000000001", None]),
    "zone": (pa.timestamp("s", tz="UTC"), [0, 1], ["1970-01-01T00:00:00+00:00", "1970-01-01T00:00:01+00:00"]),
    "day": (pa.date32(), [date(2026, 1, 2), None], ["2026-01-02", None]),
    "time": (pa.time64("us"), [time(3, 4), None], ["03:04:00", None]),
    "duration": (pa.duration("ms"), [timedelta(seconds=1.5), None], [1.5, None]),
    "price": (pa.decimal128(5, 2), [Decimal("12.50"), None], [12.5, None]),
    "large": (pa.decimal128(30, 0), [Decimal(10**25 + 1), None], [10**25 + 1, None]),
    "nested": (
        pa.struct({"when": pa.list_(pa.date32()), "score": pa.float64()}),
        [{"when": [date(2026, 1, 2)], "score": math.nan}, None],
        [{"when": ["2026-01-02"], "score": None}, None],
    ),
    "vectors": (pa.list_(pa.list_(pa.float32())), [[[0.5, math.nan]], [[]]], [[[0.5, None]], [[]]]),
    "words": (pa.list_(pa.list_(pa.string())), [[["a"]], []], [[["a"]], []]),
    "codes": (pa.dictionary(pa.int8(), pa.string()), ["x", "y"], ["x", "y"]),
    "image": (
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        [{"bytes": b"\xff", "path": "a.png"}, None],
        None,
    ),
    "pages": (pa.list_(pa.list_(pa.binary())), [[[b"\xff"]], []], None),
}


def write_table(path: Path, columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("form", [".parquet", ".arrow", "saved"])
def test_columns_that_are_no_json_get_a_form_or_are_left_out(tmp_path, form, caplog):
    columns = {name: pa.array(values, kind) for name, (kind, values, _) in ODD_COLUMNS.items()}
    folder = tmp_path / "data"
    if form == "saved":
        library = pytest.importorskip("datasets")
        library.Dataset(pa.table({**PAIRS, **columns})).save_to_disk(str(folder))
    else:
        folder.mkdir()
        write_table(folder / f"train{form}", {**PAIRS, **columns})
        write_table(folder / f"dev{form}", {**PAIRS, "image": [1, 2]})  # left out of every split, or of none
    read = formats.read_datasets(folder)
    train = {name: list(values) for name, values in read["train"].items()}
    assert train == PAIRS | {name: right for name, (_, _, right) in ODD_COLUMNS.items() if right is not None}
    assert read.get("dev", PAIRS) == PAIRS
    said = [record.getMessage().removeprefix(f"{folder}: ") for record in caplog.records]
    assert said == [
        "column 'image' is left out: JSON has no form for bytes",
        "column 'pages' is left out: JSON has no form for bytes",
    ]
    writers.write_datasets(tmp_path / "written.json", read)
    assert formats.read_datasets(tmp_path / "written.json")["train"].keys() == train.keys()
    writers.fingerprint_datasets(read)


def test_columns_stay_in_their_file(tmp_path):
    write_table(
        tmp_path / "train.arrow", PAIRS | {"logits": pa.array([[[0.5], []], []], pa.list_(pa.list_(pa.float32())))}
    )
    read = formats.read_datasets(tmp_path)["train"]
    assert all(isinstance(read[name], ArrowColumn) for name in ("text", "target", "logits"))


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (["a", {1: [2.0]}], ["a", {"1": [2.0]}]),
        (Decimal("NaN"), None),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("NaT", "NaT"),
    ],
)
def test_json_form(value, form):
    assert json_form(value) == form
    assert type(json_form(value)) is type(form)


def test_texts_and_targets_must_be_texts(tmp_path):
    """No date becomes one; targets of `unlabeled` are never read."""
    write_table(tmp_path / "train.parquet", PAIRS | {"target": [date(2026, 1, 2)] * 2})
    write_table(tmp_path / "unlabeled.parquet", PAIRS | {"target": [math.nan] * 2})
    datasets = formats.read_datasets(tmp_path)
    assert datasets["unlabeled"]["target"] == [None, None]
    with pytest.raises(UserError, match="column 'target', row 0: expected text, found date"):
        schema.check_datasets(datasets, "data")


def test_times_that_python_has_no_form_for_are_refused(tmp_path):
    write_table(tmp_path / "rows.parquet", PAIRS | {"when": pa.array([10**12, None], pa.timestamp("ms"))})
    assert formats.read_datasets(tmp_path / "rows.parquet")["train"]["when"][0].startswith("2001-09-09T")
    write_table(tmp_path / "rows.parquet", PAIRS | {"when": pa.array([10**15, None], pa.timestamp("ms"))})
    with pytest.raises(UserError, match=r"rows\.parquet: contains a time outside of the years 1 to 9999"):
        formats.read_datasets(tmp_path / "rows.parquet")


BAD_FILES = {
    "list.json": ([1], "found a list"),
    "empty.json": ({}, "found an empty object"),
    "rows.json": ({"train": [{"text": "a"}]}, "split 'train': expected an object of columns, found a list"),
    "text.json": ({"train": {"text": "a"}}, "split 'train', column 'text': expected a list, found text"),
    "uneven.json": ({"dev": {"text": ["a", "b"], "target": ["a"]}}, "split 'dev'.*text 2, target 1"),
    "truncated.json": ('{"train": {"text": ["a",\n"b', "not JSON: line 2, column"),
    "lines.json": ('{"text": "a"}\n{"text": "b"}\n', r"not JSON: line 2.*name it \.jsonl"),
    "nothing.json": ("", "not JSON: line 1, column 1"),
    "nan.json": ('{"train": {"text": [NaN]}}', "not JSON"),
    "infinite.json": ('{"train": {"text": ["a"], "n": [1e999]}}', "not JSON"),
    "latin1.json": (b'{"train": {"text": ["\xe9"]}}', "not JSON"),
    "twice.json": ({"dev": {"text": ["a"]}, "validation": {"text": ["a"]}}, "two splits mean 'dev'"),
    "torn.jsonl": ('{"text": "a"}\n{"text": ', "line 2: not JSON"),
    "keys.jsonl": ('{"text": "a"}\n{"txt": "b"}\n', "split 'train', column 'text', row 1: expected text, found null"),
    "list.jsonl": ('["a"]\n', "line 1: expected an object"),
    "short.csv": ("text,target\na,b\nc\n", "expected text, found null"),
    "long.csv": ("text,target\na,b\nc,d,e\n", "line 3: columns .* differ"),
    "bytes.parquet": ("not parquet", "not a Parquet file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_line_that_names_the_place(tmp_path, name):
    content, message = BAD_FILES[name]
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        schema.check_trainable(formats.read_datasets(path), path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match="none.json: No such file"):
        formats.read_datasets(tmp_path / "none.json")
    with pytest.raises(UserError, match="no split found"):
        formats.read_datasets(tmp_path)


def test_a_split_given_twice_or_with_other_columns(tmp_path):
    write_rows(tmp_path / "a" / "train.jsonl", ROWS)
    write_rows(tmp_path / "a" / "train" / "0.jsonl", ROWS)
    with pytest.raises(UserError, match="split 'train' is there twice"):
        formats.read_datasets(tmp_path / "a")
    write_rows(tmp_path / "b" / "train" / "0.jsonl", ROWS)
    write_rows(tmp_path / "b" / "train" / "1.jsonl", {"text": ["a"]})
    with pytest.raises(UserError, match=r"1\.jsonl: columns .* differ"):
        formats.read_datasets(tmp_path / "b")


# ---------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub_library(monkeypatch):
    """A hub that answers, with `loaders` in place of `datasets.load_dataset`: {first argument: result or error}."""
    library = pytest.importorskip("datasets")
    loaders: dict = {}
    calls = []

    def load_dataset(name, config=None, **kwargs):
        calls.append((name, config, kwargs))
        result = loaders[name]
        if isinstance(result, Exception):
            raise result
        return library.DatasetDict({split: library.Dataset.from_dict(rows) for split, rows in result.items()})

    monkeypatch.setattr(hub, "_check_hub_answers", lambda name: None)
    monkeypatch.setattr(library, "load_dataset", load_dataset)
    return loaders, calls


def test_hub_name_and_configuration(hub_library):
    loaders, calls = hub_library
    loaders["some/name"] = {"train": ROWS, "validation": ROWS}
    assert formats.read_datasets("hf:some/name") == {"train": ROWS, "dev": ROWS}
    assert formats.read_datasets("hf:some/name:part", max_rows=1)["train"]["text"] == ["a b"]
    assert [call[:2] for call in calls] == [("some/name", None), ("some/name", "part")]


def test_local_folder_laid_out_like_a_repository(hub_library, tmp_path, monkeypatch):
    loaders, _ = hub_library
    loaders[str(tmp_path)] = {"train": ROWS}
    monkeypatch.setattr(hub, "_check_hub_answers", lambda name: pytest.fail("no network is needed"))
    assert formats.read_datasets(f"hf:{tmp_path}") == {"train": ROWS}


def test_script_repository_is_read_from_its_parquet_revision(hub_library):
    loaders, calls = hub_library
    loaders["GEM/ART"] = RuntimeError("Dataset scripts are no longer supported,\nbut found ART.py")
    loaders["parquet"] = {"train": ROWS}
    assert hub.load_hub("GEM/ART", splits=["train"]) == {"train": ROWS}
    assert calls[1][2] == {"data_files": {"train": "hf://datasets/GEM/ART@~parquet/*/train/*.parquet"}}
    loaders["parquet"] = FileNotFoundError("no such revision")
    with pytest.raises(
        UserError, match="no longer supported, but found ART.py; its parquet revision: no such"
    ) as error:
        hub.load_hub("GEM/ART", splits=["train"])
    assert "\n" not in str(error.value)


def test_unreachable_hub_is_said_at_once(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    asked = []

    def refuse(request, timeout):
        asked.append(timeout)
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"hf:a/b: the hub does not answer \(no route\); .*HF_HUB_OFFLINE=1"):
        formats.read_datasets("hf:a/b")
    assert asked == [hub.HUB_TIMEOUT]


def test_a_top_level_datasets_folder_does_not_shadow_the_library(tmp_path):
    (tmp_path / "datasets" / "original").mkdir(parents=True)
    code = "import datasets; print(datasets.__file__, callable(datasets.load_dataset))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("True")
    assert str(tmp_path) not in done.stdout
    assert not (Path(writers.__file__).parents[2] / "datasets" / "__init__.py").exists()


# ----------------------------------------------------------------------------------------------------------- checking


def test_good_datasets_pass():
    schema.check_trainable(DATASETS, "d.json")
    schema.check_trainable({"train_0": ROWS, "train_1": ROWS}, "d.json")
    schema.check_datasets({"dev": {"text": ["a"]}}, "d.json", need_target=False)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"dev": ROWS}, r"no training split \('train', or 'train_0' …\), only \['dev'\]"),
        ({"train": {"text": ["a"]}}, "split 'train': column 'target' is missing"),
        ({"train": {"target": ["a"]}}, "split 'train': column 'text' is missing"),
        ({"train": ROWS, "unlabeled": {"target": ["a"]}}, "split 'unlabeled': column 'text' is missing"),
        ({"train": ROWS, "dev": {"text": [], "target": []}}, "split 'dev': no rows"),
        ({"train": {"text": ["a", 3], "target": ["a", "b"]}}, "column 'text', row 1: expected text, found a number"),
        ({"train": {"text": ["a"], "target": [None]}}, "column 'target', row 0: expected text, found null"),
        ({"train_0": ROWS, "train_2": ROWS}, "split 'train_2' where 'train_1' should be"),
        ({"train_1": ROWS}, "must be numbered without gaps"),
        ({"train_0": ROWS, "train_00": ROWS}, "must be numbered without gaps"),
    ],
)
def test_bad_datasets(datasets, message):
    with pytest.raises(UserError, match=message) as caught:
        schema.check_trainable(datasets, "d.json")
    assert str(caught.value).startswith("d.json: ")


def test_unlabeled_may_hold_a_placeholder_for_target():
    schema.check_trainable({"train": ROWS, "unlabeled": {"text": ["a"], "target": [None]}}, "d.json")


def test_training_splits_are_in_the_order_of_rotation(caplog):
    assert schema.training_splits({"dev": ROWS, "train": ROWS}) == ["train"]
    assert schema.training_splits({"dev": ROWS}) == []
    assert not caplog.records
    rotation = {f"train_{i}": ROWS for i in range(11)}
    assert schema.training_splits(dict(sorted(rotation.items()))) == list(rotation)
    assert not caplog.records
    assert schema.training_splits({"train": ROWS, **rotation, "train_x": ROWS}) == list(rotation)
    assert [record.getMessage() for record in caplog.records] == [
        "split 'train' is ignored: train_0 … train_10 are trained on"
    ]


def test_generations_need_generated_alone(tmp_path):
    path = write(tmp_path / "g.json", {"dev": {"generated": ["a"]}})
    assert formats.read_generations(path) == {"dev": {"generated": ["a"]}}
    with pytest.raises(UserError, match="split 'dev': column 'generated' is missing"):
        formats.read_generations(write(tmp_path / "h.json", {"dev": {"text": ["a"]}}))
    with pytest.raises(UserError, match="column 'text', row 0"):
        formats.read_generations(write(tmp_path / "i.json", {"dev": {"generated": ["a"], "text": [1]}}))


# ------------------------------------------------------------------------------------------------------------ writing


def test_atomic_write_leaves_the_old_file_and_nothing_else_on_failure(tmp_path):
    path = tmp_path / "d.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic.atomic_write(path) as file:
        file.write("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with pytest.raises(ValueError, match="JSON"):
        writers.write_datasets(path, {"train": {"text": [float("nan")]}})
    with pytest.raises(TypeError):
        json_files.write_json(path, {"not": object})
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.json"]
    assert path.read_text() == "old"


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "d.json"
    for value in ({"é": 1}, [2]):
        json_files.write_json(path, value)
        assert json_files.read_json(path) == value
    json_files.write_json(path, {"é": [1]}, indent=2)
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["d.json"]


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("a file, no folder")
    with pytest.raises(UserError, match="cannot be written"):
        json_files.write_json(tmp_path / "file" / "d.json", 1)
    with pytest.raises(UserError, match="it is a folder"):
        json_files.write_json(tmp_path, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_dataset_files_are_readable_by_people_and_by_json(tmp_path):
    writers.write_datasets(tmp_path / "d.json", DATASETS)
    text = (tmp_path / "d.json").read_text(encoding="utf-8")
    assert json.loads(text) == DATASETS
    assert '"é – 漢 \u2028 🙂"' in text
    assert '\n"a b",\n' in text
    writers.write_datasets(tmp_path / "empty.json", {"train": {"text": []}})
    assert json.loads((tmp_path / "empty.json").read_text()) == {"train": {"text": []}}


def test_json_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert json_files.read_json_lines(path) == []
    for i in range(3):
        json_files.append_json_line(path, {"é": i})
    assert json_files.read_json_lines(path) == [{"é": 0}, {"é": 1}, {"é": 2}]


@pytest.mark.parametrize("torn", ['{"a', '{"a": 2}', "12", '{"a": "' + "x" * 200_000, '{"a": \n', "\0\0\n"])
def test_a_torn_last_line_is_removed(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n' + torn)
    assert json_files.read_json_lines(path) == [{"a": 1}]
    assert path.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": NaN}', "d.json: not JSON: line 1, column 7: invalid character"),
        ('{"a": 1,\n "é": [1,\n2 3]}'.encode(), "d.json: not JSON: line 3, column 3: expected ',' or ']'"),
        (b'{"a":\n"b', "d.json: not JSON: line 2, column 3: unexpected end"),
        (b"[1]\n[2]\n", "line 2, column 2: trailing characters (one object per line? name it .jsonl)"),
        (b'["a",\n "b\xff"]', "d.json: not JSON in UTF-8: line 2, column 4: invalid start byte"),
        (b"[1e999]", "d.json: not JSON: Number out of range - at `$[0]`"),
        (b"[-Infinity,\n Infinity]", "d.json: not JSON: line 2, column 2: invalid character"),
        (b"[" * 100_000, "d.json: not JSON: nested too deeply"),
    ],
)
def test_json_errors_name_the_line_and_column(tmp_path, content, said):
    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        json_files.read_json(tmp_path / "d.json")
    assert str(error.value).endswith(said)


def test_minus_infinity_is_null_and_stays_in_texts():
    data = rb'{"-Infinity": "\"-Infinity", "a": [-Infinity, -1, "-"], "b": -Infinity}'
    assert json_files.parse_json(data, "here") == {"-Infinity": '"-Infinity', "a": [None, -1, "-"], "b": None}


def test_a_bad_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\nbad\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2: not JSON"):
        json_files.read_json_lines(path)
    assert path.read_text().count("\n") == 3


def test_fingerprints(tmp_path):
    path = tmp_path / "d.json"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert writers.fingerprint(path) == known
    folder = writers.fingerprint(tmp_path)
    (tmp_path / ".tokens").mkdir()
    (tmp_path / ".tokens" / "a").touch()
    assert writers.fingerprint(tmp_path) == folder
    path.rename(tmp_path / "e.json")
    assert writers.fingerprint(tmp_path) != folder
    writers.write_datasets(path, DATASETS)
    assert writers.fingerprint_datasets(DATASETS) == writers.fingerprint(path)
    with pytest.raises(UserError, match="No such file"):
        writers.fingerprint(tmp_path / "none")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        json_files.write_json(tmp_path / "d.json", 1)


# --------------------------------------------------------------------------------------------- what else a folder holds


def test_the_layout_of_the_hub(tmp_path):
    """Splits by the names of files, shards in order, `validation` as dev."""
    rows = {name: {"text": [name], "target": [name]} for name in "abcd"}
    for file, name in (("train-00001-of-00002", "b"), ("train-00000-of-00002", "a"), ("validation-00000-of-00001", "c"),
                       ("test-00000-of-00001", "d")):  # fmt: skip
        write_rows(tmp_path / "data" / f"{file}.parquet", rows[name])
    (tmp_path / "README.md").write_text("a card")
    both = {"text": ["a", "b"], "target": ["a", "b"]}
    assert formats.read_datasets(tmp_path) == {"train": both, "dev": rows["c"], "test": rows["d"]}
    (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"split 'train' has 2 shards, of which \[0\] are not there"):
        formats.read_datasets(tmp_path)


def test_hidden_files_are_no_splits(tmp_path):
    write_rows(tmp_path / "train.jsonl", ROWS)
    write_rows(tmp_path / "dev" / "0.jsonl", ROWS)
    for hidden in (
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        "__MACOSX/._train.jsonl",
        "._train.jsonl",
        "dev/._0.jsonl",
    ):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert formats.read_datasets(tmp_path) == {"train": ROWS, "dev": ROWS}


def test_an_optional_key_that_some_rows_lack_is_null_there(tmp_path):
    write(tmp_path / "train.jsonl", '{"text": "a", "target": "1"}\n{"target": "2", "id": 7, "text": "b"}\n')
    write(tmp_path / "unlabeled.jsonl", '{"text": "a", "target": null}\n{"text": "b"}\n')
    datasets = formats.read_datasets(tmp_path)
    assert datasets["train"] == {"text": ["a", "b"], "target": ["1", "2"], "id": [None, 7]}
    assert datasets["unlabeled"] == {"text": ["a", "b"], "target": [None, None]}
    schema.check_datasets(datasets, "here")
    write(tmp_path / "dev.jsonl", '{"text": "a", "target": "1"}\n{"text": "b"}\n')
    with pytest.raises(UserError, match="split 'dev', column 'target', row 1: expected text, found null"):
        schema.check_datasets(formats.read_datasets(tmp_path), "here")


def test_tsv(tmp_path):
    write(tmp_path / "train.tsv", 'text\ttarget\na, b\t"1\t2"\n')
    assert formats.read_datasets(tmp_path / "train.tsv") == {"train": {"text": ["a, b"], "target": ["1\t2"]}}
