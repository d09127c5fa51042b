"""Columns `messages`, `prompt` and `completion`, as other tools have them."""

import json

import pytest

from src.config.errors import UserError
from src.data.conversations import contents_of, messages_of
from src.data.formats import read_datasets
from src.data.schema import check_datasets


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


def columns_of(tmp_path, suffix=".jsonl", **columns) -> dict[str, list]:
    """The split of a file with these columns, as the scripts read it."""
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        path.write_text(
            "".join(
                json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)
            )
        )
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return read_datasets(path)["train"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_are_input_and_target(tmp_path, suffix):
    rows = [[user("a cat"), assistant("un chat")], [{"role": "system", "content": "Brief."}, user("é"), assistant("b")]]
    columns = columns_of(tmp_path, suffix, messages=rows, id=[1, 2])
    assert columns["text"][0] == "a cat" and messages_of(columns["text"][1]) == rows[1][:-1]
    assert columns["target"] == ["un chat", "b"] and columns["id"] == [1, 2] and "messages" not in columns
    assert contents_of(columns["text"][1]) == "Brief.\né"


def test_earlier_turns_are_context(tmp_path):
    rows = [
        [user("a"), assistant("b"), user("c"), assistant("d")],
        [user("x"), assistant("b"), user("c"), assistant("d")],
    ]
    columns = columns_of(tmp_path, messages=rows)
    assert columns["target"] == ["d", "d"] and len(set(columns["text"])) == 2
    assert [messages_of(text) for text in columns["text"]] == [row[:-1] for row in rows]


def test_messages_without_an_answer_are_inputs(tmp_path):
    assert columns_of(tmp_path, messages=[[user("a")], [user("b")]]) == {"text": ["a", "b"]}


def test_json_in_a_table_of_texts(tmp_path):
    assert columns_of(tmp_path, messages=[json.dumps([user("a"), assistant("b")])]) == {"text": ["a"], "target": ["b"]}


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("a", "b"), ([user("a")], [assistant("b")]), ([user("a")], "b"), ([user([{"type": "text", "text": "a"}])], "b")],
)
def test_prompt_and_completion(tmp_path, prompt, completion):
    assert columns_of(tmp_path, prompt=[prompt], completion=[completion]) == {"text": ["a"], "target": ["b"]}
    assert columns_of(tmp_path, prompt=[prompt]) == {"text": ["a"]}


def test_a_column_of_texts_has_precedence(tmp_path):
    assert columns_of(tmp_path, text=["a"], prompt=["b"]) == {"text": ["a"], "prompt": ["b"]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([assistant("b")], "row 0: expected a last message of the user, and the assistant's answer"),
        ([user("a"), {"role": "system", "content": "b"}], "row 0: expected a last message of the user"),
        ([], "row 0: expected a last message of the user"),
        ([{"role": "tool", "content": "b"}], "role 'tool' and text"),
        ([user(None)], "role 'user' and null"),
        ([user([{"type": "image"}])], "role 'user' and a list"),
        (["a"], "column 'messages', row 0: expected messages .*, found text"),
        (None, "column 'messages', row 0: expected a list of messages, found null"),
        ("{", "column 'messages', row 0: .*JSON"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path, row, expected):
    with pytest.raises(UserError, match=f"data.jsonl: split 'train'.*{expected}"):
        columns_of(tmp_path, messages=[row])


def test_a_row_without_an_answer_is_refused_where_a_target_is_needed(tmp_path):
    columns = columns_of(tmp_path, messages=[[user("a"), assistant("b")], [user("a")]])
    with pytest.raises(UserError, match="column 'target', row 1: expected text, found null"):
        check_datasets({"train": columns}, "d")
