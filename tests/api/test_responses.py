"""Read a teacher's answers: every form, and every malformed row is handled or refused by its number."""

import json
import sys

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from pyarrow import parquet

from src.api.logprobs import lacks_logprobs, read_tokens
from src.api.responses import ApiFile, Completion
from src.api.spelling import encode_with_leading_space, locate_pieces, token_bytes
from src.config.errors import UserError

TOP = [{"The": -0.1, "A": -2.0}, {" cat": -0.5, " dog": None}]
PUBLISHED = {"tokens": ["The", " cat"], "logprobs": TOP}
COMPLETION = {"tokens": ["The", " cat"], "token_logprobs": [-0.1, -0.5], "top_logprobs": TOP}
CHAT = [
    {"token": "The", "logprob": -0.1, "bytes": [84, 104, 101], "top_logprobs": [
        {"token": "The", "logprob": -0.1, "bytes": [84, 104, 101]}, {"token": "A", "logprob": -2.0, "bytes": None}]},
    {"token": " cat", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": " dog", "logprob": None}]},
]  # fmt: skip


def both(text: str, logprobs: object, tokens: object = None) -> list[Completion]:
    """A completion as parsed values, and as JSON text."""
    values = (tokens, logprobs), tuple(Raw(json.dumps(value).encode()) for value in (tokens, logprobs))
    return [Completion("f: row 3", text, False, *pair) for pair in values]


def read(text: str, logprobs: object, tokens: object = None):
    parsed, raw = map(read_tokens, both(text, logprobs, tokens))
    assert parsed == raw
    return parsed


def refused(text: str, logprobs: object, tokens: object = None) -> str:
    messages = []
    for completion in both(text, logprobs, tokens):
        with pytest.raises(UserError) as error:
            read_tokens(completion)
        messages.append(str(error.value))
    parsed, raw = messages
    assert parsed == raw
    assert raw.startswith("f: row 3")
    assert "\n" not in raw
    return raw


def spelled(text: str, spans: list[tuple[int, int]]) -> list[bytes]:
    return [encode_with_leading_space(text)[start:end] for start, end in spans]


# ---------------------------------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize(
    ("logprobs", "tokens"),
    [
        (TOP, ["The", " cat"]),
        (COMPLETION, None),
        (CHAT, None),
        (CHAT, ["The", " cat"]),  # a column of tokens beside it
        ({"content": CHAT}, None),
        ({"content": CHAT}, []),
    ],
)
def test_all_forms_say_the_same(logprobs, tokens):
    found = read("The cat", logprobs, tokens)
    assert found.names == ["The", " cat"]
    assert found.top == [{"The": -0.1, "A": -2.0}, {" cat": -0.5}]
    assert spelled("The cat", found.spans) == [b"The", b" cat"]


def test_the_tokens_written_are_among_the_known_ones():
    """A sampled token need not be one of the most likely."""
    found = read(
        "The cat", {"tokens": ["The", " cat"], "token_logprobs": [-7.0, None], "top_logprobs": [{"A": -1.0}, None]}
    )
    assert found.top == [{"A": -1.0, "The": -7.0}, {}]
    found = read("The cat", {"tokens": ["The", " cat"], "token_logprobs": [-7.0, -1.0], "top_logprobs": None})
    assert found.top == [{"The": -7.0}, {" cat": -1.0}]
    assert read("a", [{"token": "a", "logprob": -5.0, "top_logprobs": [{"token": "b", "logprob": -1.0}]}]).top == [
        {"b": -1.0, "a": -5.0}
    ]


@pytest.mark.parametrize(
    ("value", "kept"), [(1e-7, 0.0), (1e-3, 0.0), (0, 0.0), (-0.0, 0.0), (-3, -3.0), (-9999.0, -9999.0)]
)
def test_numbers_that_are_log_probabilities(value, kept):
    assert read("a", [{"a": value}], ["a"]).top == [{"a": kept}]
    assert read("a", [{"token": "a", "logprob": value, "top_logprobs": [{"token": "a", "logprob": value}]}]).top == [
        {"a": kept}
    ]


