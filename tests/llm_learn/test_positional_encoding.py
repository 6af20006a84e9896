"""Vectors of positions: the paper's formula, and what it promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_rope
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama_rope

from llm_learn.positional_encoding import (
    ALiBi,
    NoPositions,
    RoPE,
    Sinusoids,
    apply_rope,
    rope_frequencies,
    rope_tables,
    sinusoids,
)

sizes = st.integers(1, 200), st.integers(1, 40).map(lambda half: 2 * half)
even = st.integers(1, 40).map(lambda half: 2 * half)


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


@given(even, st.floats(1.5, 1e7), st.integers(1, 30))
def test_rope_matches_transformers(head_dim, base, num_positions):
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    q, k = torch.randn(2, 2, 3, num_positions, head_dim)
    positions = torch.arange(num_positions)
    theirs = llama_rope(q, k, *LlamaRotaryEmbedding(config)(q, positions[None]))
    tables = rope_tables(positions, rope_frequencies(head_dim, theta=base))
    for ours, reference in zip((q, k), theirs, strict=True):
        # Their speeds are rounded to float32 on the way, ours at the end: 1e-7 of up to 30 radians.
        assert (apply_rope(ours, *tables) - reference).abs().max() < 5e-5


@given(even, st.integers(1, 30))
def test_rope_in_halves_is_the_interleaved_layout_reordered(head_dim, num_positions):
    x = torch.randn(2, num_positions, 3, head_dim)  # GPT-J keeps heads after positions
    cos, sin = rope_tables(torch.arange(num_positions), rope_frequencies(head_dim))
    theirs = gptj_rope(x, sin[None], cos[None])
    order = torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])
    ours = apply_rope(x[..., order].transpose(1, 2), cos, sin).transpose(1, 2)
    torch.testing.assert_close(ours, theirs[..., order])


# Invariants


@given(even, st.integers(0, 10**6), st.integers(0, 500))
def test_rope_scores_depend_on_the_distance_alone(head_dim, begin, distance):
    q, k = torch.randn(2, 1, head_dim, dtype=torch.float64)
    speeds = rope_frequencies(head_dim).double()
    scores = []
    for first in (0, begin):
        places = torch.tensor([first + distance]).double(), torch.tensor([first]).double()
        turned = [
            apply_rope(x, *rope_tables(p, speeds))
            for x, p in zip((q, k), places, strict=True)
        ]
        scores.append(turned[0] @ turned[1].mT)
    # Angles up to 1e6 keep ten digits in float64.
    assert (scores[0] - scores[1]).abs().max() < 1e-7


@given(even, st.integers(1, 10**5))
def test_rope_keeps_lengths_and_leaves_position_zero_alone(head_dim, position):
    x = torch.randn(2, head_dim, dtype=torch.float64)
    speeds = rope_frequencies(head_dim).double()
    turned = apply_rope(x, *rope_tables(torch.tensor([0, position]), speeds))
    assert torch.equal(turned[0], x[0])
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-12)


def test_rope_speeds_fall_from_one_by_equal_factors():
    speeds = rope_frequencies(8)
    torch.testing.assert_close(speeds, torch.tensor([1.0, 0.1, 0.01, 0.001]))


@given(even, st.sampled_from([10_000.0, 500_000.0]))
def test_rope_speeds_are_rounded_once(head_dim, base):
    exact = [base ** -(2 * i / head_dim) for i in range(head_dim // 2)]
    assert torch.equal(rope_frequencies(head_dim, theta=base), torch.tensor(exact))


@given(st.integers(1, 5), st.integers(1, 9))
def test_rope_takes_positions_of_each_row(batch, num_positions):
    x = torch.randn(batch, 2, num_positions, 6)
    starts = torch.randint(0, 50, (batch, 1))
    positions = starts + torch.arange(num_positions)  # (B, T)
    cos, sin = rope_tables(positions, rope_frequencies(6))
    together = apply_rope(x, cos[:, None], sin[:, None])
    for row in range(batch):
        tables = rope_tables(positions[row], rope_frequencies(6))
        torch.testing.assert_close(together[row], apply_rope(x[row], *tables))


@given(*sizes)
def test_products_depend_on_the_distance_alone(num_positions, d_model):
    vectors = sinusoids(num_positions, d_model).double()
    products = vectors @ vectors.T
    for distance in (0, 1, num_positions - 1):
        along = products.diagonal(min(distance, num_positions - 1))
        # Rounding of d_model terms, each below 1.
        assert (along - along[0]).abs().max() < 1e-6 * d_model
    assert products.max() <= products[0, 0] + 1e-6 * d_model


# Schemes


@pytest.mark.parametrize("scheme", [NoPositions(), ALiBi(2), RoPE(8)])
def test_scores_of_relative_schemes_depend_on_the_distance_alone(scheme):
    q, k = torch.randn(2, 1, 2, 5, 8).double()
    scheme = scheme.double()
    here, there = (scheme.scores(q, k, torch.arange(5) + begin) for begin in (0, 30))
    assert here.shape == (1, 2, 5, 5)
    torch.testing.assert_close(here, there)
    assert torch.equal(scheme.add(q, torch.arange(5)), q)


def test_sinusoids_act_on_the_input_and_not_on_the_scores():
    x, (q, k) = torch.randn(2, 3, 16), torch.randn(2, 1, 2, 3, 8)
    scheme, positions = Sinusoids(16), torch.tensor([4, 5, 6])
    assert torch.equal(scheme.add(x, positions), x + sinusoids(7, 16)[4:])
    assert torch.equal(scheme.scores(q, k, positions), q @ k.mT / math.sqrt(8))


def test_alibi_takes_a_fixed_price_for_every_step_back():
    zeros = torch.zeros(1, 2, 3, 4)
    scores = ALiBi(2).scores(zeros, zeros, torch.arange(3))[0]
    assert scores[:, 2].tolist() == [[-2 / 16, -1 / 16, 0], [-2 / 256, -1 / 256, 0]]


def test_a_sharper_rope_multiplies_all_scores():
    q, k = torch.randn(2, 1, 2, 5, 8)
    scheme = RoPE(8)
    plain = scheme.scores(q, k, torch.arange(5))
    scheme.sharpness = 1.5
    torch.testing.assert_close(scheme.scores(q, k, torch.arange(5)), 1.5 * plain)


# Errors


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="num_positions is 0: expected num_positions >= 1"):
        sinusoids(0, 4)
    with pytest.raises(ValueError, match="d_model is 5: expected d_model % 2 == 0"):
        sinusoids(3, 5)
    with pytest.raises(ValueError, match="head_dim is 5: expected head_dim % 2 == 0"):
        rope_frequencies(5)
    with pytest.raises(ValueError, match="theta is 1: expected theta > 1"):
        rope_frequencies(4, theta=1)
    with pytest.raises(ValueError, match="num_heads is 0: expected num_heads >= 1"):
        ALiBi(0)
    cos, sin = rope_tables(torch.arange(3), rope_frequencies(4))
    with pytest.raises(
        ValueError, match=r"x\.shape is .*\[3, 6\]\), cos\.shape is .*\[3, 2\]"
    ):
        apply_rope(torch.zeros(3, 6), cos, sin)
