"""What the chapter on speculative decoding defines: against enumeration, and models without drafts."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from package_fixtures import sharp_llama

from llm_learn.generate import generate

SLUG = "inference/speculative-decoding"
pytestmark = pytest.mark.usefixtures("no_gradients")


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.integers(1, 24),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_looked_up_guesses_leave_the_text_and_take_the_passes_that_can_be_read_off_it(
    definitions_of, prompt, new, k, seed
):
    chapter = definitions_of(SLUG)
    with torch.no_grad():
        model, generator = sharp_llama(12, seed), torch.Generator().manual_seed(seed)
        settings = {"probs": chapter.greedy_probs, "generator": generator}
        draft = chapter.from_lookup(6)
        ours, passes = chapter.speculate(model, prompt, new, draft, k=k, **settings)
        plain = generate(model, torch.tensor([prompt]), new, temperature=0)[0].tolist()
    assert prompt + ours == plain
    assert passes == chapter.passes_needed(prompt, ours, k)


def test_one_guess_leaves_the_distribution_as_it_is(chapter):
    generator, off = torch.Generator().manual_seed(3), []
    for _ in range(20):
        p, q = (torch.randn(7, generator=generator).mul(2).softmax(-1) for _ in range(2))
        torch.testing.assert_close(chapter.one_token(p, q), p)
        half = p * (p >= p.median())  # not divided
        off.append((chapter.one_token(half, q) - half / half.sum()).abs().max().item())
        counts = chapter.one_token_counts(p, q, 400)
        assert chapter.p_value(counts, p.double().numpy()) > 1e-4
    assert max(off) > 0.01


@pytest.mark.slow
def test_texts_drawn_after_looked_up_guesses_have_the_models_distribution(chapter):
    model, generator = sharp_llama(12, 1, vocab_size=3), torch.Generator().manual_seed(0)
    texts = torch.cartesian_prod(*[torch.arange(3)] * 4)
    prompt = [0, 1, 0]
    whole = torch.cat([torch.tensor([prompt]).expand(81, -1), texts], 1)
    steps = model(whole)[:, 2:-1].log_softmax(-1).gather(2, texts[..., None])
    exact = steps.double().sum(1).exp()[:, 0].numpy()
    found, settings = np.zeros(81), {"probs": chapter.softmax_probs, "generator": generator}
    for _ in range(1200):
        draft = chapter.from_lookup(3)
        ids, _ = chapter.speculate(model, prompt, 4, draft, k=2, **settings)
        found[int(np.dot(ids, [27, 9, 3, 1]))] += 1
    assert chapter.p_value(found, exact) > 1e-4


def test_what_is_looked_up_is_the_latest_and_goes_on(chapter):
    assert chapter.look_up([1, 2, 3, 4, 1, 2], 2) == [3, 4]
    assert chapter.look_up([1, 2, 5, 9, 1, 2, 6, 1, 2], 1) == [6]
    assert chapter.look_up([5, 6, 5, 6], 5) == [5, 6, 5, 6, 5]
    assert chapter.look_up([1, 2, 3], 4) == [] == chapter.look_up([1], 4)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 6))
def test_a_guess_follows_an_end_that_stood_before(definitions_of, text, k):
    guess = definitions_of(SLUG).look_up(text, k)
    assert len(guess) in (0, k)
    if guess:
        assert any(
            text[begin] == text[-1] and text[begin + 1] == guess[0]
            for begin in range(len(text) - 1)
        )
    else:
        assert text[-1] not in text[:-1]
