"""Recurrent layers with PyTorch's interface: RNN, LSTM and GRU."""

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect


class _Layer(nn.Module):
    """The linear maps of input and state in a recurrent layer, each once for every gate."""

    num_gates = 1

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.input = nn.Linear(input_size, self.num_gates * hidden_size)
        self.hidden = nn.Linear(hidden_size, self.num_gates * hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def check(self, x: Tensor, *states: Tensor | None) -> None:
        """Rejects inputs (B, T, C) and states (B, H) whose shapes do not fit."""
        expect("x (B, T, C), T >= 1", x=x, C=self.input_size)
        for state in states:
            expect("state (B, H) or None", state=state, B=len(x), H=self.hidden_size)


class RNN(_Layer):
    """One recurrent layer as in Elman 1990: h' = tanh(W x + b + U h + c)."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C), state (B, H) or None for zero -> (B, T, H), last state (B, H)."""
        self.check(x, state)
        h = x.new_zeros(len(x), self.hidden_size) if state is None else state
        outputs = []
        # The projection of the input needs no state: one product for all positions.
        for from_input in self.input(x).unbind(1):
            h = torch.tanh(from_input + self.hidden(h))  # (B, H)
            outputs.append(h)
        return torch.stack(outputs, 1), h


class LSTM(_Layer):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000)."""

    num_gates = 4

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, C), states h and c (B, H) or None for zero -> (B, T, H), last h and c."""
        self.check(x, *(state or ()))
        h, c = (x.new_zeros(len(x), self.hidden_size),) * 2 if state is None else state
        outputs = []
        for from_input in self.input(x).unbind(1):
            gates = from_input + self.hidden(h)  # (B, 4H)
            i, f, g, o = gates.chunk(4, -1)  # input, forget, candidate, output
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


class GRU(_Layer):
    """Gated recurrent unit (Cho et al. 2014), reset after the product, as in PyTorch."""

    num_gates = 3

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C), state (B, H) or None for zero -> (B, T, H), last state (B, H)."""
        self.check(x, state)
        h = x.new_zeros(len(x), self.hidden_size) if state is None else state
        outputs = []
        for from_input in self.input(x).unbind(1):
            r_in, z_in, n_in = from_input.chunk(3, -1)  # reset, update, candidate
            r_hidden, z_hidden, n_hidden = self.hidden(h).chunk(3, -1)
            r, z = (r_in + r_hidden).sigmoid(), (z_in + z_hidden).sigmoid()
            n = (n_in + r * n_hidden).tanh()
            h = (1 - z) * n + z * h
            outputs.append(h)
        return torch.stack(outputs, 1), h
