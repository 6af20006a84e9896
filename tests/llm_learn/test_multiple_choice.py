"""Choices that share a cache, against choices that are read whole."""

import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from llm_learn.multiple_choice import choice_log_probs


@given(st.integers(0, 10**6))
def test_choices_from_a_cache_equal_choices_read_whole(tiny_llama, seed):
    model, rng = tiny_llama(vocab_size=50), random.Random(seed)
    ids = lambda low, high: [rng.randrange(50) for _ in range(rng.randint(low, high))]  # noqa: E731
    prompts = [ids(1, 9) for _ in range(5)]
    choices = [[ids(1, 4) for _ in range(3)] for _ in prompts]
    found = choice_log_probs(model, prompts, choices, pad_id=rng.randrange(50))
    for prompt, row, values in zip(prompts, choices, found, strict=True):
        for choice, value in zip(row, values, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + choice]))[0, len(prompt) - 1 : -1]
            whole = logits.log_softmax(-1).gather(1, torch.tensor(choice)[:, None]).sum()
            assert value == pytest.approx(whole.item(), abs=1e-4, rel=1e-5)


def test_many_prompts_and_many_choices_are_cut_into_batches(tiny_llama):
    model = tiny_llama(vocab_size=50)
    prompts = [[k % 50, (3 * k) % 50] for k in range(100)]
    choices = [[[1], [2, 3], [4, 5, 6]] for _ in prompts]
    found = choice_log_probs(model, prompts, choices, pad_id=0)
    assert found.shape == (100, 3)
    for k in (0, 47, 48, 99):
        alone = choice_log_probs(model, [prompts[k]], [choices[k]], pad_id=7)
        assert np.allclose(found[k], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("prompts", "choices"),
    [
        ([], []),
        ([[1]], []),
        ([[1], [2]], [[[1], [2]], [[1]]]),
        ([[1]], [[[1], []]]),
        ([[]], [[[1]]]),
    ],
)
def test_what_has_no_probability_is_refused(tiny_llama, prompts, choices):
    with pytest.raises(ValueError, match="expected"):
        choice_log_probs(tiny_llama(), prompts, choices, pad_id=0)