@pytest.mark.parametrize("value", [0.2, 10**400, -(10**400), "inf", "nan", "-1", True, [-1.0]])
def test_numbers_that_are_none(value):
    assert "`$.logprobs[0][...]`" in refused("a", [{"a": -1.0, "b": value}], ["a"])
    others = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": value}]
    chat = [{"token": "a", "logprob": -1.0, "top_logprobs": others}]
    assert "`$.logprobs[0].top_logprobs[1].logprob`" in refused("a", chat)
    assert "`$.logprobs.content[0].top_logprobs[1].logprob`" in refused("a", {"content": chat})
    assert "`$.logprobs.token_logprobs[1]`" in refused("ab", {"tokens": ["a", "b"], "token_logprobs": [-1, value]})
    assert "`$.logprobs[0].logprob`" in refused("a", [{"token": "a", "logprob": value}])


@pytest.mark.parametrize("value", [None, "-inf", "-Infinity", "-INF"])
def test_minus_infinity_is_an_absent_entry(value):
    """In every form, beside what is known and for the token itself."""
    assert read("a", [{"a": -1.0, "b": value}], ["a"]).top == [{"a": -1.0}]
    assert read("a", [{"a": value, "b": -1}], ["a"]).top == [{"b": -1.0}]
    others = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": value}]
    assert read("a", [{"token": "a", "logprob": -1.0, "top_logprobs": others}]).top == [{"a": -1.0}]
    assert read("a", [{"token": "a", "logprob": value}]).top == [{}]
    known = {"tokens": ["a"], "token_logprobs": [value], "top_logprobs": [{"b": value, "c": -2.0}]}
    assert read("a", known).top == [{"c": -2.0}]


@pytest.mark.parametrize("top", [{}, {"a": None}, None])
def test_a_position_of_which_nothing_is_known(top):
    assert read("a", [top], ["a"]).top == [{}]


@pytest.mark.parametrize(
    ("logprobs", "tokens", "said"),
    [
        (None, None, "no log-probabilities of its tokens"),
        ([], [], "no log-probabilities of its tokens"),
        ({}, None, "no log-probabilities of its tokens"),
        (None, ["a"], "1 tokens need as many log-probabilities, found 0"),
        ([{"a": -1.0}, {}], ["a"], "1 tokens need as many log-probabilities, found 2"),
        ([[-1.0]], ["a"], "Expected `object | null`, got `array` - at `$.logprobs[0]`"),
        ("a", ["a"], "Expected `object | array | null`, got `str` - at `$.logprobs`"),
        (True, ["a"], "Expected `object | array | null`, got `bool` - at `$.logprobs`"),
        ([{"a": -1.0}], "a", "Expected `array | null`, got `str` - at `$.tokens`"),
        ([{"a": -1.0}], [1], "Expected `str`, got `int` - at `$.tokens[0]`"),
        ({"tokens": ["a"], "token_logprobs": [], "top_logprobs": [{}, {}]}, None, "found 2"),
        ({"tokens": ["a"], "token_logprobs": [-1.0, -1.0]}, None, "1 tokens need as many log-probabilities, found 2"),
        (["a"], None, "Expected `object | null`, got `str` - at `$.logprobs[0]`"),
        ([{"token": "a", "logprob": -1.0, "top_logprobs": {"a": -1.0}}], None, "at `$.logprobs[0].top_logprobs`"),
        ([{"token": "\ufffd", "logprob": -1.0, "bytes": [300]}], None, "`int` <= 255 - at `$.logprobs[0].bytes[0]`"),
        ([{"token": "\ufffd", "logprob": -1.0, "bytes": "x"}], None, "at `$.logprobs[0].bytes`"),
    ],
)  # fmt: skip
def test_log_probabilities_that_cannot_be_read(logprobs, tokens, said):
    assert said in refused("a", logprobs, tokens)


def test_an_empty_completion_needs_no_tokens():
    for logprobs in (None, [], {"content": []}, {"tokens": [], "token_logprobs": [], "top_logprobs": []}):
        assert read("", logprobs).names == []


# ------------------------------------------------------------------------------------------------------------- spelling


