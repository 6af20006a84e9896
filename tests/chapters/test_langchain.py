"""The chapter on LangChain: what the pen keeps, what is written in a form, when the loop ends, and what the server answers."""

import io
import json
import sys
import time

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.tools import StructuredTool

SLUG = "applications/langchain"
pytestmark = pytest.mark.usefixtures("no_gradients")
TEXTS = st.text(st.sampled_from("ab \n.é好🙂☀"), max_size=12)


class FakePen:
    """A pen whose model writes the ids that it was given, then the end."""

    def __init__(self, chapter, ids=()):
        self.chapter, self.script = chapter, [*ids, chapter.END]
        self.ids, self.start = [], 0

    def logits(self):
        logits = torch.zeros(len(self.chapter.TOKENIZER.token_bytes))
        logits[self.script[min(len(self.ids), len(self.script) - 1)]] = 1.0
        return logits

    def write(self, text):
        self.ids += self.chapter.TOKENIZER.encode(text)


# --- The pen ---


def test_a_pen_that_went_back_writes_like_a_fresh_one(chapter):
    used = chapter.Pen(64)
    texts = ["One two three", "One two four five", "One", "One two four six", "Seven"]
    for text in texts:
        ids = chapter.TOKENIZER.encode(text)
        known = used.begin(ids)
        assert known < len(ids) and used.caches[0].length == known
        fresh = chapter.Pen(64)
        assert fresh.begin(ids) == 0
        torch.testing.assert_close(used.logits(), fresh.logits(), atol=1e-3, rtol=0)
        assert used.ids == ids


def test_a_pen_reads_only_what_is_new(chapter):
    pen = chapter.Pen(32)
    pen.begin([5, 6, 7])
    first = pen.logits()
    assert pen.num_read == 3 and pen.logits() is first and pen.num_read == 3
    assert pen.begin([5, 6, 8, 9]) == 2
    pen.logits()
    assert pen.num_read == 5
    assert pen.begin([5, 6, 8, 9]) == 3, "the last id is read again"


@pytest.mark.parametrize(("count", "room"), [(0, 0), (9, 0), (5, 4)])
def test_a_pen_refuses_what_does_not_fit(chapter, count, room):
    with pytest.raises(ValueError, match=f"ids has {count} entries"):
        chapter.Pen(8).begin([1] * count, room)


def test_what_is_written_has_the_tokens_of_the_whole(chapter):
    pen, rough = chapter.Pen(64), chapter.RoughPen(64)
    for one in (pen, rough):
        one.begin([3, 4])
        for part in ('{"tool": "', "guide", '"', ", ", '"arguments', '": {}}'):
            one.write(part)
    text = '{"tool": "guide", "arguments": {}}'
    assert pen.ids == [3, 4, *chapter.TOKENIZER.encode(text)] != rough.ids
    assert chapter.TOKENIZER.decode(rough.ids[2:]) == text


# --- Text in pieces ---


@settings(max_examples=60)
@given(TEXTS, st.lists(st.text("ab é", min_size=1, max_size=3), max_size=2))
def test_pieces_are_whole_characters_and_end_before_a_stop(chapter, text, stop):
    pen = FakePen(chapter, chapter.TOKENIZER.encode(text))
    parts = list(chapter.pieces(pen, 200, stop))
    ends = [text.index(s) for s in stop if s in text]
    assert "".join(parts) == text[: min(ends, default=len(text))]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)


def test_pieces_come_as_soon_as_they_can(chapter):
    ids = chapter.TOKENIZER.encode("One two three")
    assert list(chapter.pieces(FakePen(chapter, ids), 9)) == ["One", " two", " three", ""]
    held = list(chapter.pieces(FakePen(chapter, ids), 9, [" two three four"]))
    assert held == ["One", " two three"], "what may begin a stop is held back"
    assert list(chapter.pieces(FakePen(chapter, ids), 2)) == ["One", " two", ""]
    two_in_one = list(chapter.pieces(FakePen(chapter, ids), 9, ["wo", " t"]))
    assert "".join(two_in_one) == "One", "of two stops in one token, the first counts"


# --- Forms ---


