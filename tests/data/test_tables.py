"""Tables without splits: --val_size and --test_size draw dev and test from train, equal inputs on one side."""

import json
import shlex

import pytest
from conftest import ARGUMENTS

import prepare_datasets_main
from src.config.cli import parse
from src.config.errors import UserError
from src.config.scripts import scripts_with
from src.data.formats import read_datasets
from src.data.tables import draw_splits, read_data, rows_of


def table(n_inputs: int, per_input: int = 1) -> dict:
    """A table in which every input has several rows, none adjacent."""
    numbers = range(n_inputs * per_input)
    return {"text": [f"t{i % n_inputs}" for i in numbers], "target": [f"y{i}" for i in numbers], "n": list(numbers)}


def draw(datasets, *, seed=42, **sizes):
    return draw_splits(datasets, sizes, seed=seed, source="d.csv")


def counts(datasets):
    return {split: len(columns["text"]) for split, columns in datasets.items()}


@pytest.mark.parametrize(
    ("size", "n_total", "rows"), [(3, 10, 3), (0.25, 10, 2), (0.001, 10, 1), (1, 10, 1), (0.5, 7, 4), (20, 10, 20)]
)
def test_a_size_is_a_number_of_rows_or_a_share(size, n_total, rows):
    assert rows_of(size, n_total) == rows


def test_every_row_is_in_one_split_and_rows_keep_their_order(capsys):
    drawn = draw({"train": table(1000)}, dev=0.1, test=50)
    assert counts(drawn) == {"train": 850, "dev": 100, "test": 50}
    assert sorted(n for columns in drawn.values() for n in columns["n"]) == list(range(1000))
    for columns in drawn.values():
        assert columns["n"] == sorted(columns["n"])
        assert columns["text"] == [f"t{n}" for n in columns["n"]]
    assert capsys.readouterr().out == (
        "d.csv: 1,000 rows become train 850, dev 100, test 50; equal inputs stay together. Other scripts draw the same "
        "from these rows with --val_size 0.1 --test_size 50 --seed 42\n"
    )


@pytest.mark.parametrize("per_input", [2, 3, 7])
def test_equal_inputs_stay_together(per_input):
    drawn = draw({"train": table(100, per_input)}, dev=20, test=0.1)
    texts = {split: set(columns["text"]) for split, columns in drawn.items()}
    assert not texts["train"] & texts["dev"] and not texts["train"] & texts["test"] and not texts["dev"] & texts["test"]
    assert 20 - per_input < counts(drawn)["dev"] <= 20
    assert counts(drawn)["test"] == 10 * per_input


