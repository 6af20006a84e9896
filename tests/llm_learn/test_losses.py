"""Losses of post-training: against TRL, against gradients by hand, and what must be refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from llm_learn.losses import (
    distillation_loss,
    dpo_loss,
    group_advantages,
    ppo_clip_loss,
    preference_loss,
    sequence_logps,
)
from llm_learn.reference.trl import (
    trl_group_advantages,
    trl_jsd,
    trl_pair_loss,
    trl_ppo_loss,
)

# Sums of a few dozen float64 numbers of size one: rounding alone is below 1e-14.
TOLERANCE = 1e-12


def answers(seed: int, spread: float = 0.5) -> tuple[torch.Tensor, ...]:
    """Log-probabilities, old ones, advantages and a mask: 3 answers of at most 7 ids, float64."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(3, 7, generator=generator, dtype=torch.float64) * 6
    logps = old + spread * torch.randn(3, 7, generator=generator, dtype=torch.float64)
    advantages = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[2], [7], [4]])
    return logps.requires_grad_(), old, advantages, mask


def test_preference_loss_is_the_log_probability_of_the_choice_and_counts_differences_only():
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64)
    odds = chosen.exp() / (chosen.exp() + rejected.exp())
    ours = preference_loss(chosen, rejected)
    torch.testing.assert_close(ours, -odds.log(), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(preference_loss(chosen + 3, rejected + 3), ours)
    with pytest.raises(ValueError, match=r"expected rejected\.shape"):
        preference_loss(chosen, rejected[:5])


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.5])
def test_ppo_clip_loss_and_its_gradient_match_trl(clip):
    logps, old, advantages, mask = answers(0)
    ours = ppo_clip_loss(logps, old, advantages, clip=clip)[mask].mean()
    theirs = trl_ppo_loss(logps, old, advantages, mask, clip=clip)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    gradients = [torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=TOLERANCE)
    assert (gradients[0][mask] == 0).any() and (gradients[0][mask] != 0).any()
    assert (gradients[0][~mask] == 0).all()


def test_ppo_clip_loss_passes_gradcheck():
    logps, old, advantages, _ = answers(1)
    assert torch.autograd.gradcheck(
        lambda x: ppo_clip_loss(x, old, advantages, clip=0.2), (logps,)
    )


@given(st.integers(0, 10**6), st.floats(0.05, 0.9), st.floats(0.0, 2.0))
def test_ppo_clip_loss_never_promises_more_than_the_clipped_ratio(seed, clip, spread):
    logps, old, advantages, _ = answers(seed, spread)
    loss = ppo_clip_loss(logps, old, advantages, clip=clip)
    bound = 1 + clip * advantages.sign()
    assert (loss >= -bound * advantages - TOLERANCE).all()
    assert (loss >= -(logps - old).exp() * advantages - TOLERANCE).all()


@given(st.integers(0, 10**6))
def test_ppo_clip_loss_begins_with_the_policy_gradient(seed):
    logps, _, advantages, _ = answers(seed)
    loss = ppo_clip_loss(logps, logps.detach(), advantages, clip=0.2)
    torch.testing.assert_close(loss, -advantages, rtol=0, atol=TOLERANCE)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    torch.testing.assert_close(gradient, -advantages, rtol=0, atol=TOLERANCE)


def test_ppo_clip_loss_raises_the_chance_of_what_was_good():
    torch.manual_seed(0)
    logits = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    drawn = torch.tensor([[0, 1]])
    advantages = torch.tensor([[1.0, -1.0]])
    old = logits.log_softmax(-1).gather(1, drawn).detach()
    for _ in range(50):
        logps = logits.log_softmax(-1).gather(1, drawn)
        optimizer.zero_grad()
        ppo_clip_loss(logps, old, advantages, clip=0.2).sum().backward()
        optimizer.step()
    ratio = (logits.log_softmax(-1).gather(1, drawn) - old).exp()[0]
    # Each is pushed until it leaves the range, so one step beyond it at most: 0.5 times a gradient below 1.2 here.
    assert 1.2 <= ratio[0] < 1.9 and 0.4 < ratio[1] <= 0.8


