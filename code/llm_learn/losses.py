"""Losses of post-training, one for each token or answer: the caller reduces them, with its loss mask."""

import torch
from torch import Tensor


def ppo_clip_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip: float
) -> Tensor:
    """PPO's clipped loss of each token (Schulman et al. 2017, arXiv:1707.06347, eq. 7, with its sign turned).

    Args:
        logps: (B, T) log-probabilities of the drawn tokens by the policy that learns, in nats.
        old_logps: (B, T) the same by the policy that drew them; constants.
        advantages: (B, T) how much better each token was than expected; constants.
        clip: how far the ratio of the two probabilities may leave 1 and still gain, above 0 and below 1.

    Returns:
        (B, T)

    Raises:
        ValueError: the shapes differ, `clip` is out of range, or what must be constant carries a gradient.
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip}: it must be above 0 and below 1")
    for name, constant in (("old_logps", old_logps), ("advantages", advantages)):
        if constant.shape != logps.shape:
            raise ValueError(
                f"{name} has shape {tuple(constant.shape)}: expected {tuple(logps.shape)}, that of logps"
            )
        # Old log-probabilities that follow the new ones make a ratio of 1 without any gradient.
        if constant.requires_grad:
            raise ValueError(f"{name} carries a gradient: expected constants, so detach it")
    ratio = (logps - old_logps).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages)
