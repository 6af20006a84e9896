"""Requests to an assistant: the right call finds the answer, and what goes wrong is told."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from llm_learn.bm25 import words
from llm_learn.tasks.assistant_requests import (
    EPISODES,
    Task,
    calls,
    examples,
    find_note,
    tasks,
    tools_for,
)
from llm_learn.tasks.town_guide import guide


@pytest.mark.parametrize("seed", [0, 1])
def test_the_right_call_finds_the_answer(seed):
    notes = guide(seed)
    for task in tasks(seed, 10):
        if task.tool == "guide":
            note = find_note(**task.arguments, notes=notes)
            assert task.wanted in words(note)
        elif task.tool == "multiply":
            assert str(task.arguments["a"] * task.arguments["b"]) == task.wanted
        assert all(str(value) in task.request for value in task.arguments.values())
        assert all(task.request != episode[0] for episode in EPISODES)


def test_errors_of_tools_are_told_to_the_model():
    for name, arguments in (
        ("guide", {"building": "x", "town": "y"}),
        ("multiply", {"a": "?"}),
    ):
        tool = next(tool for tool in tools_for(guide(0)) if tool.name == name)
        result = tool.invoke(
            {"name": name, "args": arguments, "id": "1", "type": "tool_call"}
        )
        assert result.status == "error" and result.text


def test_a_right_call_may_have_other_capitals():
    task = Task("?", "guide", {"building": "mill", "town": "Ashbury"}, "red", "oak")
    assert task.fits(("guide", {"building": "Mill", "town": "Ashbury"}))
    for call in (
        None,
        ("tell", task.arguments),
        ("guide", {"building": "mill"}),
        ("guide", 3),
    ):
        assert not task.fits(call)


def test_examples_are_the_same_episodes_in_another_order():
    whole, short = examples(0), examples(0, whole=False)
    assert len(whole) == 4 * len(EPISODES) and len(short) == 2 * len(EPISODES)
    assert [type(m) for m in whole[:4]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    asked = [m.text for m in short[::2]]
    assert sorted(asked) == sorted(episode[0] for episode in EPISODES)
    assert asked != [m.text for m in examples(1, whole=False)[::2]]
    assert calls("tell", {"to": "x"}, 3).tool_calls[0]["id"] == "3"


def test_more_requests_than_there_are_texts_are_refused():
    assert len(tasks(0, 24)) == 72
    with pytest.raises(ValueError, match="num_each is 25"):
        tasks(0, 25)