@pytest.mark.parametrize(
    ("text", "tokens", "pieces"),
    [
        ("The cat", ["The", " cat"], [b"The", b" cat"]),
        ("The cat", [" The", " cat"], [b" The", b" cat"]),  # a completion begins with a space
        (" The cat", ["The", " cat", "\n"], [b"The", b" cat", b""]),
        ("The cat\n", ["The", " cat"], [b"The", b" cat"]),
        ("The cat", ["\n", "The", " cat", "<|endoftext|>"], [b" ", b"The", b" cat", b""]),
        ("The", ["The", "</s>"], [b"The", b""]),
        ("", ["</s>"], [b""]),
        ("a<b>", ["a", "<b>"], [b"a", b"<b>"]),
        ("é", ["bytes:\\xc3", "bytes:\\xa9"], [b"\xc3", b"\xa9"]),
        ("a é", ["a", "bytes: \\xc3", "bytes:\\xa9"], [b"a", b" \xc3", b"\xa9"]),
        ("bytes: x", ["bytes:", " x"], [b"bytes:", b" x"]),
        ("bytes:x", ["bytes:x"], [b"bytes:x"]),
        # parts of characters that the API does not tell: the first has all of it
        ("a 🙂 b", ["a", " ", "\ufffd", "\ufffd", " b"], [b"a", b" ", "🙂".encode(), b"", b" b"]),
        ("🙂 b 🙂", ["\ufffd", "\ufffd", " b", " \ufffd"], ["🙂".encode(), b"", b" b", " 🙂".encode()]),
        ("\ufffd b", ["\ufffd", " b"], ["\ufffd".encode(), b" b"]),
    ],
)
def test_what_tokens_spell(text, tokens, pieces):
    found = read(text, [{}] * len(tokens), tokens)
    assert spelled(text, found.spans) == pieces


@pytest.mark.parametrize(
    ("text", "tokens", "said"),
    [
        ("The cat", ["The", " dog"], "token 1 is ' dog', where the text goes on with 'cat'"),
        ("The cat", ["The"], "after the last token the text goes on with ' cat'"),
        ("The", ["The", " cat"], "token 1 is ' cat', where the text goes on with ''"),
        ("The cat", [" The", "cat"], "token 1 is 'cat', where the text goes on with ' cat'"),
        ("cat", ["ca", "<b>", "t"], "token 1 is '<b>', where the text goes on with 't'"),
        ("a b", ["a", "\ufffd", " c"], "token 1 is '\ufffd', where the text goes on with ' b'"),
        ("", ["a"], "token 0 is 'a', where the text goes on with ''"),
    ],
)
def test_tokens_that_do_not_spell_the_text(text, tokens, said):
    assert f"its tokens do not spell its text; {said}" in refused(text, [{}] * len(tokens), tokens)


def test_bytes_of_a_chat_api():
    """Its strings for parts of characters are not to be read; `\\x` may also be what the text says."""
    positions = [
        {"token": "\\xc3", "logprob": -1.0, "bytes": [0xC3], "top_logprobs": [
            {"token": "\\xc3", "logprob": -1.0, "bytes": [0xC3]},
            {"token": "\ufffd", "logprob": -2.0, "bytes": [0xC4]}]},
        {"token": "\ufffd", "logprob": -1.0, "bytes": [0xA9]},
        {"token": "\\x", "logprob": -1.0, "bytes": [92, 120]},
    ]  # fmt: skip
    found = read("é\\x", positions)
    assert spelled("é\\x", found.spans) == [b"\xc3", b"\xa9", b"\\x"]
    assert [token_bytes(name) for name in found.top[0]] == [b"\xc3", b"\xc4"]


def test_tokens_of_one_string_are_added():
    others = [{"token": "\ufffd", "logprob": -1.0, "bytes": None}] * 2 + [{"token": "a", "logprob": -1.5}]
    (top,) = read("a", [{"token": "a", "logprob": -1.5, "top_logprobs": others}]).top
    assert top == {"\ufffd": pytest.approx(-1 + 0.6931472), "a": -1.5}


@given(st.lists(st.text(max_size=5), max_size=8))
def test_tokens_reproduce_the_text(tokens):
    text = "".join(tokens)
    placed = encode_with_leading_space(text)
    spans = locate_pieces([token.encode() for token in tokens], placed)
    assert spans is not None
    assert b"".join(placed[start:end] for start, end in spans).strip() == text.encode().strip()


def test_teachers_strings_as_bytes():
    assert token_bytes("▁a") == "▁a".encode()
    assert [token_bytes(name, "▁") for name in ("▁a", "a", "<0xC3>", "▁▁")] == [b" a", b"a", b"\xc3", b"  "]
    assert [token_bytes(name, "Ġ") for name in ("Ġa", "a", "Ã", "一")] == [b" a", b"a", b"\xc3", "一".encode()]


# ---------------------------------------------------------------------------------------------------------------- files


def lines(tmp_path, *values: object) -> ApiFile:
    path = tmp_path / "api.jsonl"
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return ApiFile(path)


def one_row(tmp_path, value: object):
    (row,) = lines(tmp_path, value).rows("rows")
    return row


def completion_response(text: str = "The cat", **fields: object) -> dict:
    return {"choices": [{"text": text, "index": 0, "logprobs": COMPLETION, **fields}]}


