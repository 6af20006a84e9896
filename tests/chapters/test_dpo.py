"""What the chapter on DPO defines for itself: the losses of IPO, SimPO and ORPO are TRL's, its loop and its bound do what they say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.reference.trl import trl_odds_ratio_loss, trl_pair_loss, trl_simpo_loss
from llm_learn.tasks.shakespeare_line_preferences import (
    EOS_ID,
    PROMPT,
    Pairs,
    sample_answers,
)

SLUG = "post-training/dpo"
# Sums of a few float64 numbers of size ten, squared where the loss squares them.
TOLERANCE = 1e-9


def pairs(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of the ids of 4 pairs of answers, by two models, and a mask: (2, B, T), float64."""
    generator = torch.Generator().manual_seed(seed)
    ref = -torch.rand(2, 4, 7, generator=generator, dtype=torch.float64) * 6
    logps = ref + torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 8, (2, 4, 1), generator=generator)
    return logps.clamp(max=-1e-3).requires_grad_(), ref, torch.arange(7) < lengths


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, by: torch.Tensor, atol: float):
    """Equal values and gradients."""
    torch.testing.assert_close(ours, theirs.to(ours), rtol=0, atol=atol)
    gradients = [
        torch.autograd.grad(loss, by, retain_graph=True)[0] for loss in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=atol)
    assert gradients[0].any()


@given(seed=st.integers(0, 10**6), beta=st.floats(0.05, 2.0))
def test_ipo_loss_on_means_is_that_of_trl_on_ids(chapter, seed, beta):
    logps, ref, mask = pairs(seed)
    means = [(each * mask).sum(2) / mask.sum(2) for each in (logps, ref)]
    ours = chapter.ipo_loss(*means[0], *means[1], beta=beta).mean()
    theirs = trl_pair_loss(logps, ref, mask, beta=beta, kind="ipo")
    assert_same(ours, theirs, logps, TOLERANCE)


def test_ipo_loss_of_the_paper_is_that_of_trl_where_an_answer_is_one_id(chapter):
    logps, ref, mask = pairs(3)
    sums = [(each * mask).sum(2) for each in (logps, ref)]
    ours = chapter.ipo_loss(*sums[0], *sums[1], beta=0.1).mean()
    one = torch.ones(2, 4, 1, dtype=torch.bool)
    theirs = trl_pair_loss(*(each.unsqueeze(2) for each in sums), one, beta=0.1, kind="ipo")
    assert_same(ours, theirs, logps, TOLERANCE)
    by_ids = trl_pair_loss(logps, ref, mask, beta=0.1, kind="ipo")
    assert abs(float((ours - by_ids).detach())) > 0.1


@given(seed=st.integers(0, 10**6), beta=st.floats(0.1, 10.0), gamma=st.floats(0.0, 5.0))
def test_simpo_loss_is_that_of_trl(chapter, seed, beta, gamma):
    logps, _, mask = pairs(seed)
    means = (logps * mask).sum(2) / mask.sum(2)
    ours = chapter.simpo_loss(*means, beta=beta, gamma=gamma)
    theirs = trl_simpo_loss(*means, beta=beta, gamma=gamma)
    assert ours.shape == (4,)
    assert_same(ours.mean(), theirs.mean(), logps, TOLERANCE)


@given(seed=st.integers(0, 10**6), weight=st.floats(0.01, 20.0))
def test_orpo_loss_is_that_of_trl_with_what_its_helper_leaves_out(chapter, seed, weight):
    logps, _, mask = pairs(seed)
    means = (logps * mask).sum(2) / mask.sum(2)
    ours = chapter.orpo_loss(*means, weight=weight)
    theirs = -means[0] - trl_odds_ratio_loss(*means, beta=weight)
    assert ours.shape == (4,)
    # Their odds are float32, with 1 - p as small as 0.001: errors of 1e-4 of it, times the weight.
    assert_same(ours.mean(), theirs.mean(), logps, 1e-4 * max(1, weight))


def test_orpo_loss_keeps_its_digits_where_an_answer_is_all_but_certain(chapter):
    nearly = torch.tensor([-1e-12], dtype=torch.float64)
    half = torch.tensor([math.log(0.5)], dtype=torch.float64)
    # Odds of 1e12 against odds of 1.
    wanted = 1e-12 + math.log1p(1e-12)
    assert math.isclose(
        float(chapter.orpo_loss(nearly, half, weight=1.0)), wanted, rel_tol=1e-6
    )


@pytest.mark.parametrize(
    "name", ["dpo", "dpo_of_means", "ipo", "without_reference", "simpo", "orpo"]
)
def test_losses_of_a_batch_pull_the_two_answers_apart(chapter, name):
    settings = {"simpo": (2.0, 0.5)}.get(name, (0.3,))
    logps, ref, mask = pairs(5)
    chosen, rejected = (logps * mask).sum(2).detach().requires_grad_()
    held = (ref * mask).sum(2)
    batch = chapter.Batch(chosen, rejected, *held, *mask.sum(2))
    loss = getattr(chapter, name)(*settings)(batch)
    assert loss.shape == (4,)
    if name != "ipo":  # which pulls a margin back that is too large
        up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
        assert (up < 0).all() and (down > 0).all()


def test_trained_learns_pairs_leaves_the_start_alone_and_takes_all_passes(
    chapter, tiny_model_of_lines
):
    model, generator = tiny_model_of_lines(0), torch.Generator().manual_seed(0)
    before = [parameter.clone() for parameter in model.parameters()]
    prompts = torch.randint(EOS_ID, (100, PROMPT), generator=generator)
    answers = [sample_answers(model, prompts, generator=generator) for _ in range(2)]
    some = Pairs(prompts, *answers)
    policies = list(chapter.trained(model, some, chapter.dpo(0.1), seed=0, passes=3))
    assert len(policies) == 1 + math.ceil(300 / 64)
    assert all(a.equal(b) for a, b in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        (chosen, rejected), (ref_chosen, ref_rejected) = (
            chapter.pair_logps(m, some) for m in (policies[-1], model)
        )
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    assert margin.mean() > 0.05 and (margin > 0).float().mean() > 0.6


def test_best_of_all_is_the_start_at_no_strength_and_one_answer_at_the_end(chapter):
    worth, ids = torch.tensor([0.0, 1.0, 3.0, 1.0]), torch.tensor([2, 4, 6, 8])
    start = chapter.best_of_all(worth, ids, 0.0)
    assert (start["points"], start["ids"], start["of"]) == (1.25, 5.0, 4.0)
    assert abs(start["kl"]) < 1e-12
    end = chapter.best_of_all(worth, ids, 1000.0)
    assert (end["points"], end["ids"], end["of"]) == (3.0, 6.0, 1.0)
    assert math.isclose(end["kl"], math.log(4))


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.floats(0.1, 3.0))
def test_no_distribution_has_more_points_at_the_distance_of_best_of_all(
    chapter, worth, strength
):
    worth = torch.tensor(worth, dtype=torch.float64)
    best = chapter.best_of_all(worth, torch.ones_like(worth), strength)
    other = torch.rand(len(worth), generator=torch.Generator().manual_seed(1)).double()
    other = other / other.sum()
    kl = float((other * (other * len(worth)).log()).sum())
    # Points less KL / strength is what the weights maximize (eq. 3 of the DPO paper).
    assert (
        float(other @ worth) - kl / strength
        <= best["points"] - best["kl"] / strength + 1e-9
    )
