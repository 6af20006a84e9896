"""The MLP equals GPT-2's, the SwiGLU Llama's, the mixture Mixtral's, and all treat each position by itself."""

import math
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, LlamaConfig, MixtralConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mixtral.modeling_mixtral import (
    MixtralSparseMoeBlock,
    load_balancing_loss_func,
)

from llm_learn.feedforward import (
    MLP,
    AddAuxiliaryLoss,
    BiasedGates,
    MixtureOfExperts,
    SharedAndRouted,
    SwiGLU,
    load_balancing_loss,
    loss_scale,
    renormalised_gates,
    sigmoid_gates,
    softmax_gates,
    with_aux_loss,
    within_best_groups,
)


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
    [
        (0, 4, "d_model is 0: expected d_model >= 1"),
        (4, -1, "d_ff is -1: expected d_ff >= 1"),
        (4, 0, "d_ff is 0: expected d_ff >= 1"),
    ],
)
@pytest.mark.parametrize("kind", [MLP, SwiGLU])
def test_widths_below_one_are_refused(kind, d_model, d_ff, message):
    with pytest.raises(ValueError, match=message):
        kind(d_model=d_model, d_ff=d_ff)


@pytest.mark.parametrize("kind", [MLP, SwiGLU])
def test_an_input_of_another_width_is_refused(kind):
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\).*4"):
        kind(d_model=4, d_ff=8)(torch.randn(2, 5))


def mixture(
    num_experts: int = 4, top_k: int = 2, gates=renormalised_gates, d_model: int = 6
) -> MixtureOfExperts:
    return MixtureOfExperts(
        d_model=d_model,
        num_experts=num_experts,
        top_k=top_k,
        make_expert=lambda: SwiGLU(d_model=d_model, d_ff=8),
        gates=gates,
    ).double()