def chat_response(text: str | None = "The cat", **fields: object) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": {"content": CHAT}, **fields}]}


@pytest.mark.parametrize(
    "response",
    [
        completion_response(),
        completion_response(" The cat\n"),
        chat_response(),
        {"status_code": 200, "request_id": "r", "body": chat_response()},
        {"body": completion_response()},
        {"id": "b", "custom_id": "7", "response": {"status_code": 200, "body": chat_response()}, "error": None},
        chat_response(finish_reason="stop", error=None),
        {"error": {}, **completion_response()},
    ],
)
def test_raw_responses(tmp_path, response):
    row = one_row(tmp_path, {"text": "x", "target": "y", "response": response, "custom_id": "7"})
    assert (row.split, row.text, row.reference) == ("train", "x", "y")
    (found,) = row.completions
    assert (found.prediction, found.is_cut_off) == ("The cat", False)
    assert read_tokens(found).top == [{"The": -0.1, "A": -2.0}, {" cat": -0.5}]


def test_several_choices_and_their_places(tmp_path):
    response = {"choices": [*completion_response()["choices"], *chat_response()["choices"]]}
    row = one_row(tmp_path, {"text": "x", "split": "unlabeled", "response": response})
    assert (row.split, row.reference) == ("unlabeled", None)
    assert [found.place for found in row.completions] == [f"{tmp_path}/api.jsonl: line 1, choice {i}" for i in (0, 1)]


@pytest.mark.parametrize(
    ("reason", "is_cut_off"),
    [("stop", False), (None, False), ("length", True), ("max_tokens", True), ("eos", False)],
)
def test_completions_that_are_cut_off(tmp_path, reason, is_cut_off):
    response = chat_response(finish_reason=reason)
    assert one_row(tmp_path, {"text": "x", "response": response}).completions[0].is_cut_off is is_cut_off
    row = {"text": "x", "prediction": "The cat", **PUBLISHED, "finish_reason": reason}
    assert one_row(tmp_path, row).completions[0].is_cut_off is is_cut_off


ERROR = {"message": "Rate limit reached for org-1\nretry", "type": "tokens", "param": None, "code": "rate_limit"}
REFUSAL = {"role": "assistant", "content": None, "refusal": "I can't help with that."}


@pytest.mark.parametrize(
    ("response", "failure"),
    [
        (None, "no response"),
        ({"body": None}, "no response"),
        ({"choices": []}, "no choices"),
        ({"choices": None, "usage": {}}, "no choices"),
        ({"error": ERROR}, "error rate_limit"),
        ({"error": {"message": "no", "code": 429}}, "error 429"),
        ({"error": {"message": "no", "code": None, "type": "server_error"}}, "error server_error"),
        ({"error": {"message": "no", "code": "a\nb"}}, "error"),
        ({"error": "overloaded"}, "error"),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, "error 400"),
        ({"status_code": 500, "request_id": "r", "body": {}}, "status 500"),
        ({"status_code": 429, "body": {"error": ERROR}}, "status 429"),
        ({"status_code": 200, "body": {"error": ERROR}}, "error rate_limit"),
        ({"id": "b", "custom_id": "7", "response": None, "error": ERROR}, "error rate_limit"),
        ({"id": "b", "custom_id": "7", "response": {"status_code": 400, "body": {}}, "error": None}, "status 400"),
        (chat_response(None), "no text"),
        (completion_response(None), "no text"),
        ({"choices": [{"message": REFUSAL, "finish_reason": "stop", "logprobs": {"content": None}}]}, "refused"),
        (chat_response("The", finish_reason="content_filter"), "content filter"),
        (completion_response(finish_reason="refusal"), "refused"),
        (completion_response(finish_reason="error"), "error"),
        (chat_response(error={"code": 502, "message": "provider"}), "error 502"),
    ],
)  # fmt: skip
def test_answers_that_failed(tmp_path, response, failure):
    (found,) = one_row(tmp_path, {"text": "x", "response": response}).completions
    assert (found.prediction, found.failure, found.place) == ("", failure, f"{tmp_path}/api.jsonl: line 1")


def test_failures_beside_the_response_and_in_columns(tmp_path):
    for row, failure in (
        ({"response": None, "error": ERROR}, "error rate_limit"),
        ({"error": ERROR}, "error rate_limit"),
        ({"prediction": "The cat", **PUBLISHED, "finish_reason": "content_filter"}, "content filter"),
        ({"response": completion_response(), "error": None}, None),
    ):
        assert one_row(tmp_path, {"text": "x", **row}).completions[0].failure == failure