@pytest.mark.parametrize("clip", [0.0, 1.0, -0.2, float("nan")])
def test_ppo_clip_loss_refuses_a_range_that_is_none(clip):
    logps, old, advantages, _ = answers(2)
    with pytest.raises(ValueError, match=f"clip is {clip}: expected 0 < clip < 1"):
        ppo_clip_loss(logps, old, advantages, clip=clip)


def test_ppo_clip_loss_refuses_old_log_probabilities_that_learn():
    logps, old, advantages, _ = answers(3)
    with pytest.raises(ValueError, match=r"old_logps\.requires_grad is True: expected not"):
        ppo_clip_loss(logps, logps * 1, advantages, clip=0.2)
    with pytest.raises(
        ValueError, match=r"advantages\.requires_grad is True: expected not"
    ):
        ppo_clip_loss(logps, old, advantages.requires_grad_(), clip=0.2)


def test_ppo_clip_loss_refuses_other_shapes():
    logps, old, advantages, _ = answers(4)
    with pytest.raises(
        ValueError, match=r"advantages.shape is .*\[3\].*logps.shape is .*\[3, 7\]"
    ):
        ppo_clip_loss(logps, old, advantages[:, 0], clip=0.2)
    with pytest.raises(
        ValueError, match=r"old_logps.shape is .*\[3, 6\].*logps.shape is .*\[3, 7\]"
    ):
        ppo_clip_loss(logps, old[:, :6], advantages, clip=0.2)


def test_group_advantages_match_trl():
    rewards = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    rewards[1] = 1.0
    theirs = trl_group_advantages(rewards)
    # TRL computes in float32, as we do here.
    torch.testing.assert_close(group_advantages(rewards), theirs, rtol=0, atol=1e-6)
    assert (theirs[1] == 0).all()


@given(st.integers(0, 10**6), st.integers(2, 9), st.floats(-5, 5), st.floats(0.5, 20))
def test_group_advantages_forget_the_size_and_the_zero_of_rewards(seed, group, zero, size):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(3, group, generator=generator, dtype=torch.float64)
    # Deviations far above the 1e-4 that is added to them.
    rewards[:, 0] = rewards[:, 1:].max(1).values + 3
    ours = group_advantages(rewards)
    torch.testing.assert_close(ours.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.std(1), torch.ones(3).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        group_advantages(zero + size * rewards), ours, rtol=0, atol=1e-3
    )
    order = torch.randperm(group, generator=generator)
    torch.testing.assert_close(
        group_advantages(rewards[:, order]), ours[:, order], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4,), r"rewards has shape \(4,\): expected \(prompts, samples\)"),
        ((2, 2, 2), r"rewards has shape \(2, 2, 2\): expected \(prompts, samples\)"),
        ((4, 1), r"rewards has shape \(4, 1\): .* with samples >= 2"),
        ((4, 0), r"rewards has shape \(4, 0\): .* with samples >= 2"),
    ],
)
def test_group_advantages_refuse_what_is_no_group(shape, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.zeros(shape))


