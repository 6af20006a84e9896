"""The pile of scenes has what was planted, and nothing else."""

import random
from collections import Counter

import pytest

from llm_learn.near_duplicates import normalise
from llm_learn.tasks.page_pile import (
    COPIES,
    EDITIONS,
    FOOTER,
    MENU,
    RUBBISH,
    another_edition,
    first_half,
    framed,
    page_pile,
    play_scenes,
    untidy,
)


def test_another_edition_has_other_words_and_the_same_spaces():
    text = "one two  three\nfour five " * 200
    edition = another_edition(text, 0.1, random.Random(0))
    changed = [a != b for a, b in zip(text.split(), edition.split(), strict=True)]
    assert 0.04 < sum(changed) / len(changed) < 0.12  # one draw in five gives the same word
    assert set(edition.split()) == set(text.split())
    assert another_edition(text, 0, random.Random(0)) == text
    with pytest.raises(ValueError, match="0 <= share <= 1"):
        another_edition(text, 10, random.Random(0))


def test_copies():
    text = "É, first\nsecond\nthird\nfourth"
    assert untidy(text) != text and normalise(untidy(text)) == text
    assert framed(text).split("\n") == [MENU, *text.split("\n"), MENU, FOOTER]
    assert first_half(text) == "É, first\nsecond"


def test_the_pile_has_what_was_planted():
    pile, scenes = page_pile(random.Random(0)), play_scenes()
    kinds = Counter(page["kind"] for page in pile)
    expected = (
        {"scene": len(scenes)} | dict.fromkeys(COPIES, 40) | dict.fromkeys(RUBBISH, 20)
    )
    assert kinds == expected and len(COPIES) == 3 + len(EDITIONS)
    assert len({page["id"] for page in pile}) == len(pile)
    for page in pile:
        assert page["id"].startswith(page["play"])
        assert (page["of"] in scenes) == (page["kind"] not in RUBBISH)
        assert (page["text"] == scenes.get(page["id"])) == (page["kind"] == "scene")
    assert pile == page_pile(random.Random(0))
