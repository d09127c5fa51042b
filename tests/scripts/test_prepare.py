"""prepare_datasets_main.py, from flags to files."""

import json
from pathlib import Path

import pytest

import prepare_datasets_main
from prepare_datasets_main import main
from src.config.cli import run_script
from src.config.errors import UserError
from src.data.formats import read_datasets
from src.data.schema import check_trainable
from src.data.writers import write_datasets
from src.prepare_datasets import table


def rows(n: int, name: str = "t", words: int = 1) -> dict:
    return {"text": [f"{name}{i}" + " w" * (words - 1) for i in range(n)], "target": [f"y{i}" for i in range(n)]}


@pytest.fixture
def dataset(tmp_path) -> str:
    data = {
        "train": rows(60, "train"),
        "dev": rows(30, "dev"),
        "test": rows(20, "test"),
        "unlabeled": {"text": rows(25, "unlabeled")["text"]},
        "ft": rows(40, "train"),
        "dev_ppl": rows(5, "dev"),
    }
    write_datasets(tmp_path / "data.json", data)
    return str(tmp_path / "data.json")


def prepare(tmp_path: Path, *flags: str) -> dict:
    path = main([*flags, "--output_dir", str(tmp_path / "out")])
    return read_datasets(path)


def sizes(datasets: dict) -> dict:
    return {split: len(columns["text"]) for split, columns in datasets.items()}


def from_file(dataset: str, *flags: str) -> list[str]:
    return ["--dataset_name", "", "--dataset_path", dataset, *flags]


# ----------------------------------------------------------------------------------------------------------- original


def test_a_dataset_file_as_it_is(tmp_path, dataset):
    datasets = prepare(tmp_path, *from_file(dataset))
    given = read_datasets(dataset)
    assert list(datasets) == ["train", "dev", "test", "unlabeled", "ft", "dev_ppl"]
    assert datasets == {**given, "ft": given["train"]}


def test_sizes(tmp_path, dataset):
    flags = "--train_size 10 --val_size 6 --val_ppl_size 8 --test_size 7 --unlabeled_split True --unlabeled_size 9"
    datasets = prepare(tmp_path, *from_file(dataset, *flags.split()))
    assert sizes(datasets) == {"train": 10, "dev": 6, "test": 7, "unlabeled": 9, "ft": 10, "dev_ppl": 8}
    assert datasets["ft"] == datasets["train"]
    assert set(datasets["dev"]["text"]) <= set(datasets["dev_ppl"]["text"])
    check_trainable(datasets, "made")


def test_same_seed_same_bytes_other_seed_other_rows(tmp_path, dataset):
    flags = from_file(dataset, "--train_size", "10", "--val_size", "5", "--val_ppl_size", "5")
    made = [
        main([*flags, "--seed", seed, "--output_dir", str(tmp_path / str(i))]).read_bytes()
        for i, seed in enumerate(("7", "7", "8"))
    ]
    assert made[0] == made[1] != made[2]


def test_what_is_left_of_train_is_unlabeled(tmp_path, dataset):
    flags = ("--train_size", "10", "--unlabeled_split", "True", "--load_use_unlabeled", "False")
    datasets = prepare(tmp_path, *from_file(dataset, *flags))
    assert sorted(datasets["train"]["text"] + datasets["unlabeled"]["text"]) == sorted(rows(60, "train")["text"])


def test_unlabeled_split_without_unlabeled_rows_is_warned_of(tmp_path, dataset, caplog):
    flags = ("--unlabeled_split", "True", "--load_use_unlabeled", "False", "--train_size", "99")
    assert "unlabeled" not in prepare(tmp_path, *from_file(dataset, *flags))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["split 'train'", dataset]


@pytest.mark.parametrize(
    ("flag", "split"),
    [("--load_use_unlabeled", "unlabeled"), ("--load_use_val_ppl", "dev_ppl"), ("--load_use_ft", "ft")],
)
def test_splits_that_are_not_to_be_loaded(tmp_path, dataset, flag, split):
    if split == "ft":
        with pytest.raises(UserError, match="needs a split 'ft'"):
            prepare(tmp_path, *from_file(dataset, flag, "False", "--add_ft_split", "split"))
    else:
        assert split not in prepare(tmp_path, *from_file(dataset, flag, "False"))


