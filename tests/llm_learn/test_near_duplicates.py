"""Normalised text, shingles and their signatures, bands that meet, and groups of near copies."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.near_duplicates import (
    NUM_HASHES,
    groups,
    hashes,
    jaccard,
    meetings,
    near_copies,
    normalise,
    random_orders,
    shingles,
    signature,
    stirred,
    without_copies,
    words_of,
)


def test_what_looks_the_same_is_the_same_string():
    untidy = "Cafe\u0301,\u00a0\tthere \r\n\n  and here  \n"
    assert normalise(untidy) == "Café, there\n\nand here"
    assert normalise(normalise(untidy)) == normalise(untidy)


def test_shingles_are_runs_of_five_words_or_a_whole_shorter_text():
    assert words_of("Don't -- 3 Times_over!") == ["don", "t", "3", "times", "over"]
    assert shingles("a b c d e f") == {"a b c d e", "b c d e f"}
    assert shingles("To be") == {"to be"} and shingles("") == {""}
    assert jaccard({"a", "b"}, {"b", "c"}) == 1 / 3


def test_stirring_keeps_numbers_apart():
    numbers = np.arange(10_000, dtype=np.uint32)
    assert len(np.unique(stirred(numbers))) == len(numbers)
    assert stirred(numbers).dtype == np.uint32


@given(st.sets(st.integers(0, 60), min_size=1), st.sets(st.integers(0, 60), min_size=1))
def test_estimates_are_near_the_similarity(a, b):
    texts = [" ".join(f"w{i}" for i in sorted(words)) for words in (a, b)]
    sketches = [signature(hashes(text), random_orders(0)) for text in texts]
    assert all(sketch.shape == (NUM_HASHES,) for sketch in sketches)
    true = jaccard(*map(shingles, texts))
    estimate = (sketches[0] == sketches[1]).mean()
    # Five standard errors, of 126 hashes.
    assert abs(estimate - true) <= 5 * np.sqrt(true * (1 - true) / 126) + 1e-12


def test_orders_are_one_to_one_and_follow_their_seed():
    a, b = random_orders(3)
    assert a.shape == b.shape == (NUM_HASHES,) and (a % 2 == 1).all()
    assert all(np.array_equal(x, y) for x, y in zip((a, b), random_orders(3), strict=True))
    assert not np.array_equal(a, random_orders(4)[0])


def test_pages_meet_that_agree_in_a_whole_band():
    signatures = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [9, 2, 3, 4], [8, 8, 8, 8]])
    assert meetings(signatures, 2) == {(0, 1), (0, 2)}
    assert meetings(signatures, 4) == set()
    assert near_copies(signatures, 2, threshold=0.6) == {(0, 2)}


@pytest.mark.parametrize("r", [0, 3])
def test_bands_must_fill_a_signature(r):
    with pytest.raises(ValueError, match=r"expected (r >= 1|.*K % r == 0)"):
        meetings(np.zeros((2, 4)), r)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12),
        )
    )
)
def test_groups_are_what_pairs_connect(case):
    num_pages, pairs = case
    roots = groups(num_pages, pairs)
    reach = np.eye(num_pages, dtype=bool)
    for a, b in pairs:
        reach[a, b] = reach[b, a] = True
    for _ in range(num_pages):
        reach = reach @ reach
    for a in range(num_pages):
        assert roots[roots[a]] == roots[a]
        for b in range(num_pages):
            assert (roots[a] == roots[b]) == reach[a, b]


def test_of_each_group_the_longest_page_stays():
    rng = random.Random(0)
    words = [str(rng.random()) for _ in range(60)]
    texts = [" ".join(words[:40]), "something else", " ".join(words)]
    hashed = [hashes(text) for text in texts]
    assert without_copies(hashed, {(0, 2)}) == [1, 2]
    assert without_copies(hashed, set()) == [0, 1, 2]
