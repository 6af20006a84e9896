"""Scores against enumeration, and against what they estimate."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.evaluation import pass_at_k


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_counts_the_draws_with_a_right_answer(right, data):
    k = data.draw(st.integers(1, len(right)))
    draws = [any(draw) for draw in combinations(right, k)]
    found = pass_at_k(len(right), sum(right), k)
    assert found == pytest.approx(sum(draws) / len(draws), abs=1e-12)


@given(st.floats(0, 1), st.integers(1, 12), st.data())
def test_pass_at_k_is_unbiased(p, n, data):
    k = data.draw(st.integers(1, n))
    expected = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k)
        for c in range(n + 1)
    )
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


def test_pass_at_k_of_many_answers_does_not_overflow():
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (4, 5, 1, "num_right is 5"),
        (4, -1, 1, "num_right is -1"),
        (4, 2, 0, "k is 0"),
        (4, 2, 5, "k is 5: it must be between 1 and num_samples, which is 4"),
        (0, 0, 1, "k is 1"),
    ],
)
def test_pass_at_k_refuses_what_cannot_be(n, c, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)
