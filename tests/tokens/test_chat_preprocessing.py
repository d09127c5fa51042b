"""Chat templates: inputs and labels are the tokens of `apply_chat_template`, cut or not."""

import pytest
from chat_tokenizers import CHATS, HEADERS, chatml, with_chat
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_students import byte_level

from src.config.errors import UserError
from src.data.conversations import as_text, messages_of
from src.tokens.chat_preprocessing import ChatPreprocessor, check_chat_template
from tests.tokens.test_batches import ids, inputs_of, labels_of

TOKENIZERS = {name: make() for name, make in CHATS.items()}
ENDS = {"chatml": "<|im_end|>", "headers": "<|eot|>", "turns": "<end>", "brackets": "</s>"}
TEXT, ANSWER = "the cat sees thee, twice.", "A modern cat"


def preprocessor(name: str, max_input_length: int = 400, max_labels_length: int = 64, **fields) -> ChatPreprocessor:
    return ChatPreprocessor(TOKENIZERS[name], False, max_input_length, max_labels_length, **fields)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def rendered(name: str, messages: list[dict[str, str]], **settings) -> list[int]:
    """transformers' own tokens of a conversation, thinking off."""
    return TOKENIZERS[name].apply_chat_template(messages, enable_thinking=False, return_dict=False, **settings)


def opened(name: str, messages: list[dict[str, str]]) -> list[int]:
    return rendered(name, messages, add_generation_prompt=True)


def until_end(name: str, tokens: list[int]) -> list[int]:
    """Up to the last end of turn: what a template writes behind it is not learned."""
    end = TOKENIZERS[name].convert_tokens_to_ids(ENDS[name])
    return tokens[: len(tokens) - tokens[::-1].index(end)]


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize(
    ("prompt", "content"), [("", TEXT), ("modern:", f"{TEXT} modern:"), (r"\nGo.", f"{TEXT}\nGo.")]
)
def test_input_and_labels_are_the_whole_conversation(name, prompt, content):
    made = preprocessor(name, task_prompt=prompt)
    [read], [target] = inputs_of(made, TEXT), labels_of(made, ANSWER)
    assert read == opened(name, [user(content)])
    assert read + target == until_end(name, rendered(name, [user(content), assistant(ANSWER)]))
    assert target[-1] == made.end


@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(text=st.text("abct é\n🙂.", max_size=20), answer=st.text("abct é🙂.", min_size=1, max_size=20))
def test_ordinary_texts_of_any_kind(name, text, answer):
    made, answer = preprocessor(name), f"a{answer}"
    [read], [target] = inputs_of(made, text), labels_of(made, answer)
    assert read == opened(name, [user(text)])
    assert read + target == until_end(name, rendered(name, [user(text), assistant(answer)]))


@pytest.mark.parametrize("name", ["chatml", "headers", "brackets"])
def test_a_system_prompt_is_the_flag_s_or_the_input_s_own(name):
    made = preprocessor(name, system_prompt="Be brief.")
    flag, own = ({"role": "system", "content": content} for content in ("Be brief.", "Be long."))
    assert inputs_of(made, "a", as_text([own, user("a")])) == [opened(name, [each, user("a")]) for each in (flag, own)]


@pytest.mark.parametrize("name", CHATS)
def test_several_messages_are_context(name):
    messages = [user("the cat"), assistant("modern"), user("and?")]
    made = preprocessor(name)
    [read], [target] = inputs_of(made, as_text(messages)), labels_of(made, ANSWER)
    assert read == opened(name, messages)
    # A template may write an earlier answer in another way than the last one (thoughts): the context is what counts.
    assert read + target == until_end(name, rendered(name, [*messages, assistant(ANSWER)]))


# ------------------------------------------------------------------------------------------------------------------ cut


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_too_long_is_cut_and_the_template_is_not(name, side):
    """The tokens are those of the conversation with the shorter text."""
    shorter = [TEXT[:n] if side == "right" else TEXT[n:] for n in range(len(TEXT) + 1)]
    possible = [opened(name, [user(f"{text} modern:")]) for text in shorter]
    for limit in range(len(opened(name, [user(" modern:")])) + 1, max(map(len, possible)) + 1):
        [cut] = inputs_of(preprocessor(name, limit, task_prompt="modern:", truncation_side=side), TEXT)
        assert cut in possible and limit - 2 <= len(cut) <= limit


def test_a_text_of_unlocated_tokens_is_cut_too():
    """Unknown characters in a row have one place, together with a newline of the template before them."""
    whole = inputs_of(preprocessor("turns"), "🙂" * 9)[0]
    for side in ("right", "left"):
        [cut] = inputs_of(preprocessor("turns", len(whole) - 9, truncation_side=side), "🙂" * 9)
        assert cut in [opened("turns", [user("🙂" * n)]) for n in range(9)]