def test_ft_filter_and_split(tmp_path, dataset):
    filtered = prepare(tmp_path, *from_file(dataset, "--add_ft_split", "filter", "--train_size", "30"))
    train = set(filtered["train"]["text"])
    assert filtered["ft"]["text"] == [text for text in rows(40, "train")["text"] if text in train]
    assert prepare(tmp_path, *from_file(dataset, "--add_ft_split", "split"))["ft"] == rows(40, "train")


def test_filter_by_length_counts_words(tmp_path):
    write_datasets(tmp_path / "d.json", {"train": {"text": ["a b", "a b c"], "target": ["x", "y"]}})
    flags = from_file(str(tmp_path / "d.json"), "--max_input_length", "2")
    assert sizes(prepare(tmp_path, *flags))["train"] == 2
    assert prepare(tmp_path, *flags, "--filter_by_length", "True")["train"]["text"] == ["a b"]


def test_debug(tmp_path, dataset):
    flags = ("--debug", "True", "--train_size", "50", "--val_ppl_size", "20", "--unlabeled_split", "True")
    assert sizes(prepare(tmp_path, *from_file(dataset, *flags))) == {
        "train": 32, "dev": 16, "test": 16, "unlabeled": 16, "ft": 16, "dev_ppl": 16
    }  # fmt: skip


def test_demo(tmp_path, capsys):
    flags = "--dataset_name demo --train_size 40 --val_size 8 --val_ppl_size 4 --test_size 6"
    datasets = prepare(tmp_path, *flags.split())
    assert sizes(datasets) == {"train": 40, "dev": 8, "test": 6, "ft": 40, "dev_ppl": 4}
    assert "train      40" in capsys.readouterr().out
    datasets = prepare(tmp_path, *flags.split(), "--unlabeled_split", "True", "--unlabeled_size", "50")
    assert sizes(datasets)["unlabeled"] == 50
    assert len({text for columns in datasets.values() for text in columns["text"]}) == 40 + 8 + 6 + 50


def test_the_published_shakespeare_command(tmp_path):
    def line(i):
        return f"line {i} of the play has eight words"

    raw = {"train": {"original": [line(i) for i in range(8_000)], "modern": [line(-i) for i in range(8_000)]}}
    raw["unlabeled"] = {"original": [line(i) for i in range(9_000, 9_300)]}
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    command = (
        "--dataset_name shakespeare --train_size 7000 --val_size 750 --val_ppl_size 750 --unlabeled_size 280"
        " --unlabeled_split True --filter_by_length False --max_input_length 48 --max_labels_length 48"
        " --add_ft_split full --file_name shakespeare_7k.json"
    )
    datasets = prepare(tmp_path, *command.split(), "--dataset_path", str(tmp_path / "raw.json"))
    assert sizes(datasets) == {
        "train": 7_000, "dev": 750, "test": 250, "unlabeled": 280, "ft": 7_000, "dev_ppl": 750
    }  # fmt: skip
    assert (tmp_path / "out" / "shakespeare_7k.json").is_file()
    without = prepare(tmp_path, "--dataset_name", "shakespeare", "--dataset_path", str(tmp_path / "raw.json"))
    assert "unlabeled" not in without


# -------------------------------------------------------------------------------------------------------- generations


@pytest.fixture
def generated(tmp_path) -> list[str]:
    """Flags of a merge: 3 labeled and 2 unlabeled inputs with 2 pseudo-targets each."""
    original = {"train": rows(3), "unlabeled": {"text": ["u0", "u1"]}, "dev": rows(40, "dev")}
    write_datasets(tmp_path / "original.json", original)
    generations = {
        split: {"text": [t for t in original[split]["text"] for _ in range(2)]} for split in ("train", "unlabeled")
    }
    for columns in generations.values():
        columns["generated"] = [f"g{i}" for i in range(len(columns["text"]))]
    write_datasets(tmp_path / "generated.json", generations)
    paths = [str(tmp_path / name) for name in ("original.json", "generated.json")]
    return ["--original_dataset_path", paths[0], "--generation_dataset_path", paths[1]]


