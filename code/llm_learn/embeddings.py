"""Vectors that say where a token stands."""

import torch
from torch import Tensor


def sinusoids(num_positions: int, d_model: int) -> Tensor:
    """A vector for each position (Vaswani et al. 2017, arXiv:1706.03762, Section 3.5).

    Args:
        num_positions: how many, from 0 on.
        d_model: C, an even number: sine and cosine of each speed stand side by side.

    Returns:
        (num_positions, C)
    """
    if num_positions < 1:
        raise ValueError(f"num_positions is {num_positions}: it must be at least 1")
    if d_model < 2 or d_model % 2:
        raise ValueError(f"d_model is {d_model}: it must be even and at least 2")
    positions = torch.arange(num_positions, dtype=torch.float64)[:, None]
    speeds = 10000 ** -(torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angles = positions * speeds  # (num_positions, C / 2)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).float()
