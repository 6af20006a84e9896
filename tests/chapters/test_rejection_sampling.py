"""What the chapter on rejection sampling defines: pass@k against enumeration, and against what it estimates."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

SLUG = "post-training/rejection-sampling"


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_counts_the_draws_with_a_right_answer(chapter, right, data):
    k = data.draw(st.integers(1, len(right)))
    draws = [any(draw) for draw in combinations(right, k)]
    found = chapter.pass_at_k(len(right), sum(right), k)
    assert found == pytest.approx(sum(draws) / len(draws), abs=1e-12)


@given(st.floats(0, 1), st.integers(1, 12), st.data())
def test_pass_at_k_is_unbiased(chapter, p, n, data):
    k = data.draw(st.integers(1, n))
    expected = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * chapter.pass_at_k(n, c, k)
        for c in range(n + 1)
    )
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


def test_pass_at_k_of_many_answers_does_not_overflow(chapter):
    assert chapter.pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (4, 5, 1, "num_correct is 5"),
        (4, -1, 1, "num_correct is -1"),
        (4, 2, 0, "k is 0"),
        (4, 2, 5, "k is 5, num_samples is 4: expected 1 <= k <= num_samples"),
        (0, 0, 1, "k is 1"),
    ],
)
def test_pass_at_k_refuses_what_cannot_be(chapter, n, c, k, message):
    with pytest.raises(ValueError, match=message):
        chapter.pass_at_k(n, c, k)
