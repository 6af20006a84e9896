"""Vectors of positions: the paper's formula, and what it promises."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.embeddings import sinusoids

sizes = st.integers(1, 200), st.integers(1, 40).map(lambda half: 2 * half)


# Reference


@given(*sizes)
def test_sinusoids_match_the_formula(num_positions, d_model):
    found = sinusoids(num_positions, d_model)
    assert found.shape == (num_positions, d_model)
    position, i = num_positions - 1, d_model // 2 - 1
    angle = position / 10000 ** (2 * i / d_model)
    # float32 keeps about seven digits.
    assert math.isclose(found[position, 2 * i], math.sin(angle), abs_tol=1e-6)
    assert math.isclose(found[position, 2 * i + 1], math.cos(angle), abs_tol=1e-6)


# Invariants


@given(*sizes)
def test_products_depend_on_the_distance_alone(num_positions, d_model):
    vectors = sinusoids(num_positions, d_model).double()
    products = vectors @ vectors.T
    for distance in (0, 1, num_positions - 1):
        along = products.diagonal(min(distance, num_positions - 1))
        # Rounding of d_model terms, each below 1.
        assert (along - along[0]).abs().max() < 1e-6 * d_model
    assert products.max() <= products[0, 0] + 1e-6 * d_model


# Errors


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="num_positions is 0: it must be at least 1"):
        sinusoids(0, 4)
    with pytest.raises(ValueError, match="d_model is 5: it must be even and at least 2"):
        sinusoids(3, 5)