def test_a_failed_choice_among_good_ones(tmp_path):
    response = {"choices": [{"message": REFUSAL}, *chat_response()["choices"]]}
    failed, good = one_row(tmp_path, {"text": "x", "response": response}).completions
    assert (failed.failure, failed.place) == ("refused", f"{tmp_path}/api.jsonl: line 1, choice 0")
    assert (good.failure, good.prediction) == (None, "The cat")


@pytest.mark.parametrize(
    ("logprobs", "tokens", "lacks"),
    [(None, None, True), ({}, None, True), ({"content": None}, None, True), ({"content": []}, None, True),
     ({"tokens": []}, None, True), (None, ["a"], True), (CHAT, None, False), ({"content": CHAT}, None, False),
     (COMPLETION, None, False), (TOP, ["The", " cat"], False), (3, None, False)],
)  # fmt: skip
def test_log_probabilities_that_were_not_asked_for(logprobs, tokens, lacks):
    assert [lacks_logprobs(each) for each in both("The cat", logprobs, tokens)] == [lacks, lacks]
    assert not any(lacks_logprobs(each) for each in both(" ", logprobs, tokens))


def test_a_choice_with_a_text_beside_a_message_of_another_kind(tmp_path):
    response = completion_response(message="ok")
    assert one_row(tmp_path, {"text": "x", "response": response}).completions[0].prediction == "The cat"


def test_blank_lines_and_rows_without_a_completion(tmp_path):
    path = tmp_path / "api.jsonl"
    path.write_text(
        '\n{"text": "x", "target": "y", "split": "test"}\n\n{"text": "z", "split": "validation", "prediction": "p"}'
    )
    test, dev = ApiFile(path).rows("rows")
    assert (test.split, test.completions, test.place) == ("test", (), f"{path}: line 2")
    assert (dev.split, dev.completions[0].prediction, dev.place) == ("dev", "p", f"{path}: line 4")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "Expected `object`, got `array` - at `$`"),
        ({"response": completion_response()}, "Object missing required field `text` - at `$`"),
        ({"text": 3, "response": completion_response()}, "Expected `str`, got `int` - at `$.text`"),
        ({"text": "x", "target": 3, "response": completion_response()},
         "Expected `str | array | null`, got `int` - at "),
        ({"text": "x", "target": []}, "Expected `array` of length >= 1 - at `$.target`"),
        ({"text": "x", "target": ["a", 3]}, "Expected `str`, got `int` - at `$.target[1]`"),
        ({"text": "x", "split": "test"}, "'target' is missing or null; rows of 'test' need a reference"),
        ({"text": "x", "split": "training", "response": completion_response()}, "split 'training' is none of"),
        ({"text": "x", "split": "train_0", "response": completion_response()}, "of one input are rows of equal"),
        ({"text": "x", "split": 1, "response": completion_response()}, "split 1 is none of"),
        ({"text": "x", "response": {}}, "its 'response' has no 'choices'"),
        ({"text": "x", "response": []}, "its 'response' has no 'choices'"),
        ({"text": "x", "response": {"error": None}}, "its 'response' has no 'choices'"),
        ({"text": "x", "response": {"body": "The cat"}}, "its 'response' has no 'choices'"),
        ({"text": "x", "response": {"output": [{"content": "The cat"}]}}, "its 'response' has no 'choices'"),
        ({"text": "x", "response": {"choices": "The cat"}}, "got `str` - at `$.response.choices`"),
        ({"text": "x", "response": {"choices": ["a"]}}, "Expected `object`, got `str` - at `$.response.choices[0]`"),
        ({"text": "x", "response": {"choices": [{"delta": {}}]}}, "expected a choice with 'text' or 'message'"),
        ({"text": "x", "response": chat_response([{"type": "text"}])},
         "Expected `str`, got `array` - at `$.response.choices[0].message.content`"),
        ({"text": "x", "response": {"body": completion_response(3)}},
         "got `int` - at `$.response.body.choices[0].text`"),
        ({"text": "x", "response": completion_response(finish_reason=3)}, "at `$.response.choices[0].finish_reason`"),
        ({"text": "x", "prediction": 3}, "Expected `str | null`, got `int` - at `$.prediction`"),
    ],
)  # fmt: skip
def test_lines_that_are_refused(tmp_path, value, said):
    file = lines(tmp_path, {"text": "x", "response": completion_response()}, value)
    with pytest.raises(UserError) as error:
        list(file.rows("rows"))
    assert str(error.value).startswith(f"{tmp_path}/api.jsonl: line 2")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"text": "x", "response": NaN}',
        '{"text": "x", "response": [Infinity]}',
        '{"text": "-Infinity", "response": [Infinity]}',
        '{"text": "x", "logprob": -Infinity',
        "\xff",
    ],
)
def test_lines_that_are_not_json(tmp_path, line):
    path = tmp_path / "api.jsonl"
    path.write_bytes(b'{"text": "x", "prediction": "p"}\n\n' + line.encode("latin-1"))
    with pytest.raises(UserError, match="api.jsonl: line 3: not JSON"):
        list(ApiFile(path).rows("rows"))


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_minus_infinity_as_python_writes_it(tmp_path, ending):
    absent = [{"The": -0.1, "A": -float("inf")}, {" cat": -0.5, " dog": -float("inf")}]
    row = {"text": "-Infinity", "prediction": "The cat", "tokens": ["The", " cat"], "logprobs": absent}
    path = tmp_path / f"api{ending}"
    columns = {name: [value] for name, value in row.items()}
    path.write_text(json.dumps(row if ending == ".jsonl" else {"train": columns}))
    assert "-Infinity" in path.read_text()
    (found,) = ApiFile(path).rows("rows")
    assert found.text == "-Infinity"
    assert read_tokens(found.completions[0]).top == [{"The": -0.1}, {" cat": -0.5}]