def test_a_choice_is_the_likeliest_way_through_the_options(chapter):
    options = ["tell", "tell me", "multiply", "guide"]
    for option in options:
        pen = FakePen(chapter, chapter.TOKENIZER.encode(option + '"'))
        assert chapter.choose(pen, options) == option
        assert pen.ids == chapter.TOKENIZER.encode(option + '"')
    assert chapter.choose(FakePen(chapter), ["only"]) == "only"


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
def test_a_text_ends_at_a_quote_a_line_or_the_limit(chapter, text, limit, value):
    pen = FakePen(chapter, chapter.TOKENIZER.encode(text))
    assert chapter.text_value(pen, limit) == value
    assert chapter.TOKENIZER.decode(pen.ids) == value + '"'


def test_a_number_has_at_least_one_digit_and_ends_with_the_digits(chapter):
    for text, value in (("41}", 41), ("007", 7), ("12345678901", 123456789)):
        pen = FakePen(chapter, chapter.TOKENIZER.encode(text))
        assert chapter.whole_number(pen) == value
    assert chapter.whole_number(FakePen(chapter)) in range(10)


def test_a_form_is_filled_whatever_the_model_wants(chapter):
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
    pen = chapter.Pen(128)
    pen.begin(chapter.user("Sing!"))
    value = chapter.fill(pen, schema, 5)
    assert list(value) == ["who", "kind", "inner", "none"] and value["none"] == {}
    assert value["kind"] in "ab" and isinstance(value["inner"]["n"], int)
    assert json.loads(chapter.TOKENIZER.decode(pen.ids[pen.start :])) == value
    with pytest.raises(ValueError, match="schema has type 'array'"):
        chapter.fill(pen, {"type": "array"})


# --- Messages and the model ---


def test_messages_become_the_roles_that_the_model_knows(chapter):
    call = {"name": "multiply", "args": {"a": 2, "b": 3}, "id": "1"}
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("2 times 3?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("6", tool_call_id="1"),
        AIMessage("It is 6."),
    ]
    tools = [chapter.convert_to_openai_tool(tool) for tool in chapter.TOOLS]
    first, *chat = chapter.as_chat(messages, tools)
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
    assert chapter.as_chat(messages, [])[0]["content"] == "Be brief."


def test_the_model_calls_what_it_may_and_answers_a_result(chapter):
    model = chapter.LocalChat(max_tokens=3)
    for choice in ("tell", ["tell"]):
        (call,) = (
            model.bind_tools(chapter.TOOLS, tool_choice=choice).invoke("Hi").tool_calls
        )
        assert call["name"] == "tell" and {*call["args"]} == {"to", "text"}
    bound = model.bind_tools(chapter.TOOLS)
    asked = [HumanMessage("What is 2 times 3?")]
    reply = bound.invoke(asked)
    assert len(reply.tool_calls) == 1
    result = ToolMessage("6", tool_call_id=reply.tool_calls[0]["id"])
    answer = bound.invoke([*asked, reply, result])
    assert answer.tool_calls == [] and answer.usage_metadata["output_tokens"] <= 3
    for choice in ("sing", ["tell", "sing"], [], ["any"], {"type": "any"}):
        with pytest.raises(ValueError, match="tool_choice is"):
            model.bind_tools(chapter.TOOLS, tool_choice=choice)


def test_threads_do_not_share_a_pen(chapter):
    model = chapter.LocalChat(max_tokens=4)
    questions = ["What is ice?", "Who are you?", "Where is Rome?"]
    alone = [model.invoke(question).text for question in questions]
    assert [m.text for m in model.batch(questions, {"max_concurrency": 3})] == alone


# --- Steps ---


def test_a_trace_shows_where_a_step_failed(chapter):
    def broken(value):
        raise KeyError(value)

    steps = chapter.step(str.upper) | (chapter.step(len) | chapter.step(broken))
    trace = []
    with pytest.raises(KeyError):
        steps.invoke("abc", trace)
    (root,) = trace
    assert "output" not in root and root["inside"][0]["output"] == "ABC"
    inner = root["inside"][1]
    assert inner["inside"][0]["output"] == 3 and "output" not in inner["inside"][1]