def test_mixture_matches_mixtral():
    ours = mixture(num_experts=5)
    theirs = MixtralSparseMoeBlock(
        MixtralConfig(
            hidden_size=6,
            intermediate_size=8,
            num_local_experts=5,
            num_experts_per_tok=2,
            experts_implementation="eager",
        )
    ).double()
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        for e, expert in enumerate(ours.experts):
            theirs.experts.gate_up_proj[e] = expert.gate_up.weight
            theirs.experts.down_proj[e] = expert.down.weight
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [layer(y) for layer, y in zip((ours, theirs), inputs, strict=True)]
    grads = [
        torch.autograd.grad(o.square().sum(), y)[0]
        for o, y in zip(outs, inputs, strict=True)
    ]
    # Their router computes its softmax in float32.
    torch.testing.assert_close(outs[0], outs[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-6)


@given(num_tokens=st.integers(1, 40), num_experts=st.integers(1, 9), data=st.data())
def test_balancing_loss_matches_transformers(num_tokens, num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    logits = (3 * torch.randn(num_tokens, num_experts)).requires_grad_()
    ours = load_balancing_loss(logits, renormalised_gates(logits, top_k)[1])
    # They divide the counts by the tokens, we by all choices, so that 1 is balance for every k.
    theirs = load_balancing_loss_func((logits,), num_experts, top_k) / top_k
    torch.testing.assert_close(ours, theirs)
    (our_grad,), (their_grad,) = (torch.autograd.grad(x, logits) for x in (ours, theirs))
    torch.testing.assert_close(our_grad, their_grad)


@pytest.mark.parametrize("gates", [softmax_gates, renormalised_gates])
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    num_experts=st.integers(1, 6),
    data=st.data(),
)
def test_mixture_is_the_sum_over_the_chosen(gates, shape, num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    layer = mixture(num_experts, top_k, gates)
    x = torch.randn(*shape, 6, dtype=torch.float64)
    out = layer(x)
    assert out.shape == x.shape
    for token, found in zip(x.reshape(-1, 6), out.reshape(-1, 6), strict=True):
        probabilities = layer.router(token).softmax(-1)
        best = probabilities.argsort(descending=True)[:top_k]
        total = probabilities[best].sum() if gates is renormalised_gates else 1.0
        expected = sum(probabilities[e] / total * layer.experts[e](token) for e in best)
        torch.testing.assert_close(found, expected)


def test_all_experts_make_the_dense_mixture_in_values_and_gradients():
    layer = mixture(num_experts=4, top_k=4)
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    weights = layer.router(x).softmax(-1)  # (N, E)
    dense = sum(weights[:, e, None] * layer.experts[e](x) for e in range(4))
    torch.testing.assert_close(layer(x), dense)
    parameters = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(layer(x).square().sum(), parameters),
        torch.autograd.grad(dense.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_order_of_experts_does_not_matter():
    layer, x = mixture(num_experts=5), torch.randn(8, 6, dtype=torch.float64)
    before = layer(x)
    order = torch.randperm(5)
    layer.router.weight = nn.Parameter(layer.router.weight[order])
    layer.experts = nn.ModuleList(layer.experts[e] for e in order)
    torch.testing.assert_close(layer(x), before)


def test_only_the_chosen_compute():
    layer, rows = mixture(num_experts=6, top_k=2), []
    for expert in layer.experts:
        expert.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    layer(torch.randn(1, 6, dtype=torch.float64))
    assert rows == [1, 1]
    rows.clear()
    layer(torch.randn(3, 5, 6, dtype=torch.float64))
    assert sum(rows) == 3 * 5 * 2


def test_positions_of_a_mixture_do_not_mix():
    layer, x = mixture(), torch.randn(2, 5, 6, dtype=torch.float64)
    y = x.clone()
    y[:, 2] += 1
    # How many tokens an expert sees together decides how its products are rounded.
    changed = ((layer(x) - layer(y)).abs() > 1e-12).any(-1)
    assert changed.tolist() == [[t == 2 for t in range(5)]] * 2


def test_one_renormalised_expert_leaves_the_router_without_gradient():
    x = torch.randn(9, 6, dtype=torch.float64)
    for gates, learns in ((renormalised_gates, False), (softmax_gates, True)):
        layer = mixture(top_k=1, gates=gates)
        layer(x).square().sum().backward()
        assert bool(layer.router.weight.grad.any()) == learns


def test_balancing_loss_is_one_for_even_use_and_e_for_a_collapse():
    even = torch.arange(8)[:, None] % 4
    assert load_balancing_loss(torch.zeros(8, 4), even).item() == pytest.approx(1.0)
    collapsed = torch.tensor([[50.0, 0, 0, 0]]).expand(8, 4)
    one = torch.zeros(8, 1, dtype=torch.long)
    assert load_balancing_loss(collapsed, one).item() == pytest.approx(4.0)


def test_balanced_gates_change_gradients_by_the_loss_and_nothing_else():
    x = torch.randn(9, 6, dtype=torch.float64)
    plain = mixture()
    other = mixture(gates=with_aux_loss(renormalised_gates, 0.3))
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(other(x), plain(x), rtol=0, atol=0)
    other(x).square().sum().backward()
    logits = plain.router(x)
    extra = 0.3 * load_balancing_loss(logits, renormalised_gates(logits, 2)[1])
    (plain(x).square().sum() + extra).backward()
    for (name, ours), theirs in zip(
        other.named_parameters(), plain.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    with torch.no_grad():
        assert other(x).isfinite().all()


def test_training_with_the_balancing_loss_spreads_the_tokens():
    shares = {}
    x = torch.randn(256, 6, dtype=torch.float64) + 1
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        layer = mixture(num_experts=4, top_k=1, gates=with_aux_loss(softmax_gates, weight))
        with torch.no_grad():
            layer.router.weight[0] += 1.0  # the first begins as everyone's favourite
        optimizer = torch.optim.SGD(layer.router.parameters(), lr=0.3)
        for _ in range(100):
            optimizer.zero_grad()
            (0.0 * layer(x).sum()).backward()
            optimizer.step()
        chosen = layer.router(x).argmax(-1)
        shares[weight] = torch.bincount(chosen, minlength=4).max().item() / len(x)
    assert shares[0.0] > 0.9 and shares[1.0] < 0.5


def test_with_loss_hands_its_input_on():
    x = torch.randn(3, requires_grad=True)
    y = torch.tensor(2.0, requires_grad=True)
    out = AddAuxiliaryLoss.apply(x, y * y)
    assert torch.equal(out, x)
    out.sum().backward()
    assert x.grad.tolist() == [1, 1, 1] and y.grad.item() == 4.0


def test_a_loss_that_is_scaled_scales_the_second_loss():
    def gradients(scales: list[float]) -> list[float]:
        x, y = (torch.tensor(v, requires_grad=True) for v in (3.0, 2.0))
        loss = AddAuxiliaryLoss.apply(x, y * y).square()
        with ExitStack() as stack:
            for scale in scales:
                loss = scale * loss
                stack.enter_context(loss_scale.times(scale))
            loss.backward()
        return [x.grad.item(), y.grad.item()]

    assert gradients([]) == [6, 4]
    assert gradients([1024.0]) == [6 * 1024, 4 * 1024]  # as a scaler for float16 does
    assert gradients([0.5, 0.25]) == [6 / 8, 4 / 8]
    with pytest.raises(OSError), loss_scale.times(3.0):
        raise OSError
    assert gradients([]) == [6, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model is 0: expected d_model >= 1"),
        ({"num_experts": 0}, "num_experts is 0: expected 1 <= top_k <= num_experts"),
        ({"top_k": 0}, "top_k is 0, num_experts is 4: expected 1 <= top_k <= num_experts"),
        ({"top_k": 5}, "top_k is 5, num_experts is 4: expected 1 <= top_k <= num_experts"),
    ],
)
def test_a_mixture_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfExperts(
            **{"d_model": 4, "num_experts": 4, "top_k": 2} | changes,
            make_expert=nn.Identity,
        )


def test_bad_input_to_a_mixture_and_its_parts_is_refused():
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\).*6"):
        mixture()(torch.randn(2, 5, dtype=torch.float64))
    for gates in (softmax_gates, renormalised_gates):
        with pytest.raises(ValueError, match=r"top_k is 4.*3"):
            gates(torch.randn(2, 3), 4)
    for logits, chosen, message in (
        ((2, 3), (3, 1), r"chosen has shape \(3, 1\) .*with N = 2"),
        ((0, 3), (0, 1), r"logits has shape \(0, 3\), .*with N \* k >= 1"),
        ((2, 2, 3), (2, 1), r"logits has shape \(2, 2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_balancing_loss(torch.randn(logits), torch.zeros(chosen, dtype=torch.long))
    with pytest.raises(
        ValueError,
        match=r"chosen.max\(\) is 3, logits has shape \(2, 3\): .*chosen.max\(\) < E",
    ):
        load_balancing_loss(torch.randn(2, 3), torch.tensor([[0], [3]]))
    for weight in (-1.0, math.nan):
        with pytest.raises(ValueError, match="weight is"):
            with_aux_loss(softmax_gates, weight)


def test_mixture_runs_where_experts_compute_in_fewer_bits():
    layer = mixture(gates=with_aux_loss(softmax_gates, 0.1)).float()
    x = torch.randn(2, 5, 6, requires_grad=True)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    out.sum().backward()
    assert out.dtype == torch.float32 and x.grad.isfinite().all()
    # bfloat16 keeps eight bits; a token may even choose another expert, so only most must be near.
    assert ((out - exact).abs() < 0.05 * exact.abs().max()).float().mean() > 0.8


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.02)],
)
def test_balancing_loss_computes_in_the_type_of_the_scores(dtype, tolerance):
    # A few roundings of each type; shares of a third have no exact form in any.
    logits = torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype).expand(3, 3)
    chosen = torch.tensor([[0], [0], [1]])
    loss = load_balancing_loss(logits, chosen)
    expected = 3 * (2 / 3 * math.e + 1 / 3) / (math.e + 2)
    assert loss.dtype == dtype and loss.item() == pytest.approx(expected, abs=tolerance)