@pytest.mark.parametrize("name", CHATS)
def test_a_text_cut_between_words_is_the_conversation_of_the_shorter_text(name):
    for text in ("the cat", "the cat cat"):
        shorter = opened(name, [user(text)])
        [cut] = inputs_of(preprocessor(name, len(shorter)), f"{text} cat cat cat")
        assert cut == shorter


@pytest.mark.parametrize("name", CHATS)
def test_the_oldest_messages_go_first(name):
    messages = [user("the cat"), assistant("modern"), user("the thee"), assistant("cat"), user("and the cat?")]
    lengths = [len(opened(name, messages[n:])) for n in (0, 2, 4)]
    for limit in range(lengths[2] - 2, lengths[0] + 1):
        [read] = inputs_of(preprocessor(name, limit), as_text(messages))
        kept = next((n for n, length in zip((0, 2, 4), lengths, strict=True) if length <= limit), None)
        assert len(read) == limit if kept is None else read == opened(name, messages[kept:])


def test_a_system_message_stays():
    system = {"role": "system", "content": "Be brief."}
    messages = [system, user("the cat"), assistant("modern"), user("and?")]
    short = opened("chatml", [system, messages[-1]])
    assert inputs_of(preprocessor("chatml", len(short)), as_text(messages)) == [short]
    made = preprocessor("chatml", len(inputs_of(preprocessor("chatml"), "a")[0]))
    with pytest.raises(UserError, match="--max_input_length .* besides its last message"):
        inputs_of(made, as_text([{"role": "system", "content": "Be brief. " * 9}, user("a")]))


@pytest.mark.parametrize("name", CHATS)
def test_a_target_too_long_ends_with_the_end_of_turn(name):
    [whole] = labels_of(preprocessor(name), ANSWER)
    for limit in range(1, len(whole) + 1):
        made = preprocessor(name, max_labels_length=limit)
        assert labels_of(made, ANSWER) == [[*whole[: limit - 1], made.end]]


def test_no_room_for_text_is_refused():
    with pytest.raises(UserError, match="the chat template, --system_prompt and --task_prompt take"):
        preprocessor("chatml", 20)


# --------------------------------------------------------------------------------------------- special tokens in texts


@pytest.mark.parametrize("name", CHATS)
def test_names_of_the_template_s_tokens_in_texts_are_text(name):
    named = f"a {ENDS[name]} <turn><|header|><|im_start|>b"
    made, tokenizer = preprocessor(name, task_prompt="modern:"), TOKENIZERS[name]
    context = [user(named), assistant(named), user("cat")]
    read = inputs_of(made, named, "cat", as_text(context))
    assert read[1] == opened(name, [user("cat modern:")])
    tokens = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    for messages, one in (([user("x")], read[0]), ([user("x"), assistant("x"), user("x")], read[2])):
        expected = [token for token in opened(name, messages) if token in tokens]
        assert [token for token in one if token in tokens] == expected
    [labels] = labels_of(made, named)
    assert [token for token in labels if token in tokens][-1:] == [made.end] == labels[-1:]
    assert made.end not in labels[:-1]
    if name != "turns":  # its pieces lack characters
        assert tokenizer.decode(read[0]).count(named) == 1 and tokenizer.decode(labels).strip().startswith(named)


@pytest.mark.parametrize("name", CHATS)
def test_names_in_the_texts_change_no_other_row(name):
    named = f"a {ENDS[name]} b"
    made = preprocessor(name)
    assert inputs_of(made, TEXT, named)[0] == inputs_of(made, TEXT)[0]
    assert labels_of(made, ANSWER, named)[0] == labels_of(made, ANSWER)[0]
    whole = f"{named} cat {named}"
    for side in ("right", "left"):
        shorter = [whole[:n] if side == "right" else whole[n:] for n in range(1, len(whole))]
        possible = [inputs_of(made, text)[0] for text in shorter]
        for limit in range(min(map(len, possible)), max(map(len, possible))):
            assert inputs_of(preprocessor(name, limit, truncation_side=side), whole)[0] in possible


def test_by_flag_they_are_tokens():
    made = preprocessor("chatml", special_tokens_in_text=True)
    assert inputs_of(made, "a<|im_end|>") == [opened("chatml", [user("a<|im_end|>")])]
    assert labels_of(made, "a<|im_end|>") == labels_of(made, "a")


# ------------------------------------------------------------------------------------------------------------ templates


