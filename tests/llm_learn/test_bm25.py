"""Retrieval by words, against a library and against the formula; and the guide that it is tried on."""

import math

import bm25s
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.bm25 import BM25, words
from llm_learn.tasks.town_guide import guide

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "dd", "e"]), max_size=8)


# --- BM25 ---


def test_words_are_letters_digits_and_underscores_in_lower_case():
    assert words("Don't stop: str.join(x_1) über 2!") == [
        "don",
        "t",
        "stop",
        "str",
        "join",
        "x_1",
        "über",
        "2",
    ]


@given(st.lists(WORDS, min_size=1, max_size=9).filter(lambda ps: any(ps)), WORDS)
def test_bm25_is_a_librarys(passages, query):
    ours = BM25(passages, k1=1.4, b=0.6).scores(query)
    library = bm25s.BM25(method="lucene", k1=1.4, b=0.6)
    library.index(passages, show_progress=False)
    known = [word for word in query if any(word in passage for passage in passages)]
    theirs = library.get_scores(known) if known else np.zeros(len(passages))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bm25_has_lucenes_settings_and_its_limits_are_allowed():
    passages = [["a", "b", "b", "c"], ["a", "d"], ["e"]]
    usual = BM25(passages).scores(["a", "b"])
    assert usual.dtype == torch.float64
    assert torch.equal(usual, BM25(passages, k1=1.2, b=0.75).scores(["a", "b"]))
    # Without k1, more of the same word counts no more.
    once = BM25(passages, k1=0, b=0).scores(["b"])
    assert once.tolist() == [math.log(1 + 2.5 / 1.5), 0, 0]
    by_length = BM25(passages, k1=1, b=1).scores(["a"])
    assert by_length[1] > by_length[0] > 0


def test_bm25_is_its_formula():
    passages = [["a", "b", "b", "c"], ["a", "d"], ["e"]]
    scores = BM25(passages, k1=1.2, b=0.75).scores(["b", "a", "x"])
    rare = {1: math.log(1 + 2.5 / 1.5), 2: math.log(1 + 1.5 / 2.5)}
    norm = [1.2 * (0.25 + 0.75 * length / (7 / 3)) for length in (4, 2, 1)]
    expected = [
        rare[1] * 2 / (2 + norm[0]) + rare[2] / (1 + norm[0]),
        rare[2] / (1 + norm[1]),
        0,
    ]
    np.testing.assert_allclose(scores, expected)


@pytest.mark.parametrize(
    ("passages", "options", "message"),
    [
        ([], {}, r"passages is \[\]: expected any"),
        ([[], []], {}, r"passages is \[\[\], \[\]\]: expected any"),
        ([["a"]], {"k1": -1}, "k1 is -1"),
        ([["a"]], {"b": 1.5}, "b is 1.5"),
    ],
)
def test_bm25_refuses(passages, options, message):
    with pytest.raises(ValueError, match=message):
        BM25(passages, **options)


# --- The guide ---


def test_a_guide_is_drawn_by_its_seed_and_names_each_building_once():
    notes = guide(3)
    assert notes == guide(3) != guide(4)
    assert len(notes) == len({(note.kind, note.place) for note in notes}) == 30
    assert len(guide(0, 144)) == 144 and guide(0, 0) == []


def test_years_have_four_digits_and_visitors_three():
    numbers = [
        int(wanted)
        for note in guide(0, 144)
        for _, wanted in note.facts
        if wanted.isdigit()
    ]
    years = [number for number in numbers if number > 999]
    visitors = [number for number in numbers if number <= 999]
    assert len(years) > 50 < len(visitors)
    assert 1500 <= min(years) < 1520 and 1970 < max(years) < 1990
    assert 100 <= min(visitors) < 120 and 980 < max(visitors) < 999


@given(st.integers(0, 10_000))
def test_a_note_holds_the_answers_to_its_questions(seed):
    for note in guide(seed, 5):
        for question, wanted in note.facts:
            assert wanted in words(note.text)
            assert note.kind in words(question) and note.place in question


@pytest.mark.parametrize("num_notes", [-1, 145])
def test_a_guide_refuses(num_notes):
    with pytest.raises(ValueError, match=f"num_notes is {num_notes}"):
        guide(0, num_notes)
