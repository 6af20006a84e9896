"""A corpus of pages whose truth is known: scenes of Shakespeare's plays, with copies and rubbish among them."""

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable

from llm_learn.argument_checks import expect
from llm_learn.data import shakespeare_plays

EDITIONS = (0.02, 0.05, 0.1, 0.2)  # fractions of the words that are changed
MENU = "home plays sonnets poems quotations biography timeline glossary search shop contact"
FOOTER = "all texts on this site are in the public domain please do not hotlink our images"


def another_edition(text: str, share: float, rng: random.Random) -> str:
    """A text with a fraction of its words replaced by others of them."""
    expect("0 <= share <= 1", share=share)
    parts = re.split(r"(\s+)", text)  # words, and between them what separates them
    for i in range(0, len(parts), 2):
        if rng.random() < share:
            parts[i] = rng.choice(parts[::2])
    return "".join(parts)


def play_scenes() -> dict[str, str]:
    """The scenes of all plays with 200 characters or more, by play and number."""
    return {
        f"{name}/{number}": scene.strip()
        for name, text in shakespeare_plays().items()
        for number, scene in enumerate(re.split(r"(?m)^#+ .*\n", text))
        if len(scene) >= 200
    }


def untidy(text: str) -> str:
    """A text that looks the same: other line ends and spaces; é as two characters, e and an accent."""
    text = unicodedata.normalize("NFD", text)
    return text.replace("\n", " \r\n").replace(", ", ",\u00a0 ")


def framed(text: str) -> str:
    """A text inside the menus of a site."""
    return "\n".join((MENU, text, MENU, FOOTER))


def first_half(text: str) -> str:
    """The first half of a text's lines."""
    lines = text.split("\n")
    return "\n".join(lines[: len(lines) // 2])


# By kind, what makes a copy of a text.
COPIES = {
    "untidy": lambda text, rng: untidy(text),
    "framed": lambda text, rng: framed(text),
    "half": lambda text, rng: first_half(text),
} | {
    f"{share:.0%} changed": lambda text, rng, share=share: another_edition(text, share, rng)
    for share in EDITIONS
}
# By kind, what makes rubbish of a text.
RUBBISH: dict[str, Callable[[str], str]] = {
    "one line again and again": lambda text: "\n".join(
        [max(text.split("\n"), key=len)] * 60
    ),
    "numbers": lambda text: "\n".join(
        " | ".join(str(len(word)) for word in line.split()) for line in text.split("\n")
    ),
    "file names": lambda text: "\n".join(
        hashlib.sha256(line.encode()).hexdigest() + ".bin" for line in text.split("\n")
    ),
    "teasers": lambda text: "\n".join(line[:30] + " ..." for line in text.split("\n")),
}


def page_pile(rng: random.Random) -> list[dict[str, str]]:
    """All scenes, and 40 copies of each kind and 20 pages of each kind of rubbish, made from scenes, in random order.

    Args:
        rng: decides which scenes are copied, what is changed, and the order.

    Returns:
        Pages with `id`, `play` and `text`; `kind` and `of` say what a page is and what it was made from.
    """
    scenes = play_scenes()
    pile = [
        {"id": key, "play": key.split("/")[0], "kind": "scene", "of": key, "text": text}
        for key, text in scenes.items()
    ]
    long_enough = sorted(key for key, text in scenes.items() if len(text.split()) >= 100)
    chosen = iter(rng.sample(long_enough, 40 * len(COPIES) + 20 * len(RUBBISH)))
    for kind, copy in COPIES.items():
        for key in (next(chosen) for _ in range(40)):
            page = {"id": f"{key} ({kind})", "play": key.split("/")[0], "kind": kind}
            pile.append(page | {"of": key, "text": copy(scenes[key], rng)})
    for kind, spoil in RUBBISH.items():
        for key in (next(chosen) for _ in range(20)):
            page = {"id": f"{key} ({kind})", "play": key.split("/")[0], "kind": kind}
            pile.append(page | {"of": page["id"], "text": spoil(scenes[key])})
    rng.shuffle(pile)
    return pile
