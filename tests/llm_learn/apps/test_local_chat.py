"""The chat model: what the session keeps, text in pieces, what is written in a form, and messages."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from llm_learn.apps.local_chat import (
    GenerationSession,
    LocalChat,
    as_chat,
    choose,
    fill,
    integer_value,
    pieces,
    smollm2,
    text_value,
)
from llm_learn.tasks.assistant_requests import tools_for
from llm_learn.tasks.town_guide import guide
from llm_learn.tokenizers import encode_chat

pytestmark = pytest.mark.usefixtures("no_gradients")
TEXTS = st.text(st.sampled_from("ab \n.é好🙂☀"), max_size=12)
TOOLS = tools_for(guide(0))


class FakeSession:
    """A session whose model writes the ids that it was given, then the end."""

    def __init__(self, ids=()):
        _, self.tokenizer = smollm2()
        self.script = [*ids, self.tokenizer.special_ids["<|im_end|>"]]
        self.ids, self.start = [], 0

    def logits(self):
        logits = torch.zeros(len(self.tokenizer.token_bytes))
        logits[self.script[min(len(self.ids), len(self.script) - 1)]] = 1.0
        return logits

    def write(self, text):
        self.ids += self.tokenizer.encode(text)


def test_a_pen_that_went_back_writes_like_a_fresh_one():
    used = GenerationSession(64)
    texts = ["One two three", "One two four five", "One", "One two four six", "Seven"]
    for text in texts:
        ids = smollm2()[1].encode(text)
        known = used.begin(ids)
        assert known < len(ids) and used.caches[0].length == known
        fresh = GenerationSession(64)
        assert fresh.begin(ids) == 0
        torch.testing.assert_close(used.logits(), fresh.logits(), atol=1e-3, rtol=0)
        assert used.ids == ids


def test_a_pen_reads_only_what_is_new():
    session = GenerationSession(32)
    session.begin([5, 6, 7])
    first = session.logits()
    assert session.num_read == 3 and session.logits() is first and session.num_read == 3
    assert session.begin([5, 6, 8, 9]) == 2
    session.logits()
    assert session.num_read == 5
    assert session.begin([5, 6, 8, 9]) == 3, "the last id is read again"


@pytest.mark.parametrize(("count", "room"), [(0, 0), (9, 0), (5, 4)])
def test_a_pen_refuses_what_does_not_fit(count, room):
    with pytest.raises(ValueError, match=f"ids has {count} entries"):
        GenerationSession(8).begin([1] * count, room)


@settings(max_examples=60)
@given(TEXTS, st.lists(st.text("ab é", min_size=1, max_size=3), max_size=2))
def test_pieces_are_whole_characters_and_end_before_a_stop(text, stop):
    session = FakeSession(smollm2()[1].encode(text))
    parts = list(pieces(session, 200, stop))
    ends = [text.index(s) for s in stop if s in text]
    assert "".join(parts) == text[: min(ends, default=len(text))]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)


def test_pieces_come_as_soon_as_they_can():
    ids = smollm2()[1].encode("One two three")
    assert list(pieces(FakeSession(ids), 9)) == ["One", " two", " three", ""]
    held = list(pieces(FakeSession(ids), 9, [" two three four"]))
    assert held == ["One", " two three"], "what may begin a stop is held back"
    assert list(pieces(FakeSession(ids), 2)) == ["One", " two", ""]
    two_in_one = list(pieces(FakeSession(ids), 9, ["wo", " t"]))
    assert "".join(two_in_one) == "One", "of two stops in one token, the first counts"


def test_a_choice_is_the_likeliest_way_through_the_options():
    options = ["tell", "tell me", "multiply", "guide"]
    for option in options:
        session = FakeSession(smollm2()[1].encode(option + '"'))
        assert choose(session, options) == option
        assert session.ids == smollm2()[1].encode(option + '"')
    assert choose(FakeSession(), ["only"]) == "only"


@pytest.mark.parametrize(
    ("text", "limit", "value"),
    [
        ('Anna"}', 9, "Anna"),
        ("It is.\nMore", 9, "It is."),
        ("a b c d", 2, "a b"),
        ('"', 9, ""),
        ("C:\\x", 9, "C:"),
    ],
)
def test_a_text_ends_at_a_quote_a_line_or_the_limit(text, limit, value):
    session = FakeSession(smollm2()[1].encode(text))
    assert text_value(session, limit) == value
    assert smollm2()[1].decode(session.ids) == value + '"'


def test_a_number_has_at_least_one_digit_and_ends_with_the_digits():
    for text, value in (("41}", 41), ("007", 7), ("12345678901", 123456789)):
        session = FakeSession(smollm2()[1].encode(text))
        assert integer_value(session) == value
    assert integer_value(FakeSession()) in range(10)


def test_a_form_is_filled_whatever_the_model_wants():
    schema = {
        "type": "object",
        "properties": {
            "who": {"type": "string"},
            "kind": {"enum": ["a", "b"]},
            "inner": {
                "type": "object",
                "properties": {"n": {"type": "integer"}},
                "required": ["n"],
            },
            "more": {"type": "array"},
            "none": {"type": "object", "properties": {}},
        },
        "required": ["who", "kind", "inner", "none"],
    }
    session = GenerationSession(128)
    session.begin(encode_chat(smollm2()[1], [{"role": "user", "content": "Sing!"}]))
    value = fill(session, schema, 5)
    assert list(value) == ["who", "kind", "inner", "none"] and value["none"] == {}
    assert value["kind"] in "ab" and isinstance(value["inner"]["n"], int)
    assert json.loads(smollm2()[1].decode(session.ids[session.start :])) == value
    with pytest.raises(ValueError, match="schema has type 'array'"):
        fill(session, {"type": "array"})


def test_messages_become_the_roles_that_the_model_knows():
    call = {"name": "multiply", "args": {"a": 2, "b": 3}, "id": "1"}
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("2 times 3?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("6", tool_call_id="1"),
        AIMessage("It is 6."),
    ]
    tools = [convert_to_openai_tool(tool) for tool in TOOLS]
    first, *chat = as_chat(messages, tools)
    assert first["role"] == "system" and "tell: Send a message" in first["content"]
    assert [turn["role"] for turn in chat] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert chat[2]["content"] == '{"tool": "multiply", "arguments": {"a": 2, "b": 3}}'
    assert chat[3]["content"] == "Result: 6"
    assert as_chat(messages, [])[0]["content"] == "Be brief."


def test_the_model_calls_what_it_may_and_answers_a_result():
    model = LocalChat(max_tokens=3)
    for choice in ("tell", ["tell"]):
        (call,) = model.bind_tools(TOOLS, tool_choice=choice).invoke("Hi").tool_calls
        assert call["name"] == "tell" and {*call["args"]} == {"to", "text"}
    bound = model.bind_tools(TOOLS)
    asked = [HumanMessage("What is 2 times 3?")]
    reply = bound.invoke(asked)
    assert len(reply.tool_calls) == 1
    result = ToolMessage("6", tool_call_id=reply.tool_calls[0]["id"])
    answer = bound.invoke([*asked, reply, result])
    assert answer.tool_calls == [] and answer.usage_metadata["output_tokens"] <= 3
    for choice in ("sing", ["tell", "sing"], [], ["any"], {"type": "any"}):
        with pytest.raises(ValueError, match="tool_choice is"):
            model.bind_tools(TOOLS, tool_choice=choice)


def test_threads_do_not_share_a_pen():
    model = LocalChat(max_tokens=4)
    questions = ["What is ice?", "Who are you?", "Where is Rome?"]
    alone = [model.invoke(question).text for question in questions]
    assert [m.text for m in model.batch(questions, {"max_concurrency": 3})] == alone
