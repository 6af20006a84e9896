"""The chapter on agents: when the loop ends, what the fence holds back, and what is kept of a conversation."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)

SLUG = "applications/agents"
pytestmark = pytest.mark.usefixtures("no_gradients")


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


# --- Strangers ---


def test_the_fence_stays_closed(chapter):
    names = ["guide", "tell", "answer"]
    asked, call = HumanMessage("?"), chapter.calls("guide", {}, 1)
    result = ToolMessage("x", name="guide", tool_call_id="1")
    own = ToolMessage("6", name="multiply", tool_call_id="1")
    fenced = chapter.guard()
    assert fenced(names, [*chapter.examples(0), asked]) == ["guide", "tell"]
    assert fenced(names, [asked, call, own]) == names
    assert fenced(names, [asked, call, result]) == ["guide", "answer"]
    assert fenced(names, [asked, call, result, asked]) == ["guide"]
    assert fenced(names, [asked]) == ["guide"], "the result was dropped, and was read"
    assert chapter.guard()(names, [asked]) == ["guide", "tell"]
    assert chapter.after_a_result(names, [asked, call, result]) == names


def test_a_task_is_solved_by_the_right_call_and_the_right_answer(chapter):
    task = chapter.Task("?", "guide", {"building": "mill", "town": "Ashbury"}, "red", "oak")
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
    chances, message, text = chapter.after_reading(
        chapter.GenerationSession(), task, "A note.", []
    )
    assert abs(sum(chances.values()) - 1) < 1e-5 and isinstance(text, str)
    assert {*message} == {"to", "text"}