def test_the_seed_decides():
    first, again, other = (draw({"train": table(200)}, dev=20, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sum(n < 100 for n in first["dev"]["n"]) in range(4, 17)


def test_other_splits_stay_and_nothing_is_drawn_unasked():
    datasets = {"train": table(10), "unlabeled": {"text": ["u"]}}
    assert draw(datasets) is datasets
    assert draw(datasets, dev=2)["unlabeled"] == {"text": ["u"]}


def test_no_other_rows_of_an_input_are_trained_on():
    unlabeled = {"text": ["t1", "u", "t5"]}
    drawn = draw({"train": table(10), "ft": table(10, 2), "unlabeled": unlabeled}, dev=3, test=2)
    held_out = {*drawn["dev"]["text"], *drawn["test"]["text"]}
    assert drawn["ft"]["text"] == [text for text in table(10, 2)["text"] if text not in held_out]
    assert drawn["unlabeled"]["text"] == [text for text in unlabeled["text"] if text not in held_out]
    assert "unlabeled" not in draw({"train": table(10), "unlabeled": {"text": drawn["dev"]["text"]}}, dev=3, test=2)


@pytest.mark.parametrize(
    ("datasets", "sizes", "message"),
    [
        ({"train": table(10)}, {"dev": 5, "test": 0.5}, "d.csv: --val_size and --test_size: no row is left for 'train' "
         "of 10 (10 different inputs)"),
        ({"train": table(10)}, {"dev": 20}, "--val_size: no row is left for 'train'"),
        ({"train": table(2, 10)}, {"test": 3}, "--test_size: no row is left for 'test' of 20 (2 different inputs)"),
        ({"train_0": table(3)}, {"dev": 1}, "--val_size: no split 'train' to draw from, only ['train_0']"),
        ({"train": {"text": [["a"], "b"]}}, {"dev": 1}, "split 'train', column 'text', row 0: expected text"),
        ({"train": {"article": ["b"]}}, {"dev": 1}, "column 'text' is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_split(datasets, sizes, message):
    with pytest.raises(UserError) as raised:
        draw(datasets, **sizes)
    assert message in str(raised.value)


SPLITTING = "--val_size 0.1 --test_size 6"


@pytest.fixture
def path(tmp_path):
    datasets = table(30, 2)
    rows = [dict(zip(datasets, row, strict=True)) for row in zip(*datasets.values(), strict=True)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "d.jsonl"


def as_read_by(script: str, path, flags: str):
    key = "--experiment_config_key logits_kd" if script.startswith("kd") else ""
    argv = shlex.split(f"--output_dir {path.parent}/out --dataset_path {path} {flags} {key}")
    if script == "prepare_datasets_main.py":
        return read_datasets(prepare_datasets_main.main(argv))
    config = parse(ARGUMENTS[script], argv)
    return read_data(config, config.dataset_path, max_rows=config.max_rows)


def test_all_scripts_draw_the_same_splits(path):
    scripts = [script for script in scripts_with("dataset_path") if script != "create_student_main.py"]
    of_script = {script: as_read_by(script, path, SPLITTING) for script in scripts}
    prepared = of_script["prepare_datasets_main.py"]
    assert prepared.pop("ft") == prepared["train"]
    assert counts(prepared) == {"train": 48, "dev": 6, "test": 6}
    assert all(datasets == prepared for datasets in of_script.values())
    assert as_read_by("ft_main.py", path, f"{SPLITTING} --seed 1") != prepared


def test_a_split_that_is_there_is_not_drawn(path, tmp_path, capsys):
    datasets = {"train": table(20), "dev": table(3)}
    (tmp_path / "d.json").write_text(json.dumps(datasets), encoding="utf-8")
    read = as_read_by("ft_main.py", tmp_path / "d.json", "--val_size 0.5 --test_size 4")
    assert read["dev"] == datasets["dev"]
    assert counts(read) == {"train": 16, "dev": 3, "test": 4}
    assert "d.json: has a split 'dev'; --val_size is not used\n" in capsys.readouterr().out


def test_debug_cuts_after_the_split(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"train": table(400)}), encoding="utf-8")
    whole = as_read_by("ft_main.py", tmp_path / "d.json", "--val_size 150")
    cut = as_read_by("ft_main.py", tmp_path / "d.json", "--val_size 150 --debug True")
    assert counts(cut) == {"train": 128, "dev": 128}
    assert cut["dev"]["n"] == whole["dev"]["n"][:128]


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        ("--val_size 4 --val_ppl_size 8 --test_size 0.1", {"train": 46, "dev": 4, "test": 6, "ft": 46, "dev_ppl": 8}),
        ("--train_size 10 --val_size 0.1 --unlabeled_split True", {"train": 10, "dev": 6, "unlabeled": 44, "ft": 10}),
        ("", {"train": 60, "ft": 60}),
    ],
)
def test_prepared_tables(path, flags, sizes):
    prepared = as_read_by("prepare_datasets_main.py", path, flags)
    assert counts(prepared) == sizes
    parts = [set(prepared.get(split, {}).get("n", ())) for split in ("train", "dev_ppl", "test", "unlabeled")]
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_a_share_of_a_split_that_is_there(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"train": table(20), "dev": table(8), "test": table(5)}))
    prepared = as_read_by("prepare_datasets_main.py", tmp_path / "d.json", "--val_size 0.25 --test_size 5")
    assert counts(prepared) == {"train": 20, "dev": 2, "test": 5, "ft": 20}
