"""A randomly generated guide to towns, which no model can know from its training."""

import random
from dataclasses import dataclass

from llm_learn.argument_checks import expect

FIRST = """Ash Black Bright Cold Elder Fair Fern Glen Gold Grey Hazel High Kings Long Marsh
North Oak Raven Red Rose Silver Stone Summer Thorn West White Wind Winter Wood""".split()
LAST = """brook bury dale field ford gate ham haven hill land mere mouth port ridge shore
stead ton wick water worth""".split()
BUILDINGS = """bridge castle chapel fountain harbour library lighthouse mill museum palace
school theatre""".split()
MATERIALS = (
    "brick copper glass granite iron limestone marble oak pine sandstone slate".split()
)
COLOURS = "black blue brown green orange pink purple red white yellow".split()


@dataclass(frozen=True)
class Note:
    """What a guide says of one building."""

    kind: str
    place: str
    text: str
    # Questions, and the word or number that answers each.
    facts: tuple[tuple[str, str], ...]


def guide(seed: int, num_notes: int = 30) -> list[Note]:
    """Notes about buildings in a dozen towns, chosen at random.

    Args:
        seed: decides everything.
        num_notes: at most 144, since each building of a town has one.
    """
    expect("0 <= num_notes <= 144", num_notes=num_notes)
    rng = random.Random(seed)
    towns = rng.sample([first + last for first in FIRST for last in LAST], 12)
    pairs = rng.sample([(kind, town) for kind in BUILDINGS for town in towns], num_notes)
    notes = []
    for kind, town in pairs:
        year, visitors = rng.randrange(1500, 1990), rng.randrange(100, 999)
        material, colour = rng.choice(MATERIALS), rng.choice(COLOURS)
        it = f"the {kind} in {town}"
        facts = [
            (f"It was built in {year}.", f"In which year was {it} built?", str(year)),
            (f"It is made of {material}.", f"What is {it} made of?", material),
            (f"Its door is {colour}.", f"Which colour is the door of {it}?", colour),
            (
                f"It has {visitors} visitors a day.",
                f"How many visitors a day does {it} have?",
                str(visitors),
            ),
        ]
        told = rng.sample(facts, 2)
        text = f"The {kind} in {town}: {told[0][0]} {told[1][0]}"
        notes.append(Note(kind, town, text, tuple(fact[1:] for fact in told)))
    return notes