def test_shared_and_routed_add_up():
    shared, routed = SwiGLU(d_model=6, d_ff=8).double(), mixture()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    both = SharedAndRouted(shared=shared, routed=routed)
    torch.testing.assert_close(both(x), shared(x) + routed(x), rtol=0, atol=0)
    assert len(list(both.parameters())) == len([*shared.parameters(), *routed.parameters()])


def test_only_experts_of_the_best_groups_are_left():
    # Sums of the two best: 0.9, 1.0 and 1.1; the largest score of all is in the worst group.
    scores = torch.tensor([[0.9, 0.0, 0.0, 0.5, 0.5, 0.1, 0.6, 0.5, 0.4]])
    left = within_best_groups(scores, 3, 2)
    assert left[0, :3].eq(-torch.inf).all() and left[0, 3:].equal(scores[0, 3:])
    assert within_best_groups(scores, 3, 3).equal(scores)


def test_the_bias_counts_in_the_choice_only():
    logits, bias = torch.randn(20, 6, dtype=torch.float64), torch.zeros(6)
    bias[4] = -10.0  # nobody's choice, although its weight could be the largest
    weights, chosen = sigmoid_gates(logits, 5, bias.double())
    scores = logits.sigmoid().gather(-1, chosen)
    assert not chosen.eq(4).any()
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True))
    _, without = sigmoid_gates(logits, 5)
    assert without.eq(4).any()


def test_groups_limit_where_a_token_goes():
    _, chosen = sigmoid_gates(torch.randn(50, 12), 4, groups=(4, 2))
    assert max(len(set(row)) for row in (chosen // 3).tolist()) == 2


def test_the_bias_moves_by_one_step_towards_balance_and_only_in_training():
    gates = BiasedGates(3, speed=0.5)
    logits = torch.tensor([[3.0, 2.0, 1.0]] * 3)
    with torch.no_grad():
        gates(logits, 2)
    gates.eval()(logits, 2)
    assert gates.bias.tolist() == [0, 0, 0]
    gates.train()(logits, 2)  # loads 3, 3, 0, where 2 is fair
    assert gates.bias.tolist() == [-0.5, -0.5, 0.5]
    assert not list(gates.parameters()) and "bias" in gates.state_dict()


def test_gates_with_a_bias_refuse_what_cannot_work():
    for groups in ((4, 1), (6, 1), (2, 3), (2, 0)):
        with pytest.raises(ValueError, match="num_groups is"):
            within_best_groups(torch.randn(2, 6), *groups)
    with pytest.raises(ValueError, match="top_k is 7"):
        sigmoid_gates(torch.randn(2, 6), 7)
    with pytest.raises(ValueError, match="speed is"):
        BiasedGates(4, -0.1)