def dataset(tmp_path, **splits: dict) -> ApiFile:
    (tmp_path / "api.json").write_text(json.dumps(splits))
    return ApiFile(tmp_path / "api.json")


@pytest.mark.parametrize(
    "form", [PUBLISHED, {"logprobs": CHAT}, {"logprobs": {"content": CHAT}}, {"logprobs": COMPLETION}]
)
def test_dataset_files(tmp_path, form):
    columns = {name: [None, value] for name, value in form.items()}
    train = {"text": ["a", "b"], "target": ["c", "d"], "prediction": ["", "The cat"], **columns}
    file = dataset(tmp_path, train=train, valid={"text": ["e"], "prediction": ["f"]})
    for _ in range(2):  # it can be read again
        first, second, dev = file.rows("rows")
        assert (first.place, second.reference) == (f"{tmp_path}/api.json: split 'train', row 0", "d")
        assert read_tokens(first.completions[0]).names == []
        assert read_tokens(second.completions[0]).top[1] == {" cat": -0.5}
        assert (dev.split, dev.reference, dev.completions[0].prediction) == ("dev", None, "f")


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"train": {"target": ["a"]}}, "split 'train': column 'text' is missing"),
        ({"test": {"text": ["a"]}}, "split 'test': column 'target' is missing"),
        ({"train_0": {"text": ["a"]}}, "split 'train_0' is none of .*completions of one input are rows of equal"),
        ({"train": {"text": ["a"], "prediction": []}}, "split 'train': columns must be equally long"),
        ({"train": {"text": ["a", None], "prediction": ["b", "c"]}},
         r"split 'train', row 1: Expected `str`, got `null` - at `\$.text`"),
        ({"train": {"text": ["a"], "prediction": [2]}}, r"split 'train', row 0: Expected `str \| null`, got `int`"),
    ],
)  # fmt: skip
def test_dataset_files_that_are_refused(tmp_path, splits, said):
    with pytest.raises(UserError, match=f"api.json: {said}"):
        list(dataset(tmp_path, **splits).rows("rows"))


def test_texts_that_are_bytes_are_refused(tmp_path):
    """An encoder would turn them into base64."""
    path = tmp_path / "api.parquet"
    for columns in ({"text": [b"ab"], "target": ["c"]}, {"text": ["ab"], "target": [b"c"]}):
        parquet.write_table(pyarrow.table(columns), path)
        with pytest.raises(UserError, match=r"row 0: Expected `str.*`, got `bytes` - at `\$.t"):
            list(ApiFile(path).rows("rows"))


def test_nothing_in_a_file_is_executed(tmp_path):
    """The published suite read such columns with `eval`."""
    code = f"__import__('pathlib').Path({str(tmp_path / 'executed')!r}).touch()"
    for row in ({"prediction": "a", "tokens": code, "logprobs": code}, {"response": code}):
        with pytest.raises(UserError):
            read_tokens(one_row(tmp_path, {"text": "x", **row}).completions[0])
    assert not (tmp_path / "executed").exists()
    assert "eval" not in sys.modules["src.api.responses"].__dict__
