"""Losses of post-training, one per token or answer: the caller averages them with its loss mask."""

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_learn.argument_checks import expect


def preference_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The negative log-probability of each choice, by the Bradley-Terry model, in nats.

    Args:
        chosen, rejected: (B,) the scores of the answer that was chosen and of the other one.

    Returns:
        (B,)

    Raises:
        ValueError: the shapes differ.
    """
    expect("rejected.shape == chosen.shape", rejected=rejected, chosen=chosen)
    return -F.logsigmoid(chosen - rejected)


def ppo_clip_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip: float
) -> Tensor:
    """PPO's clipped loss of each token (Schulman et al. 2017, arXiv:1707.06347, eq. 7, negated).

    Args:
        logps: (B, T) log-probabilities of the sampled tokens under the policy that is trained, in nats.
        old_logps: (B, T) the same under the policy that sampled them; constants.
        advantages: (B, T) how much better each token was than expected; constants.
        clip: how far the ratio of the two probabilities can move from 1 and still gain, above 0 and below 1.

    Returns:
        (B, T)

    Raises:
        ValueError: the shapes differ, `clip` is out of range, or what must be constant carries a gradient.
    """
    expect("0 < clip < 1", clip=clip)
    expect("old_logps.shape == logps.shape", old_logps=old_logps, logps=logps)
    expect("advantages.shape == logps.shape", advantages=advantages, logps=logps)
    # Old log-probabilities that follow the new ones make a ratio of 1 without any gradient.
    expect("not old_logps.requires_grad", old_logps=old_logps)
    expect("not advantages.requires_grad", advantages=advantages)
    ratio = (logps - old_logps).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def group_advantages(rewards: Tensor) -> Tensor:
    """How much better each answer is than the others to its prompt (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

    Args:
        rewards: (prompts, samples), of two or more answers to each prompt.

    Returns:
        (prompts, samples), with mean 0 in each group, and standard deviation 1 unless all its rewards are nearly equal.

    Raises:
        ValueError: the shape is different, or a group has one answer.
    """
    expect("rewards (prompts, samples), samples >= 2", rewards=rewards)
    deviation = rewards.std(1, keepdim=True)
    # As in TRL: a group whose rewards are equal gets zeros.
    return (rewards - rewards.mean(1, keepdim=True)) / (deviation + 1e-4)


def sequence_logps(logits: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
    """The log-probability of each answer: the sum over its tokens, in nats.

    Args:
        logits: (B, T, V), the predictions for each position; already shifted.
        labels: (B, T) the tokens at these positions.
        loss_mask: (B, T), True for the tokens of the answer; other positions do not count.

    Returns:
        (B,)

    Raises:
        ValueError: the shapes do not match, the mask is not boolean, or an answer has no token.
    """
    expect(
        "logits (B, T, V), labels int (B, T), loss_mask bool (B, T), loss_mask.any(1).all()",
        logits=logits,
        labels=labels,
        loss_mask=loss_mask,
    )
    # Padding may be an ID outside the vocabulary, such as -100.
    ids = labels.masked_fill(~loss_mask, 0).unsqueeze(2)
    logps = logits.log_softmax(-1).gather(2, ids).squeeze(2)  # (B, T)
    return logps.masked_fill(~loss_mask, 0).sum(1)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """The loss of direct preference optimization, of each pair (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    Args:
        policy_chosen, policy_rejected: (B,) log-probabilities of the two answers under the trained policy, in nats.
        ref_chosen, ref_rejected: (B,) the same under the reference model; constants.
        beta: the weight of the KL divergence from the reference model, above 0.

    Returns:
        (B,)

    Raises:
        ValueError: the shapes differ, `beta` is not above 0, or the reference carries a gradient.
    """
    # A reference model that changes with the policy would constrain nothing.
    expect(
        "policy_chosen.shape == policy_rejected.shape == ref_chosen.shape == ref_rejected.shape, beta > 0, "
        "not ref_chosen.requires_grad, not ref_rejected.requires_grad",
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        beta=beta,
    )
    margin = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    return -F.logsigmoid(beta * margin)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """How far a student is from its teacher at each position (Hinton et al. 2015, arXiv:1503.02531, section 2).

    KL(p || q) for the teacher's distribution p and the student's q, both at the temperature, times its square:
    without the square the gradient would vanish as the temperature rises.

    Args:
        student_logits: (..., V)
        teacher_logits: (..., V), constants, finite, of the same vocabulary.
        temperature: what both are divided by, above 0.

    Returns:
        (...), in nats.

    Raises:
        ValueError: the shapes differ, `temperature` is not above 0, or the teacher carries a gradient.
    """
    # With a teacher that learns, the loss would also fall by moving it towards the student.
    expect(
        "teacher_logits.shape == student_logits.shape, temperature > 0, not teacher_logits.requires_grad",
        student_logits=student_logits,
        teacher_logits=teacher_logits,
        temperature=temperature,
    )
    student_logps = (student_logits / temperature).log_softmax(-1)
    teacher_logps = (teacher_logits / temperature).log_softmax(-1)
    kl = teacher_logps.exp() * (teacher_logps - student_logps)
    return temperature**2 * kl.sum(-1)
