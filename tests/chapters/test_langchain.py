"""The chapter on LangChain: tokens at the seams, what a trace shows, what counts as a call, and what the server answers."""

import io
import json
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.tools import StructuredTool

SLUG = "applications/langchain"
pytestmark = pytest.mark.usefixtures("no_gradients")


# --- The session ---


def test_what_is_written_has_the_tokens_of_the_whole(chapter):
    session, rough = chapter.GenerationSession(64), chapter.RoughSession(64)
    for one in (session, rough):
        one.begin([3, 4])
        for part in ('{"tool": "', "guide", '"', ", ", '"arguments', '": {}}'):
            one.write(part)
    text = '{"tool": "guide", "arguments": {}}'
    assert session.ids == [3, 4, *chapter.TOKENIZER.encode(text)] != rough.ids
    assert chapter.TOKENIZER.decode(rough.ids[2:]) == text


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


def test_only_calls_count_as_calls(chapter):
    assert chapter.call_in('So: {"tool": "tell", "arguments": {}} ok') == ("tell", {})
    for text in ("", "no", "{", '{"tool": "tell"}', "[1]", "{1}"):
        assert chapter.call_in(text) is None
    task = chapter.Task("?", "tell", {"to": "x"})
    scores = chapter.scored(
        [None, ("dance", {}), ("tell", {}), ("tell", {"to": "x"})], [task] * 4
    )
    assert scores == {"a call": 0.5, "the right tool": 0.5, "right": 0.25}


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
