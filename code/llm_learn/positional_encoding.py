"""Position embeddings: sinusoids and rotary embeddings (RoPE)."""

import torch
from torch import Tensor

from llm_learn.argument_checks import expect


def sinusoids(num_positions: int, d_model: int) -> Tensor:
    """A vector for each position (Vaswani et al. 2017, arXiv:1706.03762, Section 3.5).

    Args:
        num_positions: how many, from 0 on.
        d_model: C, an even number: sine and cosine of each speed stand side by side.

    Returns:
        (num_positions, C)
    """
    expect("num_positions >= 1", num_positions=num_positions)
    expect("d_model >= 2, d_model % 2 == 0", d_model=d_model)
    positions = torch.arange(num_positions, dtype=torch.float64)[:, None]
    speeds = 10000 ** -(torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angles = positions * speeds  # (num_positions, C / 2)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).float()


def rope_frequencies(head_dim: int, *, theta: float = 10_000.0) -> Tensor:
    """How fast each pair of numbers in a head turns (Su et al. 2021, arXiv:2104.09864, Section 3.2.2).

    Args:
        head_dim: D, an even number: two numbers make a pair.
        theta: the larger, the slower the slow pairs; `rope_theta` elsewhere.

    Returns:
        (D / 2,) radians a position, from 1 downwards.
    """
    expect("head_dim >= 2, head_dim % 2 == 0, theta > 1", head_dim=head_dim, theta=theta)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return (theta**-exponents).float()


def rope_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of every pair: positions (..., T) -> two of (..., T, D / 2)."""
    angles = positions[..., None] * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair by its angle (Su et al. 2021, Eq. 15); number i is paired with number i + D / 2.

    Args:
        x: (..., T, D) queries or keys.
        cos, sin: broadcastable to (..., T, D / 2), from `rope_tables`.

    Returns:
        (..., T, D)
    """
    expect(
        "x.shape[-1] == 2 * cos.shape[-1], cos.shape == sin.shape", x=x, cos=cos, sin=sin
    )
    # Whole heads, since half ones are shorter rows, which take a processor longer for each number.
    other = x.roll(x.shape[-1] // 2, dims=-1)  # of each pair
    return x * torch.cat([cos, cos], dim=-1) + other * torch.cat([-sin, sin], dim=-1)
