"""Positions: sinusoids, linear biases (ALiBi) and rotary embeddings (RoPE), as functions and in a model."""

import math

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect


def sinusoids(num_positions: int, d_model: int) -> Tensor:
    """A vector for each position (Vaswani et al. 2017, arXiv:1706.03762, Section 3.5).

    Args:
        num_positions: how many, from 0 on.
        d_model: C, an even number: sine and cosine of each frequency are neighbours.

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
    """The rotation frequency of each pair in a head (Su et al. 2021, arXiv:2104.09864, Section 3.2.2).

    Args:
        head_dim: D, an even number: two components make a pair.
        theta: the larger, the slower the slow pairs; `rope_theta` elsewhere.

    Returns:
        (D / 2,) radians per position, from 1 downwards.
    """
    expect("head_dim >= 2, head_dim % 2 == 0, theta > 1", head_dim=head_dim, theta=theta)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return (theta**-exponents).float()


def rope_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of every pair: positions (..., T) -> two of (..., T, D / 2)."""
    angles = positions[..., None] * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair by its angle (Su et al. 2021, Eq. 15); component i is paired with component i + D / 2.

    Args:
        x: (..., T, D) queries or keys.
        cos, sin: broadcastable to (..., T, D / 2), from `rope_tables`.

    Returns:
        (..., T, D)
    """
    expect(
        "x.shape[-1] == 2 * cos.shape[-1], cos.shape == sin.shape", x=x, cos=cos, sin=sin
    )
    # On whole heads, since halves are shorter rows, which take a CPU longer per component.
    other = x.roll(x.shape[-1] // 2, dims=-1)  # of each pair
    return x * torch.cat([cos, cos], dim=-1) + other * torch.cat([-sin, sin], dim=-1)


class NoPositions(nn.Module):
    """Where a model learns the order of its tokens; here, nowhere."""

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """Acts on the input of the first block: (B, T, C), (T,) -> (B, T, C)"""
        return x

    def scores(self, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
        """(B, H, T, D) queries and keys, (T,) -> attention scores (B, H, T, T)"""
        return q @ k.mT / math.sqrt(q.shape[-1])


class Sinusoids(NoPositions):
    """Fixed vectors of many wavelengths (Vaswani et al. 2017, arXiv:1706.03762, Section 3.5).

    Args:
        d_model: C, width of the input.
        num_positions: how many have a vector, from 0 on.
    """

    def __init__(self, d_model: int, num_positions: int = 2048):
        super().__init__()
        self.register_buffer("table", sinusoids(num_positions, d_model))

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table[positions]


class ALiBi(NoPositions):
    """A penalty on scores, linear in the distance (Press et al. 2022, arXiv:2108.12409, Section 3).

    Args:
        num_heads: H, each with its own slope.
    """

    def __init__(self, num_heads: int):
        super().__init__()
        expect("num_heads >= 1", num_heads=num_heads)
        slopes = 2.0 ** (-8 * torch.arange(1, num_heads + 1) / num_heads)
        self.register_buffer("slopes", slopes)

    def scores(self, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
        back = positions[:, None] - positions  # (T, S)
        return super().scores(q, k, positions) - self.slopes[:, None, None] * back


class RoPE(NoPositions):
    """Rotates queries and keys by their position (Su et al. 2021, arXiv:2104.09864).

    Args:
        head_dim: D, width of a head.
    """

    def __init__(self, head_dim: int):
        super().__init__()
        self.register_buffer("frequencies", rope_frequencies(head_dim))
        self.sharpness = 1.0  # a factor on all scores; only YaRN changes it

    def scores(self, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
        tables = rope_tables(positions, self.frequencies)
        q, k = apply_rope(q, *tables), apply_rope(k, *tables)
        return super().scores(self.sharpness * q, k, positions)