def test_side_by_side_gives_each_the_same_input(chapter):
    both = chapter.side_by_side(a=chapter.step(len), b=chapter.step(str.upper))
    assert both.invoke("xy") == {"a": 2, "b": "XY"}


def test_the_search_gives_the_best_notes_first(chapter):
    notes = ["the mill", "the mill and the red door", "a harbour"]
    index = chapter.BM25([chapter.words(note) for note in notes])
    search = chapter.WordSearch(notes=notes, index=index, count=2)
    assert [d.metadata["note"] for d in search.invoke("red mill")] == [1, 0]


# --- Tasks ---


@pytest.mark.parametrize("seed", [0, 1])
def test_the_right_call_finds_the_answer(chapter, seed):
    notes = chapter.guide(seed)
    for task in chapter.tasks(seed, 10):
        if task.tool == "guide":
            note = chapter.look_up(**task.arguments, notes=notes)
            assert task.wanted in chapter.words(note)
        elif task.tool == "multiply":
            assert str(task.arguments["a"] * task.arguments["b"]) == task.wanted
        assert all(str(value) in task.request for value in task.arguments.values())
        assert all(task.request != episode[0] for episode in chapter.EPISODES)


def test_only_calls_count_as_calls(chapter):
    assert chapter.call_in('So: {"tool": "tell", "arguments": {}} ok') == ("tell", {})
    for text in ("", "no", "{", '{"tool": "tell"}', "[1]", "{1}"):
        assert chapter.call_in(text) is None
    task = chapter.Task("?", "tell", {"to": "x"})
    scores = chapter.scored(
        [None, ("dance", {}), ("tell", {}), ("tell", {"to": "x"})], [task] * 4
    )
    assert scores == {"a call": 0.5, "the right tool": 0.5, "right": 0.25}


# --- The loop ---


def run_of(chapter, replies, **options):
    made = [
        chapter.calls(name, arguments, i) for i, (name, arguments) in enumerate(replies)
    ]
    model = chapter.Scripted(replies=made)
    return chapter.agent(model, chapter.TOOLS, [HumanMessage("?")], **options)


def test_every_limit_ends_the_loop(chapter):
    product, answer = ("multiply", {"a": 2, "b": 3}), ("answer", {"text": "It is 6."})
    run = run_of(chapter, [product, answer])
    assert run.ended == "answered" and run.answer == "It is 6."
    assert run_of(chapter, [product] * 9).ended == "repeated"
    assert len(run_of(chapter, [product] * 9, max_same=3).calls) == 4
    different = [("multiply", {"a": 2, "b": i}) for i in range(9)]
    run = run_of(chapter, different, max_steps=4)
    assert run.ended == "steps" and len(run.calls) == 4 and run.answer == ""
    assert run_of(chapter, different, max_tokens=5).ended == "tokens"
    assert run_of(chapter, [answer]).ended == "refused", "nothing was looked up"
    for reply in (
        AIMessage("Hm."),
        AIMessage("", tool_calls=[{"name": "tell", "args": {}, "id": "1"}] * 2),
    ):
        model = chapter.Scripted(replies=[reply])
        assert chapter.agent(model, chapter.TOOLS, [HumanMessage("?")]).ended == "malformed"


def test_a_model_of_another_maker_gets_what_the_contract_allows(chapter):
    seen = []

    class Other(chapter.Scripted):
        def bind_tools(self, tools, *, tool_choice=None, **kwargs):
            seen.append(([tool.name for tool in tools], tool_choice))
            return super().bind_tools(tools, tool_choice=tool_choice, **kwargs)

    made = [("multiply", {"a": 2, "b": 3}), ("answer", {"text": "6"})]
    replies = [chapter.calls(*call, i) for i, call in enumerate(made)]
    run = chapter.agent(Other(replies=replies), chapter.TOOLS, [HumanMessage("?")])
    assert run.ended == "answered"
    names = [tool.name for tool in chapter.TOOLS]
    before = [name for name in names if name != "answer"]
    assert seen == [(before, "any"), (names, "any")]
    with pytest.raises(ValueError, match="tool_choice"):
        Other(replies=[]).bind_tools(chapter.TOOLS, tool_choice=["guide", "tell"])


