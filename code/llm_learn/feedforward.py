"""What each position does by itself, after it has read from the others."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear layers around a GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415), as in GPT-2.

    Args:
        d_model: C, width of the input and the output.
        d_ff: width in between.
    """

    def __init__(self, *, d_model: int, d_ff: int):
        super().__init__()
        for name, width in (("d_model", d_model), ("d_ff", d_ff)):
            if width < 1:
                raise ValueError(f"{name} is {width}: it must be at least 1")
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        if x.shape[-1] != self.up.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: expected (..., {self.up.in_features})"
            )
        # GPT-2 approximates the GELU with tanh, and so must whoever loads its weights.
        return self.down(nn.functional.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """A feed-forward layer with a gate (Shazeer 2020, arXiv:2002.05202, Eq. 6), as in Llama.

    Args:
        d_model: C, width of the input and the output.
        d_ff: width in between.
    """

    def __init__(self, *, d_model: int, d_ff: int):
        super().__init__()
        for name, width in (("d_model", d_model), ("d_ff", d_ff)):
            if width < 1:
                raise ValueError(f"{name} is {width}: it must be at least 1")
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        if x.shape[-1] != self.gate_up.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: expected (..., {self.gate_up.in_features})"
            )
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (..., d_ff) each
        return self.down(nn.functional.silu(gate) * up)
