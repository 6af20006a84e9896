"""Requests to an assistant with a guide, a calculator and messages: tools, examples, and correct answers."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException

from llm_learn.argument_checks import expect
from llm_learn.tasks.town_guide import BUILDINGS, Note, guide


def find_note(building: str, town: str, notes: Sequence[Note]) -> str:
    """The note on a building in a town."""
    for note in notes:
        if (note.kind, note.place.lower()) == (building.lower(), town.lower()):
            return note.text
    raise ToolException("Error: nothing is known of that. Try again.")


def tools_for(notes: Sequence[Note]) -> list[BaseTool]:
    """The tools of an assistant with a guide. Messages are not delivered anywhere."""

    def guide(building: str, town: str) -> str:
        """Find what the guide says of a building in a town."""
        return find_note(building, town, notes)

    def multiply(a: int, b: int) -> str:
        """Multiply two numbers."""
        return str(a * b)

    def tell(to: str, text: str) -> str:
        """Send a message to somebody."""
        return "sent"

    def answer(text: str) -> str:
        """Answer the user."""
        return text

    return [
        # Errors are reported to the model, instead of ending the program.
        StructuredTool.from_function(
            f, handle_tool_error=True, handle_validation_error=True
        )
        for f in (guide, multiply, tell, answer)
    ]


# request, tool, arguments, result, answer
EPISODES = [
    (
        "What colour is the door of the tower in Eastbury?",
        "guide",
        {"building": "tower", "town": "Eastbury"},
        "The tower in Eastbury: It was built in 1702. Its door is grey.",
        "It is grey.",
    ),
    (
        "In which year was the inn in Oldford built?",
        "guide",
        {"building": "inn", "town": "Oldford"},
        "The inn in Oldford: It has 44 visitors a day. It was built in 1811.",
        "It was built in 1811.",
    ),
    (
        "How many visitors a day does the hut in Lowland have?",
        "guide",
        {"building": "hut", "town": "Lowland"},
        "The hut in Lowland: It is made of clay. It has 44 visitors a day.",
        "It has 44 visitors a day.",
    ),
    ("What is 5 times 12?", "multiply", {"a": 5, "b": 12}, "60", "It is 60."),
    ("What is 31 times 8?", "multiply", {"a": 31, "b": 8}, "248", "It is 248."),
    (
        "Tell Jack: The shop is open.",
        "tell",
        {"to": "Jack", "text": "The shop is open."},
        "sent",
        "Jack has your message.",
    ),
    (
        "Tell Mary: We are here.",
        "tell",
        {"to": "Mary", "text": "We are here."},
        "sent",
        "Mary has your message.",
    ),
]


def calls(name: str, arguments: Mapping, number: int) -> AIMessage:
    """The model's turn in which it calls a tool; the number distinguishes calls."""
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": str(number)}])


def examples(seed: int, *, whole: bool = True) -> list[BaseMessage]:
    """The episodes in random order; if not whole, each ends with its call."""
    messages = []
    for number, episode in enumerate(random.Random(seed).sample(EPISODES, len(EPISODES))):
        request, tool, arguments, result, answer = episode
        messages += [HumanMessage(request), calls(tool, arguments, number)]
        if whole:  # the results are named, since no tool has given them
            messages += [
                ToolMessage(result, name="example", tool_call_id=str(number)),
                calls("answer", {"text": answer}, number),
            ]
    return messages


@dataclass(frozen=True)
class Task:
    """A request, and what should be done about it."""

    request: str
    tool: str
    arguments: dict
    wanted: str = ""  # the word or number that a correct answer contains, if any
    other: str = ""  # one that it must not contain

    def fits(self, call: tuple[str, dict] | None) -> bool:
        """Whether it is the correct call; case is ignored."""
        if call is None or not isinstance(call[1], dict):
            return False
        found, wanted = (
            {key: str(value).lower() for key, value in arguments.items()}
            for arguments in (call[1], self.arguments)
        )
        return call[0] == self.tool and found == wanted


USERS = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Karl"]
MESSAGES = [f"The {kind} is {s}." for kind in BUILDINGS for s in ("closed", "on fire")]


def tasks(seed: int, num_each: int) -> list[Task]:
    """So many requests for each tool, at most 24, chosen at random."""
    expect("0 <= num_each <= 24", num_each=num_each)
    rng = random.Random(seed)
    drawn = []
    for note in rng.sample(guide(seed), num_each):
        (question, wanted), (_, other) = rng.sample(note.facts, 2)
        about = {"building": note.kind, "town": note.place}
        drawn.append(Task(question, "guide", about, wanted, other))
    for _ in range(num_each):
        a, b = rng.randrange(11, 100), rng.randrange(3, 100)
        drawn.append(
            Task(f"What is {a} times {b}?", "multiply", {"a": a, "b": b}, str(a * b))
        )
    for text in rng.sample(MESSAGES, num_each):
        to = rng.choice(USERS)
        drawn.append(Task(f"Tell {to}: {text}", "tell", {"to": to, "text": text}))
    return drawn