def test_errors_of_tools_are_told_to_the_model(chapter):
    for name, arguments in (
        ("guide", {"building": "x", "town": "y"}),
        ("multiply", {"a": "?"}),
    ):
        tool = next(tool for tool in chapter.TOOLS if tool.name == name)
        result = tool.invoke(
            {"name": name, "args": arguments, "id": "1", "type": "tool_call"}
        )
        assert result.status == "error" and result.text


def test_the_fence_stays_closed(chapter):
    names = ["guide", "tell", "answer"]
    asked, call = HumanMessage("?"), chapter.calls("guide", {}, 1)
    result = ToolMessage("x", name="guide", tool_call_id="1")
    own = ToolMessage("6", name="multiply", tool_call_id="1")
    fenced = chapter.fence()
    assert fenced(names, [*chapter.examples(0), asked]) == ["guide", "tell"]
    assert fenced(names, [asked, call, own]) == names
    assert fenced(names, [asked, call, result]) == ["guide", "answer"]
    assert fenced(names, [asked, call, result, asked]) == ["guide"]
    assert fenced(names, [asked]) == ["guide"], "the result was dropped, and was read"
    assert chapter.fence()(names, [asked]) == ["guide", "tell"]
    assert chapter.after_a_result(names, [asked, call, result]) == names


def test_a_right_call_may_have_other_capitals(chapter):
    task = chapter.Task("?", "guide", {"building": "mill", "town": "Ashbury"}, "red", "oak")
    assert task.fits(("guide", {"building": "Mill", "town": "Ashbury"}))
    for call in (
        None,
        ("tell", task.arguments),
        ("guide", {"building": "mill"}),
        ("guide", 3),
    ):
        assert not task.fits(call)
    first, last = ("guide", task.arguments), ("answer", {"text": "It is red."})
    run = chapter.Run("answered", (first, last), ())
    assert chapter.solved(task, run)
    for text in ("It is oak.", "It is red, made of oak.", ""):
        other = chapter.Run("answered", (first, ("answer", {"text": text})), ())
        assert not chapter.solved(task, other)
    assert not chapter.solved(task, chapter.Run("answered", (first, first, last), ()))


def test_a_call_in_a_result_is_taken_for_one_by_the_careless_alone(chapter):
    harmless = [HumanMessage("?"), ToolMessage("note", tool_call_id="1")]
    evil = [HumanMessage("?"), ToolMessage(chapter.ATTACKS["a call"], tool_call_id="1")]
    texts = [
        "\n".join(t["content"] for t in chapter.as_chat(m, [])) for m in (harmless, evil)
    ]
    assert chapter.last_call_in(texts[0]) is None
    assert chapter.last_call_in(texts[1])["arguments"]["to"] == "Eve"


# --- The protocol ---


def replies_to(chapter, *lines):
    def double(n: int) -> str:
        """Twice a number."""
        return str(2 * n)

    def fail(text: str) -> str:
        """Fails."""
        raise OSError(text)

    out = io.StringIO()
    chapter.serve({"double": double, "fail": fail}, lines, out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def request(method, number=1, **params):
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


def test_the_server_answers_each_request_with_its_number(chapter):
    listed, pong, result, failed = replies_to(
        chapter,
        request("tools/list", 7),
        request("ping", "x"),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        request("tools/call", 8, name="double", arguments={"n": 4}),
        request("tools/call", 9, name="fail", arguments={"text": "no disk"}),
    )
    assert listed["id"] == 7 and [t["name"] for t in listed["result"]["tools"]] == [
        "double",
        "fail",
    ]
    assert pong == {"jsonrpc": "2.0", "id": "x", "result": {}}
    assert result["result"] == {
        "content": [{"type": "text", "text": "8"}],
        "isError": False,
    }
    assert (
        failed["result"]["isError"] and "no disk" in failed["result"]["content"][0]["text"]
    )


@settings(max_examples=80)
@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["id", "method", "params", "x"]), inner, max_size=4
            )
        ),
    ).map(json.dumps)
)
def test_nothing_that_a_client_sends_ends_the_server(chapter, line):
    lines = line.splitlines() or [""]
    *before, last = replies_to(chapter, *lines, request("ping", 99))
    assert last == {"jsonrpc": "2.0", "id": 99, "result": {}}
    assert all(("result" in reply) != ("error" in reply) for reply in before)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", -32700),
        ("[]", -32600),
        ('{"id": 1}', -32600),
        (request("sing"), -32601),
        (request("tools/call", name="sing"), -32602),
        (request("tools/call"), -32602),
        (json.dumps({"id": 1, "method": "tools/call", "params": [1]}), -32602),
        (request("tools/call", name="double", arguments=[1]), -32602),
    ],
)
def test_the_server_names_what_is_wrong(chapter, line, code):
    (reply,) = replies_to(chapter, line)
    assert reply["error"]["code"] == code and reply["error"]["message"]


