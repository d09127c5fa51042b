"""The strings of tokens that a server names by ids, and answers that are refused, repeated or put in order."""

import json

import pytest

from src.api.client import RefusedError, TroubleError
from src.api.completions import Spelling, read_answer


class Table:
    """The bytes of five tokens: EOS, two spellings of a word, a character and the first byte of one."""

    special = frozenset({0})
    pieces = (b"</s>", b" cat", b" cat", "é".encode(), b"\xc3")

    def of(self, ids):
        return [self.pieces[i] for i in ids]


def test_ids_become_strings_without_special_tokens_and_cut_characters():
    tops = [{"token_id:1": -3.0, "token_id:2": -1.00000049, "token_id:0": -9999.0}, {"token_id:3": -0.5}, {}, {}]
    named = {"tokens": ["token_id:1", "token_id:3", "token_id:0", "token_id:4"], "token_logprobs": [-3.0, -0.5, -1, -2]}
    text, spelled = Spelling(Table()).of(named | {"top_logprobs": tops})
    assert text == "caté"
    assert spelled == {
        "tokens": [" cat", "é"],
        "token_logprobs": [-3.0, -0.5],
        "top_logprobs": [{" cat": -1.0, "</s>": -9999.0}, {"é": -0.5}],
    }


def answer(**fields) -> bytes:
    return json.dumps(
        {"choices": [{"text": "b", "index": 1, "finish_reason": "stop"}, {"text": "a"} | fields]}
    ).encode()


def test_choices_are_put_in_order():
    read = read_answer(answer(finish_reason="max_tokens"), needs_logprobs=False)
    assert [choice.text for choice in read.choices] == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (answer(), TroubleError, "finish_reason None"),
        (answer(finish_reason="content_filter"), RefusedError, "content filter"),
        (answer(finish_reason="stop"), TroubleError, "without log-probabilities"),
        (answer(finish_reason="stop")[:40], TroubleError, "cannot be read"),
        (b'{"choices": []}', TroubleError, "without completions"),
    ],
)
def test_answers_that_cannot_be_used(data, error, said):
    with pytest.raises(error, match=said):
        read_answer(data, needs_logprobs=True)
