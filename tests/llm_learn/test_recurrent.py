"""The recurrent layers equal torch's with copied weights, and carry all that they know of the past in their state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from llm_learn.recurrent import GRU, LSTM, RNN

LAYERS = {RNN: nn.RNN, LSTM: nn.LSTM, GRU: nn.GRU}
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda cls: cls.__name__)


def states_of(state) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def copied(ours: nn.Module) -> nn.Module:
    """torch's layer with the weights of ours."""
    theirs = LAYERS[type(ours)](ours.input_size, ours.hidden_size, batch_first=True)
    theirs = theirs.to(ours.input.weight.dtype)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            theirs.get_parameter(f"{kind}_ih_l0").copy_(getattr(ours.input, kind))
            theirs.get_parameter(f"{kind}_hh_l0").copy_(getattr(ours.hidden, kind))
    return theirs


@each_layer
@pytest.mark.parametrize("given_state", [False, True])
def test_outputs_states_and_gradients_match_torch(layer, given_state):
    # float64, a few hundred roundings: 1e-10 leaves room for other orders of summation only.
    ours = layer(5, 7).double()
    theirs = copied(ours)
    x = torch.randn(3, 11, 5, dtype=torch.float64)
    number = 2 if layer is LSTM else 1
    first = [torch.randn(3, 7, dtype=torch.float64) for _ in range(number)]
    results = []
    for net in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in (x, *first)]
        states = leaves[1:] if net is ours else [t[None] for t in leaves[1:]]
        state = (tuple(states) if number == 2 else states[0]) if given_state else None
        outputs, last = net(leaves[0], state)
        last = [t.view(3, 7) for t in states_of(last)]
        loss = outputs.square().sum() + sum((t * (i + 2)).sum() for i, t in enumerate(last))
        wanted = leaves[: None if given_state else 1]
        named = dict(net.named_parameters())
        order = (
            ["input.weight", "hidden.weight", "input.bias", "hidden.bias"]
            if net is ours
            else ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
        )
        gradients = torch.autograd.grad(loss, [*wanted, *(named[name] for name in order)])
        results.append([outputs, *last, *gradients])
    for mine, other in zip(*results, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= 1e-10


@each_layer
def test_initial_weights_are_drawn_as_torch_draws_them(layer):
    ours = layer(40, 25)
    for parameter in ours.parameters():
        assert parameter.abs().max() <= 25**-0.5
    weights = torch.cat([parameter.flatten() for parameter in ours.parameters()])
    assert weights.std().item() == pytest.approx(25**-0.5 / 3**0.5, rel=0.05)


@given(st.data())
def test_a_text_read_in_pieces_gives_what_it_gives_in_one(data):
    layer = data.draw(st.sampled_from(list(LAYERS)))
    length = data.draw(st.integers(1, 12))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, length - 1)), max_size=4)))
    net = layer(3, 4).double()
    x = torch.randn(2, length, 3, dtype=torch.float64)
    whole, last = net(x)
    state, pieces = None, []
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        if start < end:
            outputs, state = net(x[:, start:end], state)
            pieces.append(outputs)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-12)
    for mine, other in zip(states_of(state), states_of(last), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@each_layer
def test_the_past_changes_the_future_and_not_the_other_way_round(layer):
    net = layer(3, 4).double()
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4] += 1
    before, after = net(x)[0], net(changed)[0]
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()


@each_layer
def test_sequences_of_a_batch_do_not_mix(layer):
    net = layer(3, 4).double()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    alone = torch.cat([net(row[None])[0] for row in x])
    torch.testing.assert_close(net(x)[0], alone, rtol=0, atol=1e-12)


@each_layer
def test_last_state_is_the_last_output(layer):
    outputs, last = layer(3, 4)(torch.randn(2, 6, 3))
    assert torch.equal(outputs[:, -1], states_of(last)[0])


def test_an_open_forget_gate_and_a_closed_input_gate_keep_the_cell():
    net = LSTM(3, 4).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.input.bias[:4], net.input.bias[4:8] = -40.0, 40.0  # i = 0, f = 1
    c = torch.randn(2, 4, dtype=torch.float64)
    _, (_, last) = net(torch.randn(2, 30, 3, dtype=torch.float64), (torch.zeros_like(c), c))
    torch.testing.assert_close(last, c, rtol=0, atol=1e-12)


def test_the_reset_gate_of_the_gru_comes_after_the_product():
    """With r = 0 the candidate keeps no trace of the state; the bias of the product goes with it."""
    net = GRU(1, 2).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.input.bias[:2], net.input.bias[2:4] = -40.0, -40.0  # r = 0, z = 0
        net.hidden.weight[4:] = torch.randn(2, 2)
        net.hidden.bias[4:] = 5.0
    h = torch.randn(1, 2, dtype=torch.float64)
    outputs, _ = net(torch.zeros(1, 1, 1, dtype=torch.float64), h)
    assert outputs.abs().max() < 1e-12


@each_layer
def test_one_symbol_is_remembered_over_a_short_wait(layer):
    embedding, net, out = nn.Embedding(9, 8), layer(8, 16), nn.Linear(16, 4)
    parameters = [*embedding.parameters(), *net.parameters(), *out.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(150):
        first = torch.randint(4, (32,))
        wait = torch.randint(4, 9, (32, 3))
        outputs, _ = net(embedding(torch.cat([first[:, None], wait], 1)))
        loss = F.cross_entropy(out(outputs[:, -1]), first)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1  # a guess pays log 4 = 1.4


@each_layer
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3), r"x has shape \(2, 3\): expected \(B, T, C\) with C = 3"),
        ((2, 5, 4), r"x has shape \(2, 5, 4\): expected \(B, T, C\) with C = 3"),
        ((2, 0, 3), r"x has shape \(2, 0, 3\): expected \(B, T, C\) with T >= 1"),
    ],
)
def test_inputs_of_another_shape_are_refused(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer(3, 4)(torch.zeros(shape))


@each_layer
def test_states_of_another_shape_are_refused(layer):
    state = torch.zeros(3, 4)
    state = (torch.zeros(2, 4), state) if layer is LSTM else state
    with pytest.raises(
        ValueError, match=r"state has shape \(3, 4\): expected \(B, H\) with B = 2, H = 4"
    ):
        layer(3, 4)(torch.zeros(2, 5, 3), state)