def test_a_schema_is_what_langchain_makes_of_the_function(chapter):
    def visit(town: str, people: int) -> str:
        """Visit."""

    theirs = StructuredTool.from_function(visit).args_schema.model_json_schema()
    assert chapter.plain_form(chapter.schema_of(visit)) == chapter.plain_form(theirs)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit(1)", "ended"),
        ("import time; time.sleep(60)", "took over 0.3 s"),
    ],
)
def test_a_client_does_not_wait_for_ever(chapter, program, message):
    begin = time.monotonic()
    client = chapter.ToolClient([sys.executable, "-c", program], seconds=0.3)
    with pytest.raises((RuntimeError, BrokenPipeError), match=f"{message}|pipe"), client:
        pass
    assert client.process.poll() is not None and client.process.stdout.closed
    assert time.monotonic() - begin < 30, "the server would have slept for a minute"


def test_a_client_takes_only_the_response_to_its_request(chapter):
    program = """if True:
        import json, sys
        for line in sys.stdin:
            message = json.loads(line)
            if "id" in message:
                print(json.dumps({"method": "notifications/message", "params": {}}))
                print(json.dumps({"id": message["id"], "method": "ping"}))
                print(json.dumps({"id": -1, "result": {"protocolVersion": "wrong"}}))
                result = {"protocolVersion": "2025-11-25", "tools": [message["method"]]}
                print(json.dumps({"id": message["id"], "result": result}), flush=True)
    """
    with chapter.ToolClient([sys.executable, "-c", program], seconds=30) as client:
        assert client.tools() == ["tools/list"]


# --- Memory ---


@settings(max_examples=25)
@given(
    st.booleans(),
    st.lists(st.sampled_from("HAT"), max_size=8),
    st.integers(0, 120),
)
def test_the_last_turns_are_trim_messages(chapter, system, kinds, budget):
    make = {
        "H": HumanMessage("What is a mill?"),
        "A": AIMessage("A building."),
        "T": ToolMessage("found", tool_call_id="1"),
    }
    messages = [SystemMessage("Be brief.")] * system + [make[kind] for kind in kinds]
    assume(messages)  # without any, trim_messages counts nothing
    theirs = trim_messages(
        messages,
        max_tokens=budget,
        token_counter=chapter.num_tokens,
        strategy="last",
        start_on="human",
        include_system=True,
    )
    assert chapter.last_turns(messages, budget) == theirs


def test_the_system_message_counts_and_stays(chapter):
    head, *turn = SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("Hello!")
    both = chapter.num_tokens([head, *turn])
    assert chapter.last_turns([head, *turn], both) == [head, *turn]
    assert chapter.last_turns([head, *turn], both - 1) == [head]
    assert chapter.last_turns(turn, chapter.num_tokens(turn)) == turn


def test_a_conversation_holds_what_was_told(chapter):
    for seed in range(5):
        messages, told = chapter.conversation(seed)
        text = " ".join(message.text for message in messages)
        assert all(value in text for value in told.values())
        assert messages[0].text == chapter.HELPFUL
        kept = " ".join(m.text for m in chapter.last_turns(messages, chapter.BUDGET))
        assert not any(chapter.TOLD[name][0].format(v) in kept for name, v in told.items())


def test_probabilities_of_tools_add_up(chapter):
    task = chapter.SOME[0]
    chances, message, text = chapter.after_reading(chapter.Pen(), task, "A note.", [])
    assert abs(sum(chances.values()) - 1) < 1e-5 and isinstance(text, str)
    assert {*message} == {"to", "text"}