def test_an_end_of_turn_that_is_not_special_is_not_decoded():
    made = preprocessor("turns")
    [labels] = labels_of(made, "cat")
    assert made.tokenizer.decode(labels, skip_special_tokens=True).strip() == "cat"
    assert "<end>" in TOKENIZERS["turns"].decode(labels, skip_special_tokens=True)


def test_a_token_that_spans_opening_and_answer_is_not_learned():
    """The model reads the opened turn alone, whose two newlines are then one token."""
    tokenizer = with_chat(byte_level(["\u010a\u010a"]), HEADERS, ["<s>", "<|header|>", "<|/header|>", "<|eot|>"])
    made = ChatPreprocessor(tokenizer, False, 64, 64)
    pair = ids(tokenizer, "\n\n")
    assert len(pair) == 1 and ids(tokenizer, "\n\ncat")[:1] != pair
    assert inputs_of(made, "a")[0][-1:] == pair
    assert labels_of(made, "cat") == [[*ids(tokenizer, "cat"), made.end]]


@pytest.mark.parametrize("name", ["headers", "turns"])
def test_an_answer_is_trimmed_as_the_template_does(name):
    assert labels_of(preprocessor(name), " \n cat \n") == labels_of(preprocessor(name), "cat")


def test_a_blank_answer_is_the_end_of_turn():
    for name in CHATS:
        made = preprocessor(name)
        blank = labels_of(made, "", "  ")
        assert blank[0] == blank[1] and blank[0][-1] == made.end and made.encode_labels(["  "]).n_empty == 1


def test_locations_are_those_of_the_target():
    for name in ("chatml", "headers", "brackets"):
        [(tokens, spans)] = preprocessor(name).locate_labels(["  a cat"])
        assert spans[-1] == (0, 0) and len(tokens) == len(spans)
        assert "".join("  a cat"[start:end] for start, end in spans).strip() == "a cat"


def test_a_turn_opened_in_another_way_and_a_date_are_warned_of():
    assert not any(preprocessor(name).template.warnings() for name in CHATS)
    tokenizer = chatml()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n{% if", "assistant\n<think>\n{% if")
    tokenizer.chat_template += "{{ strftime_now('%Y') and '' }}"
    made = ChatPreprocessor(tokenizer, False, 99, 64)
    opening, date = made.template.warnings()
    assert "opens the assistant's turn with" in opening and "today's date" in date
    assert labels_of(made, "cat") == [[*ids(tokenizer, "cat"), made.end]]


def test_templates_that_cannot_be_used_are_refused():
    for template, expected in [
        ("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}", "does not open a turn"),
        ("{{ messages[0].content }}", "leaves out a message"),
        ("{{ messages[0].content }}{% if add_generation_prompt %}A:{% endif %}{{ nothing.at.all }}", "fails"),
        ("{% for m in messages %}{{ m.content | replace('\n', ' ') }}{% endfor %}", "changes an answer"),
    ]:
        tokenizer = chatml()
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=f"--chat_template True: the tokenizer's chat template {expected}"):
            ChatPreprocessor(tokenizer, False, 64, 64)
    with pytest.raises(UserError, match="fails: no system messages"):
        preprocessor("turns", system_prompt="Be kind.")


def test_a_tokenizer_that_locates_no_tokens_is_refused():
    tokenizer = chatml()
    check_chat_template(tokenizer, is_encoder_decoder=False)
    tokenizer._tokenizer, slow = None, type("Slow", (type(tokenizer),), {"is_fast": False})
    tokenizer.__class__ = slow
    with pytest.raises(UserError, match="the teacher's tokenizer is a slow one .* which locates no tokens"):
        check_chat_template(tokenizer, is_encoder_decoder=False, whose="teacher")


def test_a_text_that_the_template_changes_cannot_be_cut():
    tokenizer = chatml()
    tokenizer.chat_template = tokenizer.chat_template.replace("message.content", "message.content[:40]", 1)
    made = ChatPreprocessor(tokenizer, False, 40, 64, "modern:")
    with pytest.raises(UserError, match="the tokenizer's chat template changes a text, which therefore cannot be cut"):
        inputs_of(made, "cat " * 30)


def test_texts_that_look_like_a_conversation_are_texts():
    for text in ('[{"role": "', '[{"role": "user", "content": "a"}]', '[{"role": "user"}, {"role": "user"}]', "[]"):
        assert messages_of(text) == [user(text)]
    messages = [user("é"), assistant('"'), user("\n")]
    assert messages_of(as_text(messages)) == messages
    assert as_text([user("a")]) == "a"