def test_the_published_merge_command(tmp_path, generated, capsys):
    flags = (
        "--n_augmentations_per_example 2 --file_name sampling_2.json --use_unlabeled True --use_labeled True"
        " --use_original True"
    )
    datasets = prepare(tmp_path, *generated, *flags.split())
    assert sizes(datasets) == {"train_0": 8, "train_1": 8, "unlabeled": 2, "dev": 40}
    assert datasets["train_1"]["target"] == ["y0", "y1", "y2", "g1", "g3", "g5", "g1", "g3"]
    assert "train_0 … train_1" in capsys.readouterr().out
    assert (
        main([*generated, *flags.split(), "--output_dir", str(tmp_path / "2")]).read_bytes()
        == (tmp_path / "out" / "sampling_2.json").read_bytes()
    )


def test_merge_switches(tmp_path, generated):
    flags = "--use_original False --use_labeled False --n_augmentations_per_example 1"
    assert sizes(prepare(tmp_path, *generated, *flags.split())) == {"train_0": 2, "unlabeled": 2, "dev": 40}


def test_merge_debug(tmp_path, generated):
    assert sizes(prepare(tmp_path, *generated, "--debug", "True")) == {
        "train_0": 8, "train_1": 8, "unlabeled": 2, "dev": 16
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- errors


BAD_DATASETS = {
    "not JSON": ("{", "not JSON: line 1"),
    "unequal columns": ('{"train": {"text": ["a"], "target": []}}', "split 'train': columns must be equally long"),
    "no training split": ('{"dev": {"text": ["a"], "target": ["b"]}}', "no training split"),
    "missing column": ('{"train": {"text": ["a"]}}', "split 'train': column 'target' is missing"),
    "empty split": ('{"train": {"text": [], "target": []}}', "split 'train': no rows"),
    "numbering": ('{"train_1": {"text": ["a"], "target": ["b"]}}', "numbered without gaps"),
    "merged": ('{"train_0": {"text": ["a"], "target": ["b"]}}', "merged already"),
}


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_a_bad_dataset_leaves_everything_as_it_was(tmp_path, name, capsys):
    content, message = BAD_DATASETS[name]
    (tmp_path / "bad.json").write_text(content)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text("old")
    argv = [*from_file(str(tmp_path / "bad.json")), "--output_dir", str(tmp_path / "out")]
    assert run_script(main, argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "bad.json" in error
    assert (tmp_path / "out" / "dataset.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bad.json", "dataset.json", "out"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n_augmentations_per_example", "3"], "3 is more than any input has: at most 2"),
        (["--generation_dataset_path", "none.json"], "none.json: No such file"),
        (["--original_dataset_path", "none.json"], "none.json: No such file"),
    ],
)
def test_a_merge_that_cannot_be_leaves_no_file(tmp_path, generated, flags, message, capsys):
    assert run_script(main, [*generated, *flags, "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_dataset_file(tmp_path):
    with pytest.raises(UserError, match="none.json: No such file"):
        prepare(tmp_path, *from_file(str(tmp_path / "none.json")))
    assert not (tmp_path / "out").exists()


def test_the_file_that_is_read_is_not_overwritten(tmp_path, dataset):
    before = Path(dataset).read_bytes()
    with pytest.raises(UserError, match="is read to make this file"):
        main([*from_file(dataset), "--output_dir", str(tmp_path), "--file_name", "data.json"])
    assert Path(dataset).read_bytes() == before


def test_the_script_only_parses_and_calls():
    source = Path(prepare_datasets_main.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40


# -------------------------------------------------------------------------------------------------------------- table


def test_table_counts_rows_and_words():
    text = table({"train_0": rows(2, words=3), "train_1": rows(1, words=6), "unlabeled": {"text": ["a b"] * 1_000}})
    assert [line.split() for line in text.splitlines()] == [
        ["split", "rows", "words", "of", "text", "words", "of", "target"],
        ["train_0", "…", "train_1", "1", "–", "2", "4.0", "1.0"],
        ["unlabeled", "1,000", "2.0", "–"],
    ]
