"""Columns that flags name: flat, nested, swapped, missing, and those of a file that is prepared already."""

import json
import shlex

import pytest
from conftest import ARGUMENTS

import prepare_datasets_main
from src.config.cli import parse
from src.config.errors import UserError
from src.config.scripts import scripts_with
from src.data.columns import rename_columns
from src.data.formats import read_datasets
from src.data.tables import read_data

NEWS = {"article": ["a", "b"], "summary": ["x", "y"], "id": [1, 2]}
PAIRS = {"translation": [{"en": "a", "de": "A"}, {"en": "b", "de": "B"}]}


def rename(datasets, source="d.csv", **names):
    return rename_columns(datasets, names, source)


def test_columns_get_our_names_and_others_stay():
    renamed = rename({"train": NEWS}, text="article", target="summary")
    assert renamed == {"train": {"text": ["a", "b"], "target": ["x", "y"], "id": [1, 2]}}
    assert rename({"train": NEWS}) == {"train": NEWS}
    assert rename({"train": NEWS}, text="text", target="target") == {"train": NEWS}


def test_parts_of_nested_columns():
    renamed = rename({"train": PAIRS}, text="translation.en", target="translation.de")
    assert renamed == {"train": {"text": ["a", "b"], "target": ["A", "B"], **PAIRS}}
    deep = {"text": ["a"], "answers": [{"text": ["x", "y"], "more": {"id": 7}}]}
    assert rename({"train": deep}, target="answers.text", id="answers.more.id")["train"] | deep == {
        **deep, "target": [["x", "y"]], "id": [7]
    }  # fmt: skip


def test_a_dot_in_a_name_is_no_part_where_such_a_column_is_there():
    columns = {"a.b": ["whole"], "a": [{"b": "part"}]}
    assert rename({"train": columns}, text="a.b")["train"]["text"] == ["whole"]


def test_text_and_target_change_places():
    pairs = {"train": {"text": ["a"], "target": ["x"]}}
    assert rename(pairs, text="target", target="text") == {"train": {"text": ["x"], "target": ["a"]}}


def test_one_column_for_both():
    assert rename({"train": {"line": ["a"]}}, text="line", target="line") == {"train": {"text": ["a"], "target": ["a"]}}


def test_a_column_that_gives_way_is_warned_of(caplog):
    renamed = rename({"train": {"text": ["old"], "article": ["new"]}}, text="article")
    assert renamed == {"train": {"text": ["new"]}}
    assert "column 'text' is left out: --text_column is 'article'" in caplog.text


def test_unlabeled_rows_need_no_target():
    datasets = {"train": NEWS, "unlabeled": {"article": ["c"]}}
    assert rename(datasets, text="article", target="summary")["unlabeled"] == {"text": ["c"]}


@pytest.mark.parametrize(
    ("datasets", "names", "message"),
    [
        ({"train": NEWS}, {"text": "artikle"}, "split 'train': column 'artikle' (--text_column) is missing; it has "
         "['article', 'summary', 'id']; nearest: 'article'"),
        ({"train": NEWS}, {"target": "highlights"}, "column 'highlights' (--target_column) is missing"),
        ({"train": NEWS}, {"id": "uid"}, "column 'uid' (--id_column) is missing"),
        ({"train": {"text": ["a"]}}, {"id": "id"}, "column 'id' (--id_column) is missing; it has ['text']"),
        ({"train": NEWS, "dev": {"text": ["a"]}}, {"text": "article"}, "split 'dev': column 'article' (--text_column)"),
        ({"train": PAIRS}, {"text": "translation.eng"}, "it has ['translation.en', 'translation.de']; nearest: "
         "'translation.en'"),
        ({"train": NEWS}, {"text": "article.en"}, "column 'article.en' (--text_column) is missing"),
    ],
)  # fmt: skip
def test_missing_columns(datasets, names, message):
    with pytest.raises(UserError) as raised:
        rename(datasets, **names)
    assert message in str(raised.value)


def test_a_prepared_file_has_our_names(capsys):
    """One YAML for all scripts names the columns of the first one's file."""
    prepared = {"train": {"text": ["a"], "target": ["x"], "id": [1]}, "unlabeled": {"text": ["b"], "id": [2]}}
    names = {"text": "article", "target": "summary", "id": "uid"}
    assert rename(prepared, "prepared.json", **names) == prepared
    assert capsys.readouterr().out == (
        "prepared.json: has text, target, id already; article, summary, uid are not looked for\n"
    )
    assert rename(prepared, "prepared.json", **names | {"id": "id"}) == prepared
    assert capsys.readouterr().out == "prepared.json: has text, target already; article, summary are not looked for\n"
    with pytest.raises(UserError, match="'article'"):
        rename(prepared, "table.csv", **names)
    with pytest.raises(UserError, match="'artikle'"):
        rename({"train": prepared["train"] | {"summary": ["y"]}}, "other.json", text="artikle", target="summary")


def test_errors_about_our_names_tell_of_the_flags(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"article": "a", "answer": {"short": "x"}}) + "\n", encoding="utf-8")
    argv = shlex.split(f"--output_dir {tmp_path}/out --dataset_path {tmp_path}/d.jsonl")
    with pytest.raises(UserError) as raised:
        prepare_datasets_main.main(argv)
    assert str(raised.value).endswith(
        "column 'text' is missing; it has ['article', 'answer.short']; --text_column names another"
    )
    with pytest.raises(UserError, match="column 'target' is missing.*; --target_column names another"):
        prepare_datasets_main.main([*argv, "--text_column", "article"])
    path = prepare_datasets_main.main([*argv, "--text_column", "article", "--target_column", "answer.short"])
    assert read_datasets(path)["train"] == {"text": ["a"], "target": ["x"], "answer": [{"short": "x"}]}


READING = [
    script
    for script in scripts_with("dataset_path")
    if script not in ("prepare_datasets_main.py", "create_student_main.py")
]


@pytest.mark.parametrize("script", READING)
def test_every_script_that_reads_a_dataset_has_the_flags(tmp_path, script):
    (tmp_path / "d.json").write_text(json.dumps({"train": NEWS}), encoding="utf-8")
    argv = f"--output_dir out --dataset_path {tmp_path}/d.json --text_column article --target_column summary"
    key = "--experiment_config_key logits_kd" if script.startswith("kd") else ""
    config = parse(ARGUMENTS[script], shlex.split(f"{argv} --id_column id {key}"))
    assert read_data(config, config.dataset_path, max_rows=1)["train"] == {"text": ["a"], "target": ["x"], "id": [1]}
