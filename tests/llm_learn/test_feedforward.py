"""The MLP equals GPT-2's and the SwiGLU Llama's, and both treat each position by itself."""

import math

import pytest
import torch
from transformers import GPT2Config, LlamaConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from llm_learn.feedforward import MLP, SwiGLU


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)]
)
def test_mlp_matches_gpt2(dtype, tolerance):
    # Sums of 24 terms of size 1: 1e-12 and 1e-5 are some hundred roundings of each type.
    ours = MLP(d_model=6, d_ff=24).to(dtype)
    theirs = GPT2MLP(24, GPT2Config(n_embd=6, resid_pdrop=0.0)).to(dtype)
    with torch.no_grad():
        for mine, other in ((ours.up, theirs.c_fc), (ours.down, theirs.c_proj)):
            mine.weight.normal_()
            mine.bias.normal_()
            other.weight.copy_(mine.weight.T)  # Conv1D stores (in, out)
            other.bias.copy_(mine.bias)
    x = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    assert (ours(x) - theirs(x)).abs().max() <= tolerance * theirs(x).abs().max()
    (ours_grad,) = torch.autograd.grad(ours(x).sum(), x)
    (their_grad,) = torch.autograd.grad(theirs(x).sum(), x)
    assert (ours_grad - their_grad).abs().max() <= tolerance * their_grad.abs().max()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)]
)
def test_swiglu_matches_llama(dtype, tolerance):
    # As above: some hundred roundings of each type.
    ours = SwiGLU(d_model=6, d_ff=10).to(dtype)
    theirs = LlamaMLP(
        LlamaConfig(hidden_size=6, intermediate_size=10, num_attention_heads=1)
    ).to(dtype)
    with torch.no_grad():
        ours.gate_up.weight.normal_()
        gate, up = ours.gate_up.weight.chunk(2)
        for weight, layer in ((gate, "gate"), (up, "up"), (ours.down.weight, "down")):
            getattr(theirs, f"{layer}_proj").weight.copy_(weight)
    x = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    assert (ours(x) - theirs(x)).abs().max() <= tolerance * theirs(x).abs().max()
    (ours_grad,) = torch.autograd.grad(ours(x).sum(), x)
    (their_grad,) = torch.autograd.grad(theirs(x).sum(), x)
    assert (ours_grad - their_grad).abs().max() <= tolerance * their_grad.abs().max()


def test_activation_is_the_tanh_form_of_gelu():
    mlp = MLP(d_model=1, d_ff=1).double()
    with torch.no_grad():
        for layer in (mlp.up, mlp.down):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    x = 1.3
    expected = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    exact = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
    got = mlp(torch.tensor([x], dtype=torch.float64)).item()
    assert got == pytest.approx(expected, abs=1e-14)  # one float64 formula, written twice
    assert abs(got - exact) > 1e-5  # the two forms do differ


@pytest.mark.parametrize("kind", [MLP, SwiGLU])
def test_positions_do_not_mix(kind):
    mlp = kind(d_model=4, d_ff=8)
    x = torch.randn(2, 5, 4)
    y = x.clone()
    y[:, 2] += 1
    changed = (mlp(x) != mlp(y)).any(-1)
    assert changed.tolist() == [[t == 2 for t in range(5)]] * 2


@pytest.mark.parametrize(
    ("d_model", "d_ff", "message"),
    [(0, 4, "d_model is 0"), (4, -1, "d_ff is -1"), (4, 0, "d_ff is 0")],
)
@pytest.mark.parametrize("kind", [MLP, SwiGLU])
def test_widths_below_one_are_refused(kind, d_model, d_ff, message):
    with pytest.raises(ValueError, match=rf"{message}.*at least 1"):
        kind(d_model=d_model, d_ff=d_ff)


@pytest.mark.parametrize("kind", [MLP, SwiGLU])
def test_an_input_of_another_width_is_refused(kind):
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\).*4"):
        kind(d_model=4, d_ff=8)(torch.randn(2, 5))
