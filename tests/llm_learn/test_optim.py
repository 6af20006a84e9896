"""AdamW takes torch's steps; the schedule is the formula; the groups hold each parameter once."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm_learn import optim
from llm_learn.model import GPT, GPTConfig, Llama, LlamaConfig
from llm_learn.optim import (
    AdamW,
    Muon,
    cosine_schedule,
    decay_groups,
    muon_and_adamw,
    mup_parameter_groups,
    wsd_schedule,
    zeropower_via_newtonschulz,
)


def make_parameters(dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [
        nn.Parameter(torch.randn(s, generator=generator, dtype=dtype))
        for s in [(3, 4), (5,), (2, 2, 2), ()]
    ]


def make_gpt() -> GPT:
    return GPT(
        GPTConfig(vocab_size=7, context_length=4, d_model=8, num_layers=2, num_heads=2)
    )


def assert_same_steps(ours, theirs, our_optimizer, their_optimizer, tolerance) -> None:
    """Thirty updates with the same gradients, of different sizes, and learning rates that change."""
    peak = our_optimizer.param_groups[0]["lr"]
    for step in range(30):
        for group in our_optimizer.param_groups + their_optimizer.param_groups:
            group["lr"] = peak / (1 + step % 4)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = torch.randn(a.shape, dtype=a.dtype) * 10.0 ** (i - 1)
            if i == len(ours) - 1 and step < 10:
                a.grad = None  # its own count of steps starts later
            b.grad = None if a.grad is None else a.grad.clone()
        our_optimizer.step()
        their_optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() <= tolerance, step


# Reference


# float64: thirty steps of a few roundings each. float32: the same operations in the same order; a fused
# multiply-add may round a step differently by 6e-8 of a weight of size 1, thirty times.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)]
)
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1e-2},
        {"lr": 3e-3, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        {"lr": 1e-2, "betas": (0.0, 0.0), "weight_decay": 0.0},
    ],
)
def test_adamw_matches_torch_at_every_step(settings, dtype, tolerance):
    ours, theirs = make_parameters(dtype), make_parameters(dtype)
    assert_same_steps(
        ours,
        theirs,
        AdamW(ours, **settings),
        torch.optim.AdamW(theirs, **settings),
        tolerance,
    )


def test_adamw_matches_torch_with_groups():
    ours, theirs = make_gpt().double(), make_gpt().double()
    theirs.load_state_dict(ours.state_dict())
    our_optimizer = AdamW(
        decay_groups(ours.named_parameters(), 0.5), lr=1e-2, betas=(0.9, 0.95)
    )
    their_optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in theirs.parameters() if p.ndim == 2],
                "weight_decay": 0.5,
            },
            {
                "params": [p for p in theirs.parameters() if p.ndim == 1],
                "weight_decay": 0.0,
                "lr": 1e-3,
            },
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    our_optimizer.param_groups[1]["lr"] = 1e-3
    for _ in range(5):
        ids = torch.randint(7, (2, 4))
        for model, optimizer in ((ours, our_optimizer), (theirs, their_optimizer)):
            optimizer.zero_grad()
            model(ids).logsumexp(-1).sum().backward()
            optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max() <= 1e-12, name  # float64, five steps


SHAPES = [(4, 4), (4, 4), (9, 3), (3, 9), (1, 5)]


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1e-2},
        {"lr": 3e-2, "momentum": 0.5, "weight_decay": 0.3},
        {"lr": 1e-2, "momentum": 0.0},
    ],
)
def test_muon_matches_torch_at_every_step(settings, monkeypatch):
    # torch computes the iterations in bfloat16, one matrix at a time: the same operations in the same order.
    monkeypatch.setattr(
        optim,
        "zeropower_via_newtonschulz",
        lambda m: torch.cat([zeropower_via_newtonschulz(x[None].bfloat16()) for x in m]).to(
            m.dtype
        ),
    )
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    # A product in bfloat16 may round one number of a step to its neighbour, 0.8 % of it.
    tolerance = 0.008 * settings["lr"]
    assert_same_steps(
        ours,
        theirs,
        Muon(ours, **settings),
        torch.optim.Muon(theirs, **settings),
        tolerance,
    )


def test_muon_in_float32_is_within_bfloat16_of_torch():
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(16, 48, generator=generator)
    ours, theirs = (nn.Parameter(torch.zeros(16, 48)) for _ in range(2))
    ours.grad = theirs.grad = matrix
    Muon([ours], lr=1.0).step()
    torch.optim.Muon([theirs], lr=1.0).step()
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert 1e-4 < difference < 0.05  # eight bits of mantissa, through five iterations


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_orthogonalised_keeps_singular_vectors_and_levels_values(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    (result,) = zeropower_via_newtonschulz(matrix[None])
    new = u.mT @ result @ vt.mT  # diagonal, if the vectors are kept
    assert (new - new.diagonal().diag()).abs().max() < 1e-9
    level = values / values.norm()
    # The polynomial, value by value.
    for _ in range(5):
        level = 3.4445 * level - 4.7750 * level**3 + 2.0315 * level**5
    assert (new.diagonal() - level).abs().max() < 1e-9


def test_orthogonalised_ends_in_the_range_that_it_promises():
    values = torch.cat([torch.linspace(0.002, 0.05, 300), torch.linspace(0.05, 0.7, 300)])
    for value in values.double():
        # Two singular values, the second so large that the norm is 1.
        pair = torch.stack([value, (1 - value**2).sqrt()])
        (result,) = zeropower_via_newtonschulz(torch.diag(pair)[None])
        assert ((result.diagonal() >= 0.68) & (result.diagonal() <= 1.21)).all()


def test_orthogonalised_does_not_care_how_large_gradients_are():
    matrix = torch.randn(1, 3, 4, dtype=torch.float64)
    for scale in (1e-5, 1e5):
        difference = zeropower_via_newtonschulz(
            scale * matrix
        ) - zeropower_via_newtonschulz(matrix)
        assert difference.abs().max() < 1e-9


def test_orthogonalised_takes_zeros():
    assert torch.equal(
        zeropower_via_newtonschulz(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4)
    )


def test_muon_learns_a_matrix():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 4, generator=generator)
    weight = nn.Parameter(torch.zeros(6, 4))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 200)
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert (weight - target).abs().max() < 0.05


def test_muon_leaves_what_has_no_gradient():
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    weights[0].grad = torch.eye(2)
    Muon(weights, lr=0.1).step()
    assert torch.equal(weights[1], torch.ones(2, 2)) and not torch.equal(*weights)


def test_muon_goes_on_from_its_state():
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(6, 3, 3, generator=generator)
    whole, resumed = (nn.Parameter(torch.zeros(3, 3)) for _ in range(2))
    first, second = Muon([whole], lr=0.1), Muon([resumed], lr=0.1)
    for step, grad in enumerate(grads):
        if step == 3:
            state = copy.deepcopy(second.state_dict())
            second = Muon([resumed], lr=0.1)
            second.load_state_dict(state)
        whole.grad, resumed.grad = grad, grad
        first.step()
        second.step()
    assert torch.equal(whole, resumed)


@given(st.integers(1, 60), st.data(), st.floats(0, 1))
def test_schedule_matches_the_formula(max_steps, data, floor):
    warmup = data.draw(st.integers(0, max_steps - 1))
    last = max_steps - 1
    for step in range(max_steps + 3):
        if step < warmup:
            expected = (step + 1) / warmup
        elif step >= last > warmup:
            expected = floor
        elif last == warmup:
            expected = 1.0 if step == warmup else floor
        else:
            expected = (
                floor
                + (1 - floor)
                * (1 + math.cos(math.pi * (step - warmup) / (last - warmup)))
                / 2
            )
        got = cosine_schedule(step, max_steps=max_steps, warmup_steps=warmup, floor=floor)
        assert got == pytest.approx(expected, abs=1e-12)  # float64, one cosine


def test_schedule_end_points():
    factors = [
        cosine_schedule(s, max_steps=21, warmup_steps=4, floor=0.2) for s in range(21)
    ]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    # Exact but for the rounding of one cosine.
    assert factors[4] == pytest.approx(1.0, abs=1e-12)
    assert factors[12] == pytest.approx(0.6, abs=1e-12)  # half-way between 1 and 0.2
    assert factors[20] == pytest.approx(0.2, abs=1e-12)
    assert cosine_schedule(0, max_steps=10) == 1.0
    assert cosine_schedule(9, max_steps=10) == pytest.approx(0.1, abs=1e-12)
    assert cosine_schedule(10**6, max_steps=10) == pytest.approx(0.1, abs=1e-12)
    assert cosine_schedule(0, max_steps=1) == 1.0


def test_wsd_end_points():
    settings = {"max_steps": 20, "warmup_steps": 4, "decay_steps": 5}
    factors = [wsd_schedule(step, **settings) for step in range(22)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:16] == [1.0] * 12
    assert factors[16:20] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert factors[20:] == [0.0, 0.0]
    assert wsd_schedule(0, max_steps=1, decay_steps=1) == 1.0


# Invariant


@given(st.integers(1, 60), st.data())
def test_wsd_rises_stays_and_falls_by_equal_parts(max_steps, data):
    decay = data.draw(st.integers(1, max_steps))
    warmup = data.draw(st.integers(0, max_steps - decay))
    settings = {"max_steps": max_steps, "warmup_steps": warmup, "decay_steps": decay}
    factors = [wsd_schedule(step, **settings) for step in range(max_steps)]
    assert factors[:warmup] == sorted(factors[:warmup])
    assert all(f == 1 for f in factors[max(0, warmup - 1) : max_steps - decay + 1])
    falls = [a - b for a, b in zip(factors[-decay:], factors[1 - decay :], strict=False)]
    assert all(fall == pytest.approx(1 / decay) for fall in falls[: decay - 1])
    assert factors[-1] == pytest.approx(1 / decay)


@given(st.integers(1, 30), st.data())
def test_wsd_runs_of_two_lengths_share_their_stable_part(decay, data):
    warmup, stable = data.draw(st.integers(0, 10)), data.draw(st.integers(0, 20))
    short = warmup + stable + decay
    long = short + data.draw(st.integers(0, 30))
    for step in range(warmup + stable):
        a, b = (
            wsd_schedule(step, max_steps=n, warmup_steps=warmup, decay_steps=decay)
            for n in (short, long)
        )
        assert a == b


@given(st.integers(2, 60), st.data(), st.floats(0, 1))
def test_schedule_rises_then_falls_and_wastes_no_step(max_steps, data, floor):
    warmup = data.draw(st.integers(0, max_steps - 1))
    factors = [
        cosine_schedule(s, max_steps=max_steps, warmup_steps=warmup, floor=floor)
        for s in range(max_steps)
    ]
    assert all(0 < f <= 1 for f in factors[:-1])
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


def test_decay_groups_hold_every_parameter_once():
    model = make_gpt()
    decayed, kept = decay_groups(model.named_parameters(), 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {p: name for name, p in model.named_parameters()}
    assert sorted(names[p] for p in decayed["params"] + kept["params"]) == sorted(
        names.values()
    )
    assert all("norm" in names[p] or names[p].endswith("bias") for p in kept["params"])
    assert all(
        names[p].endswith("weight") and "norm" not in names[p] for p in decayed["params"]
    )


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = make_gpt()
    muon, adamw = muon_and_adamw(model, muon_learning_rate=0.3, adamw_learning_rate=0.2)
    assert (type(muon), type(adamw)) == (Muon, AdamW)
    names = {p: name for name, p in model.named_parameters()}
    inside, outside = (
        [names[p] for group in optimizer.param_groups for p in group["params"]]
        for optimizer in (muon, adamw)
    )
    assert sorted(inside + outside) == sorted(names.values())
    for name in inside:
        assert name.startswith("blocks.") and name.endswith("weight"), name
        assert "norm" not in name, name
    assert "token_embedding.weight" in outside
    assert not [
        n
        for n in outside
        if n.startswith("blocks.") and "norm" not in n and n.endswith("weight")
    ]
    for optimizer, learning_rate in ((muon, 0.3), (adamw, 0.2)):
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (learning_rate, 0.0)
    assert adamw.param_groups[0]["betas"] == (0.9, 0.99)


def test_muon_and_adamw_reject_a_model_without_blocks():
    with pytest.raises(
        ValueError, match=r"model is Linear\(.*: expected hasattr\(model, 'blocks'\)"
    ):
        muon_and_adamw(nn.Linear(2, 2), muon_learning_rate=0.1, adamw_learning_rate=0.1)


def test_width_groups_hold_every_parameter_once_and_slow_down_what_sums_over_the_width():
    shape = {"vocab_size": 11, "context_length": 8, "d_model": 64, "d_ff": 96}
    heads = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    model = Llama(LlamaConfig(**shape, **heads, tie_embeddings=False))
    learning_rates = {}
    for group in mup_parameter_groups(model, 0.5, base_width=16):
        for p in group["params"]:
            assert p not in learning_rates
            learning_rates[p] = group["lr"]
    for name, p in model.named_parameters():
        as_it_is = "norm" in name or name == "token_embedding.weight"
        assert learning_rates.pop(p) == (0.5 if as_it_is else 0.125), name
    assert not learning_rates


def test_width_groups_reject_a_width_that_is_none():
    with pytest.raises(ValueError, match="base_width is 0: expected base_width >= 1"):
        mup_parameter_groups(make_gpt(), 0.1, base_width=0)
    slowest, _ = mup_parameter_groups(make_gpt(), 0.1, base_width=1)
    assert slowest["lr"] == 0.1 / make_gpt().config.d_model


def test_the_first_step_has_the_size_of_the_learning_rate_whatever_the_gradient():
    for scale in (1e-3, 1.0, 1e3):
        p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        p.grad = scale * torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
        AdamW([p], lr=0.1, weight_decay=0).step()
        # eps (1e-8) against the smallest gradient (1e-3) takes away 1e-5 of the step.
        torch.testing.assert_close(p.data, -0.1 * p.grad.sign(), rtol=2e-5, atol=0)


def test_weight_decay_is_decoupled_from_the_gradient():
    p = nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
    optimizer = AdamW([p], lr=0.1, weight_decay=0.5)
    for _ in range(4):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    expected = torch.tensor([2.0, -3.0], dtype=torch.float64) * (1 - 0.1 * 0.5) ** 4
    torch.testing.assert_close(
        p.data, expected, rtol=1e-14, atol=0
    )  # four float64 products


def test_a_parameter_without_gradient_stays():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    a.grad = torch.ones(2)
    AdamW([a, b], lr=0.1).step()
    assert torch.equal(b.data, torch.ones(2)) and not torch.equal(a.data, torch.ones(2))
    AdamW([b], lr=0.1).step()
    assert torch.equal(b.data, torch.ones(2))


def test_a_restored_optimizer_goes_on_as_if_never_stopped():
    parameters = make_parameters(torch.float32)
    optimizer = AdamW(parameters, lr=0.1)

    def steps(parameters, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for p in parameters * 3:
            p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    steps(parameters, optimizer, 0)
    restored = [nn.Parameter(p.detach().clone()) for p in parameters]
    other = AdamW(restored, lr=5.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, r in zip(parameters, restored, strict=True):
        r.grad = p.grad.clone()
    steps(parameters, optimizer, 1)
    steps(restored, other, 1)
    # Exactly: the same operations on the same numbers.
    assert all(torch.equal(p, r) for p, r in zip(parameters, restored, strict=True))


# Learning


def test_adamw_finds_the_minimum_of_a_quadratic():
    p = nn.Parameter(torch.tensor([5.0, -4.0]))
    optimizer = AdamW([p], lr=0.3, weight_decay=0)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.3 * cosine_schedule(
            step, max_steps=200, floor=0.0
        )
        optimizer.zero_grad()
        ((p - torch.tensor([1.0, 2.0])) ** 2 * torch.tensor([1.0, 100.0])).sum().backward()
        optimizer.step()
    # The steps shrink to zero, so it settles; two curvatures, 1 and 100, are no obstacle to Adam.
    torch.testing.assert_close(p.data, torch.tensor([1.0, 2.0]), rtol=0, atol=1e-2)


# Bad input


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_adamw_rejects_negative_settings(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}: expected {name} >= 0"):
        AdamW([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | {name: value}))


@pytest.mark.parametrize(
    "betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, 1.5), (0.9,), (0.9, 0.9, 0.9)]
)
def test_adamw_rejects_betas_that_average_nothing(betas):
    message = r"betas is \(.*: expected all\(0 <= beta < 1 for beta in betas\)"
    if len(betas) != 2:
        message = rf"len\(betas\) is {len(betas)}: expected len\(betas\) == 2"
    with pytest.raises(ValueError, match=message):
        AdamW([nn.Parameter(torch.ones(1))], lr=0.1, betas=betas)


def test_decay_groups_reject_a_negative_decay():
    with pytest.raises(ValueError, match=r"weight_decay is -0\.1"):
        decay_groups(make_gpt().named_parameters(), -0.1)


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_schedule_rejects_a_warm_up_that_does_not_fit(warmup):
    with pytest.raises(
        ValueError,
        match=f"warmup_steps is {warmup}, max_steps is 10: expected 0 <= warmup_steps < max_steps",
    ):
        cosine_schedule(0, max_steps=10, warmup_steps=warmup)


def test_schedule_rejects_what_is_no_step():
    with pytest.raises(ValueError, match="step is -1: expected step >= 0"):
        cosine_schedule(-1, max_steps=10)
    with pytest.raises(
        ValueError, match="max_steps is 0: expected 0 <= warmup_steps < max_steps"
    ):
        cosine_schedule(0, max_steps=0)


@pytest.mark.parametrize(("decay", "warmup"), [(0, 0), (-1, 0), (11, 0), (6, 5), (5, -1)])
def test_wsd_rejects_parts_that_do_not_fit(decay, warmup):
    message = f"decay_steps is {decay}, max_steps is 10, warmup_steps is {warmup}: expected 1 <= decay_steps <= max_steps"
    if warmup < 0:
        message = f"warmup_steps is {warmup}: expected warmup_steps >= 0"
    with pytest.raises(ValueError, match=message):
        wsd_schedule(0, max_steps=10, warmup_steps=warmup, decay_steps=decay)
    with pytest.raises(ValueError, match="step is -1: expected step >= 0"):
        wsd_schedule(-1, max_steps=10, decay_steps=5)


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_schedule_rejects_a_floor_that_is_no_share(floor):
    with pytest.raises(ValueError, match=f"floor is {floor}: expected 0 <= floor <= 1"):
        cosine_schedule(0, max_steps=10, floor=floor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0: expected lr >= 0"),
        ({"lr": float("nan")}, "lr is nan"),
        (
            {"lr": 0.1, "momentum": 1.0},
            "momentum is 1.0: expected 0 <= momentum < 1",
        ),
        ({"lr": 0.1, "weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_muon_rejects_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.zeros(2, 2))], **settings)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_muon_rejects_what_is_no_matrix(shape):
    message = rf"params has shape {re.escape(str(shape))}: expected \(rows, columns\)"
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.zeros(shape))], lr=0.1)
