"""Losses of post-training: against TRL, against gradients by hand, and what must be refused."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOTrainer

from llm_learn.losses import ppo_clip_loss

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


def trl_loss(logps, old, advantages, mask, clip: float) -> torch.Tensor:
    """TRL's lines for the loss of GRPO without a KL term, on a stand-in for the trainer."""
    nothing = torch.zeros_like(logps)
    trainer = SimpleNamespace(
        aux_loss_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, nothing, None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        args=SimpleNamespace(delta=None),
        loss_type="bnpo",
        epsilon_low=clip,
        epsilon_high=clip,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
            reduce=lambda x, reduction: x,
        ),
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(3, 1, dtype=torch.long),
        "prompt_mask": torch.ones(3, 1, dtype=torch.long),
        "completion_ids": torch.zeros(3, 7, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.5])
def test_ppo_clip_loss_and_its_gradient_match_trl(clip):
    logps, old, advantages, mask = answers(0)
    ours = ppo_clip_loss(logps, old, advantages, clip=clip)[mask].mean()
    theirs = trl_loss(logps, old, advantages, mask, clip)
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
    with pytest.raises(ValueError, match=r"clip is .* above 0 and below 1"):
        ppo_clip_loss(logps, old, advantages, clip=clip)


def test_ppo_clip_loss_refuses_old_log_probabilities_that_learn():
    logps, old, advantages, _ = answers(3)
    with pytest.raises(ValueError, match="old_logps carries a gradient"):
        ppo_clip_loss(logps, logps * 1, advantages, clip=0.2)
    with pytest.raises(ValueError, match="advantages carries a gradient"):
        ppo_clip_loss(logps, old, advantages.requires_grad_(), clip=0.2)


def test_ppo_clip_loss_refuses_other_shapes():
    logps, old, advantages, _ = answers(4)
    with pytest.raises(ValueError, match=r"advantages has shape \(3,\): expected \(3, 7\)"):
        ppo_clip_loss(logps, old, advantages[:, 0], clip=0.2)
    with pytest.raises(ValueError, match=r"old_logps has shape \(3, 6\)"):
        ppo_clip_loss(logps, old[:, :6], advantages, clip=0.2)
