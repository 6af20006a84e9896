"""What the chapter on decoding defines: against Hugging Face."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

SLUG = "inference/decoding"
pytestmark = pytest.mark.usefixtures("no_gradients")


# --- Samplers ---


@given(st.integers(0, 10**6), st.floats(0.001, 1), st.floats(0.3, 3))
def test_min_p_after_a_temperature_is_min_p_with_another_share(
    definitions_of, seed, share, tau
):
    chapter = definitions_of(SLUG)
    logits = 3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(seed))
    after = chapter.chain(("temperature", tau), ("min-p", share))(logits) > -torch.inf
    before = chapter.chain(("min-p", share**tau))(logits) > -torch.inf
    assert (after != before).sum() <= 1  # a token at the border may round to either side
    theirs = MinPLogitsWarper(share)(None, logits) > -torch.inf
    assert torch.equal(chapter.min_p(logits, share) > -torch.inf, theirs)


def test_only_top_p_depends_on_where_the_temperature_stands(chapter):
    logits = 3 * torch.randn(6, 80, generator=torch.Generator().manual_seed(1))

    def orders(step):
        hot = ("temperature", 2.0)
        return [chapter.chain(*steps)(logits) for steps in ((hot, step), (step, hot))]

    torch.testing.assert_close(*orders(("top-k", 7)))
    first, last = orders(("top-p", 0.7))
    assert (first > -torch.inf).sum() > (last > -torch.inf).sum()


@given(st.integers(0, 10**6), st.floats(0.5, 2))
def test_repetition_penalty_is_hugging_faces(definitions_of, seed, penalty):
    generator = torch.Generator().manual_seed(seed)
    logits, ids = (
        torch.randn(3, 9, generator=generator),
        torch.randint(9, (3, 5), generator=generator),
    )
    before = logits.clone()
    ours = definitions_of(SLUG).repetition_penalty(logits, ids, penalty)
    assert torch.equal(logits, before)
    torch.testing.assert_close(ours, RepetitionPenaltyLogitsProcessor(penalty)(ids, logits))


# --- Quality and diversity ---


def test_even_answers_count_fully_and_none_count_zero(chapter):
    quality, diversity = chapter.quality_and_diversity(torch.full((8,), 0.1))
    assert quality == pytest.approx(0.8) and diversity == pytest.approx(8)
    assert chapter.quality_and_diversity(torch.zeros(8)) == (0, 0)


@pytest.mark.slow
def test_probabilities_of_names_are_those_of_whole_texts(chapter):
    """Each name read whole, without a cache, for a sampler that rules out."""
    leave = chapter.chain(("temperature", 1.5), ("top-k", 500))
    ours = chapter.name_probs(leave, *chapter.name_logits("Europe", 1))
    names = [name for same in chapter.COUNTRIES["Europe"] for name in same]
    prompt = chapter.country_prompt("Europe", 1)
    for name in ("France", "the United Kingdom", "North Macedonia"):
        ids = chapter.TOKENIZER.encode(f" {name}")
        probs = leave(chapter.SMOLLM2(torch.tensor([prompt + ids]))[0]).softmax(-1)
        steps = probs[len(prompt) - 1 :]
        chance = math.prod(steps[t, i].item() for t, i in enumerate(ids))
        chance *= steps[-1, chapter.ENDS].sum().item()
        assert ours[names.index(name)].item() == pytest.approx(chance, rel=1e-3), name


def test_a_name_that_goes_on_is_another_name(chapter):
    goes_on = chapter.GOES_ON.match
    assert all(map(goes_on, ("ia", "-Bissau", " Sudan", "é")))
    assert not any(map(goes_on, (".", ",", " is", "\n", " (", '"', " 3")))