def pairs(
    seed: int, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of the ids of 4 pairs of answers, by two models, and a mask: (2, B, T), float64."""
    generator = torch.Generator().manual_seed(seed)
    ref = -torch.rand(2, 4, 7, generator=generator, dtype=torch.float64) * 6
    moved = spread * torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 8, (2, 4, 1), generator=generator)
    return (ref + moved).requires_grad_(), ref, torch.arange(7) < lengths


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_dpo_loss_and_its_gradient_match_trl(beta):
    logps, ref, mask = pairs(0)
    sums = [(each * mask).sum(2) for each in (logps, ref)]
    ours = dpo_loss(*sums[0], *sums[1], beta=beta).mean()
    theirs = trl_pair_loss(logps, ref, mask, beta=beta, kind="sigmoid")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    gradients = [torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=TOLERANCE)
    assert gradients[0][mask].all() and not gradients[0][~mask].any()


@given(st.integers(0, 10**6), st.floats(0.01, 5.0))
def test_dpo_loss_is_the_price_of_a_choice_that_its_own_reward_makes(seed, beta):
    logps, ref, mask = pairs(seed)
    (chosen, rejected), (ref_chosen, ref_rejected) = (
        (each.detach() * mask).sum(2) for each in (logps, ref)
    )
    here = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    turned = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=beta)
    # The probabilities of the two choices: rounding of numbers up to 1.
    torch.testing.assert_close(
        (-here).exp() + (-turned).exp(), torch.ones(4, dtype=torch.float64)
    )
    assert (here >= 0).all()


def test_dpo_loss_begins_with_the_logarithm_of_two_and_pulls_by_half():
    logps, _, mask = pairs(1)
    chosen, rejected = (logps.detach() * mask).sum(2).requires_grad_()
    held = chosen.detach(), rejected.detach()
    loss = dpo_loss(chosen, rejected, *held, beta=0.3)
    assert torch.allclose(loss, torch.full_like(loss, math.log(2)), rtol=0, atol=TOLERANCE)
    slopes = torch.autograd.grad(loss.sum(), (chosen, rejected))
    for slope, sign in zip(slopes, (-1, 1), strict=True):
        assert torch.allclose(slope, torch.full_like(slope, sign * 0.3 / 2))


def test_dpo_loss_stays_finite_where_a_sigmoid_would_not():
    far = torch.tensor([-1e5, 1e5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    loss = dpo_loss(far, zero, zero, zero, beta=1.0)
    assert loss.tolist() == [1e5, 0.0]
    assert torch.autograd.grad(loss.sum(), far)[0].tolist() == [-1.0, 0.0]


def test_dpo_loss_finds_the_best_policy_for_a_reward():
    reward = torch.tensor([0.0, 1.0, -0.5, 2.0], dtype=torch.float64)
    start = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")
    first, second = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T

    def closure():
        optimizer.zero_grad()
        logps = logits.log_softmax(0)
        wins = (reward[first] - reward[second]).sigmoid()
        loss = dpo_loss(logps[first], logps[second], start[first], start[second], beta=0.5)
        (loss * wins).mean().backward()
        return (loss * wins).mean()

    optimizer.step(closure)
    best = (start + reward / 0.5).softmax(0)
    # The optimizer stops at gradients of 1e-7.
    torch.testing.assert_close(logits.softmax(0).detach(), best, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan")])
def test_dpo_loss_refuses_a_price_that_is_none(beta):
    with pytest.raises(ValueError, match=f"beta is {beta}: expected beta > 0"):
        dpo_loss(*torch.zeros(4, 3), beta=beta)


def test_dpo_loss_refuses_a_reference_that_learns():
    chosen, rejected, ref_chosen, ref_rejected = torch.zeros(4, 3)
    with pytest.raises(
        ValueError, match=r"ref_rejected\.requires_grad is True: expected not"
    ):
        dpo_loss(chosen, rejected, ref_chosen, ref_rejected.requires_grad_(), beta=0.1)


def test_dpo_loss_refuses_other_shapes():
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"chosen.shape is .*\[2\].*ref_chosen.shape is .*\[3\]"
    ):
        dpo_loss(two, two, three, two, beta=0.1)
    with pytest.raises(ValueError, match=r"policy_rejected.shape is torch.Size\(\[3\]\)"):
        dpo_loss(two, three, two, two, beta=0.1)


def test_sequence_logps_match_the_cross_entropy_of_torch():
    logits = torch.randn(3, 5, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(11, (3, 5))
    mask = torch.arange(5) < torch.tensor([[1], [5], [3]])
    ours = sequence_logps(logits, labels, mask)
    theirs = -F.cross_entropy(
        logits.transpose(1, 2), labels.masked_fill(~mask, -100), reduction="none"
    ).sum(1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    gradients = [torch.autograd.grad(each.sum(), logits)[0] for each in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=TOLERANCE)
    assert not gradients[0][~mask].any()


@given(st.integers(0, 10**6))
def test_sequence_logps_do_not_read_what_the_mask_leaves_out(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, 5, generator=generator)
    labels = torch.randint(5, (2, 6), generator=generator)
    mask = torch.rand(2, 6, generator=generator) < 0.5
    mask[:, 2] = True
    wanted = sequence_logps(logits, labels, mask)
    logits = logits.masked_fill(~mask.unsqueeze(2), float("-inf"))
    assert sequence_logps(logits, labels.masked_fill(~mask, -100), mask).equal(wanted)


def test_sequence_logps_refuse_what_does_not_fit():
    logits, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"labels has shape \(2, 2\) .*with B = 2, T = 3"):
        sequence_logps(logits, labels[:, 1:], mask)
    with pytest.raises(ValueError, match=r"loss_mask has shape \(3,\)"):
        sequence_logps(logits, labels, mask[0])
    with pytest.raises(
        ValueError, match=r"loss_mask has .*dtype torch.int64: expected booleans"
    ):
        sequence_logps(logits, labels, mask.long())
    mask[1] = False
    with pytest.raises(ValueError, match=r"loss_mask.any\(1\).all\(\) is False: expected"):
        sequence_logps(logits, labels, mask)


def logits(seed: int, shape: tuple[int, ...] = (3, 5, 11)) -> tuple[torch.Tensor, ...]:
    """Logits of a student, which carry a gradient, and of a teacher, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_loss_and_its_gradient_match_torch(temperature):
    student, teacher = logits(0)
    ours = distillation_loss(student, teacher, temperature=temperature)
    theirs = temperature**2 * F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    assert ours.shape == (3, 5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    (slope,) = torch.autograd.grad(ours.sum(), student)
    softened = [(each / temperature).softmax(-1) for each in (student, teacher)]
    torch.testing.assert_close(
        slope, temperature * (softened[0] - softened[1]), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("kind", [0, 1])
def test_distillation_loss_is_the_divergence_at_an_end_of_trls(kind):
    student, teacher = logits(1)
    # TRL has no square of the temperature; and its other end has the two exchanged.
    one, other = (student, teacher) if kind == 0 else (teacher, student.detach())
    ours = distillation_loss(one, other, temperature=3.0) / 9
    theirs = trl_jsd(student, teacher, beta=kind, temperature=3.0)
    torch.testing.assert_close(
        ours, theirs.detach() if kind else theirs, rtol=0, atol=TOLERANCE
    )


@given(st.integers(0, 10**6), st.floats(0.2, 20.0), st.floats(-50.0, 50.0))
def test_distillation_loss_is_nought_at_the_teacher_only(seed, temperature, shift):
    student, teacher = logits(seed, (2, 6))
    losses = distillation_loss(student.detach(), teacher, temperature=temperature)
    assert (losses > 0).all()
    # Logits that differ by a constant are the same distribution.
    same = distillation_loss(teacher + shift, teacher, temperature=temperature)
    assert (same.abs() < 1e-9 * (1 + temperature**2)).all()


def test_distillation_loss_copies_logits_where_the_temperature_is_high():
    student, teacher = logits(2)
    loss = distillation_loss(student, teacher, temperature=1e4).sum()
    (slope,) = torch.autograd.grad(loss, student)
    centred = [each - each.mean(-1, keepdim=True) for each in (student, teacher)]
    wanted = (centred[0] - centred[1]) / 11
    # What is left out is of the order of a logit divided by the temperature.
    assert (slope - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_distillation_loss_is_what_drawn_targets_cost_on_average():
    student, teacher = logits(3, (4, 7))
    chances = teacher.softmax(-1)
    soft = distillation_loss(student, teacher, temperature=1.0).sum()
    hard = -(chances * student.log_softmax(-1)).sum()
    slopes = [torch.autograd.grad(loss, student)[0] for loss in (soft, hard)]
    torch.testing.assert_close(*slopes, rtol=0, atol=TOLERANCE)
    entropy = -(chances * teacher.log_softmax(-1)).sum()
    torch.testing.assert_close(hard - soft, entropy, rtol=0, atol=TOLERANCE)


def test_distillation_loss_teaches_a_student_its_teacher():
    student, teacher = logits(4, (2, 5))
    start = student.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([start], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = distillation_loss(start, teacher, temperature=2.0).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(
        start.detach().softmax(-1), teacher.softmax(-1), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: expected temperature > 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        (
            {"teacher": torch.zeros(3, 5, 10)},
            r"teacher_logits.shape is .*\[3, 5, 10\].*student_logits.shape is .*\[3, 5, 11\]",
        ),
        (
            {"teacher": torch.zeros(3, 5, 11, requires_grad=True)},
            "teacher_logits.requires_grad is True: expected not",
        ),
    ],
)
def test_distillation_loss_refuses_what_cannot_be_learned(change, message):
    student, teacher = logits(0)
    teacher = change.get("teacher", teacher)
    with pytest.raises(ValueError, match=message):
        distillation_loss(student, teacher, temperature=change.get("temperature", 1.0))
