"""N-grams: probabilities that sum to one, cases worked out by hand, and the loss over a text."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.n_grams import KneserNey, estimate_discounts, n_gram_loss

IDS = st.lists(st.integers(0, 3), min_size=3, max_size=60)


@given(IDS, st.integers(1, 3), st.lists(st.integers(0, 3), max_size=4))
def test_after_any_context_the_probabilities_sum_to_one(ids, order, context):
    counter = KneserNey(ids, order, 4)
    chances = [counter.probability(context, token) for token in range(4)]
    assert math.isclose(sum(chances), 1) and min(chances) > 0


def test_cases_by_hand():
    ids = [0, 1, 2, 1, 2, 1]
    single = (2 - 0.75 + 2 * 0.75 / 3) / 3
    pair = (2 - 0.75 + 0.75 * single) / 2
    assert math.isclose(KneserNey(ids, 2, 3).probability([2], 1), pair)
    after_one = (1 - 0.75 + 0.75 * (1 - 0.75 + 2 * 0.75 / 3) / 2) / 1
    triple = (2 - 0.75 + 0.75 * after_one) / 2
    assert math.isclose(KneserNey(ids, 3, 3).probability([1, 2], 1), triple)


def test_only_the_last_ids_of_a_context_count_and_an_unseen_one_is_shortened():
    counter = KneserNey([0, 1, 2, 1, 2, 1], 2, 4)
    assert counter.probability([3, 0, 2], 1) == counter.probability([2], 1)
    assert counter.probability([3], 1) == counter.probability([], 1)


def test_discounts_are_chen_and_goodmans():
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 10, 5, 2])
    y = 40 / (40 + 2 * 20)
    expected = [0, 1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10]
    np.testing.assert_allclose(estimate_discounts(counts), expected)
    assert estimate_discounts(np.array([1, 2, 3])).tolist() == [0, 0.75, 0.75, 0.75]


def test_the_loss_is_the_mean_surprise_and_contexts_are_cut():
    asked = []

    def probability(context, token):
        asked.append((context, token))
        return 0.5

    assert math.isclose(n_gram_loss(probability, [7, 8, 9, 7], longest=3), math.log(2))
    assert asked == [([7], 8), ([7, 8], 9), ([8, 9], 7)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], 3, 2), "order is 3"),
        (([0, 1], 0, 2), "order is 0"),
        (([0, 1] * 40, 64, 2), "expected vocab_size"),
        (([0, 2], 1, 2), "expected ids.max"),
        (([0, -1], 1, 2), "expected ids.min"),
    ],
)
def test_a_counter_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        KneserNey(*arguments)


def test_a_loss_needs_a_token_to_predict():
    with pytest.raises(ValueError, match="expected len"):
        n_gram_loss(lambda context, token: 1.0, [3])
    with pytest.raises(ValueError, match="counts"):
        estimate_discounts(np.array([0.5]))
