"""Training takes the steps of a loop written with torch's own parts, repeats bit by bit, and learns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from llm_learn.data import get_batch
from llm_learn.feedforward import (
    MLP,
    AddAuxiliaryLoss,
    MixtureOfExperts,
    loss_scale,
    softmax_gates,
    with_aux_loss,
)
from llm_learn.model import GPT, GPTConfig
from llm_learn.optim import AdamW
from llm_learn.train import IGNORE_INDEX, TrainConfig, evaluate_loss, train, train_step

RECIPE = {"max_steps": 8, "batch_size": 2, "learning_rate": 1e-2}


def tiny_gpt(**changes) -> GPT:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 11,
        "context_length": 8,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
    }
    return GPT(GPTConfig(**(shape | changes)))


def seeded_generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Reference


# 0.05 clips every step, 1.0 some, 1e9 none.
@pytest.mark.parametrize("max_grad_norm", [0.05, 1.0, 1e9])
def test_training_matches_a_loop_of_torchs_parts(max_grad_norm):
    config = TrainConfig(
        max_steps=12, batch_size=3, learning_rate=2e-2, warmup_steps=3, floor=0.2, betas=(0.8, 0.95),
        weight_decay=0.7, max_grad_norm=max_grad_norm,
    )  # fmt: skip
    ids = torch.randint(11, (100,))
    ours, theirs = tiny_gpt().double(), tiny_gpt().double()
    history = train(ours, ids, None, config, generator=seeded_generator())

    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in theirs.parameters() if p.ndim == 2],
                "weight_decay": 0.7,
            },
            {
                "params": [p for p in theirs.parameters() if p.ndim == 1],
                "weight_decay": 0.0,
            },
        ],
        betas=(0.8, 0.95),
    )
    generator = seeded_generator()
    losses = []
    for step in range(12):
        cosine = 0.2 + 0.8 * (1 + math.cos(math.pi * (step - 3) / 8)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * ((step + 1) / 3 if step < 3 else cosine)
        x, y = get_batch(ids, 3, 8, generator=generator)
        loss = F.cross_entropy(theirs(x).transpose(1, 2), y)
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in theirs.parameters()]
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        if norm > max_grad_norm:
            for g in gradients:
                g.mul_(max_grad_norm / norm)
        optimizer.step()
        losses.append(loss.item())
    # float64. torch adds 1e-6 to the norm that it clips by, a relative 1e-6 of gradients that Adam rescales anyway.
    assert history.losses == pytest.approx(losses, abs=1e-7)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max() <= 1e-6, name


def test_evaluation_is_the_mean_over_all_windows():
    model = tiny_gpt().double().eval()
    ids = torch.randint(11, (8 * 5 + 4,))  # five windows; the last three ids fill none
    losses = []
    for start in range(0, 40, 8):
        logits = model(ids[None, start : start + 8])
        losses += F.cross_entropy(
            logits[0], ids[start + 1 : start + 9], reduction="none"
        ).tolist()
    assert len(losses) == 40
    assert evaluate_loss(model, ids) == pytest.approx(
        sum(losses) / 40, abs=1e-12
    )  # float64 sums


# Invariant


def gradients_after(model: GPT, batches, **settings) -> list[torch.Tensor]:
    """The gradients that a step leaves behind; it changes no weight."""
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, [still], batches, max_grad_norm=1e9, **settings)
    return [p.grad.clone() for p in model.parameters()]


@given(st.integers(1, 7), st.data())
@settings(deadline=None, max_examples=20)
def test_a_step_does_not_depend_on_how_its_batch_is_cut(batch_size, data):
    sizes = []
    while sum(sizes) < batch_size:
        sizes.append(data.draw(st.integers(1, batch_size - sum(sizes))))
    x, y = torch.randint(11, (2, batch_size, 8))
    whole = gradients_after(tiny_gpt().double(), [(x, y)])
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    cut = gradients_after(tiny_gpt().double(), parts)
    for a, b in zip(whole, cut, strict=True):
        assert (a - b).abs().max() < 1e-12  # float64: only the order of a sum differs


def test_targets_that_do_not_count_are_no_part_of_a_step():
    x, y = torch.randint(11, (2, 4, 8))
    counts = torch.rand(4, 8) < torch.tensor([1.0, 0.5, 0.2, 0.0])[:, None]
    y = y.where(counts, IGNORE_INDEX)
    model = tiny_gpt().double()
    F.cross_entropy(model(x)[counts], y[counts]).backward()
    parts = list(zip(x, y, strict=True))
    cut = gradients_after(tiny_gpt().double(), [(a[None], b[None]) for a, b in parts])
    for a, b in zip(model.parameters(), cut, strict=True):
        assert (a.grad - b).abs().max() < 1e-12


class WithZLoss(nn.Module):
    """A model whose training also lowers the mean square of log Z over all positions."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids):
        logits = self.model(ids)
        return AddAuxiliaryLoss.apply(logits, 0.7 * logits.logsumexp(-1).square().mean())


@pytest.mark.parametrize("sizes", [[4, 4], [1, 2, 5], [1] * 8])
def test_a_second_loss_that_is_a_mean_does_not_depend_on_how_the_batch_is_cut(sizes):
    x, y = torch.randint(11, (2, 8, 8))
    y[3, 2:], y[4] = (
        IGNORE_INDEX,
        IGNORE_INDEX,
    )  # some positions, and a whole window, are no targets
    model = tiny_gpt().double()
    logits = model(x)
    (
        F.cross_entropy(logits.flatten(0, 1), y.flatten())
        + 0.7 * logits.logsumexp(-1).square().mean()
    ).backward()
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    cut = gradients_after(WithZLoss(tiny_gpt().double()), parts)
    for p, ours in zip(model.parameters(), cut, strict=True):
        assert (p.grad - ours).abs().max() < 1e-12  # float64
    assert loss_scale.factor == 1.0


def router_gradients(num_parts: int, num_windows: int, weight: float) -> torch.Tensor:
    """Of the first block of a GPT whose blocks have four balanced experts."""
    torch.manual_seed(0)
    x, y = torch.randint(11, (2, num_windows, 8))
    model = tiny_gpt()
    for block in model.blocks:
        block.mlp = MixtureOfExperts(
            d_model=16, num_experts=4, top_k=1,
            make_expert=lambda: MLP(d_model=16, d_ff=16), gates=with_aux_loss(softmax_gates, weight),
        )  # fmt: skip
    model.double()
    size = num_windows // num_parts
    _ = gradients_after(model, list(zip(x.split(size), y.split(size), strict=True)))
    return model.blocks[0].mlp.router.weight.grad


@pytest.mark.parametrize("num_parts", [2, 8])
def test_a_balancing_loss_is_averaged_over_micro_batches(num_parts):
    # Each micro-batch has shares of its own. Where they are those of the whole batch, nothing else may differ.
    torch.manual_seed(0)
    x, y = torch.randint(11, (2, 1, 8)).repeat(1, 8, 1)
    grads = []
    for parts in (1, num_parts):
        torch.manual_seed(1)
        model = tiny_gpt()
        model.blocks[0].mlp = MixtureOfExperts(
            d_model=16, num_experts=4, top_k=1,
            make_expert=lambda: MLP(d_model=16, d_ff=16), gates=with_aux_loss(softmax_gates, 1.0),
        )  # fmt: skip
        batches = list(zip(x.split(8 // parts), y.split(8 // parts), strict=True))
        _ = gradients_after(model.double(), batches)
        grads.append(model.blocks[0].mlp.router.weight.grad)
    assert (grads[0] - grads[1]).abs().max() < 1e-12
    # Of different windows, the shares differ by chance, the less the larger the micro-batches are.
    whole = router_gradients(1, 256, 1.0)
    cut = router_gradients(num_parts, 256, 1.0)
    assert (whole - cut).norm() < 0.1 * whole.norm()


def test_a_step_forgets_the_gradients_that_it_finds():
    batch = tuple(torch.randint(11, (2, 3, 8)))
    model = tiny_gpt().double()
    first = gradients_after(model, [batch])
    second = gradients_after(model, [batch])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_step_returns_the_mean_loss_before_it():
    x, y = torch.randint(11, (2, 3, 8))
    model = tiny_gpt().double()
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
    optimizer = AdamW(model.parameters(), lr=0.1)
    parts = [(x[:1], y[:1]), (x[1:], y[1:])]
    assert train_step(model, [optimizer], parts) == pytest.approx(expected, abs=1e-12)
    assert train_step(model, [optimizer], parts) < expected  # it learned the batch


def test_a_steps_factor_is_on_the_first_learning_rate_of_every_group():
    model = tiny_gpt()
    parameters = list(model.parameters())
    optimizers = [
        AdamW([{"params": parameters[:3], "lr": 0.5}, {"params": parameters[3:5]}], lr=0.1),
        torch.optim.SGD(parameters[5:], lr=0.2),
    ]
    batch = tuple(torch.randint(11, (2, 3, 8)))
    for factor in (0.5, 0.25, 1.0):
        train_step(model, optimizers, [batch], factor=factor)
        learning_rates = [group["lr"] for o in optimizers for group in o.param_groups]
        assert learning_rates == pytest.approx([0.5 * factor, 0.1 * factor, 0.2 * factor])


def test_a_step_clips_the_gradient_of_the_whole_model():
    batch = tuple(torch.randint(11, (2, 3, 8)))
    model = tiny_gpt().double()
    full = gradients_after(model, [batch])
    norm = torch.cat([g.flatten() for g in full]).norm()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, [still], [batch], max_grad_norm=norm.item() / 4)
    for g, p in zip(full, model.parameters(), strict=True):
        # torch adds 1e-6 to the norm that it divides by.
        torch.testing.assert_close(p.grad, g / 4, rtol=1e-4, atol=0)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4, 9])
def test_micro_batches_change_memory_and_not_the_training(micro_batch_size):
    ids = torch.randint(11, (200,))
    whole, cut = tiny_gpt().double(), tiny_gpt().double()
    recipe = RECIPE | {"batch_size": 4}
    for model, size in ((whole, None), (cut, micro_batch_size)):
        config = TrainConfig(**recipe, micro_batch_size=size)
        train(model, ids, None, config, generator=seeded_generator())
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-6  # AdamW may blow up a rounding of a tiny gradient


def test_micro_batches_hold_every_window_once_in_order():
    config = TrainConfig(**(RECIPE | {"batch_size": 5}), micro_batch_size=2)
    x, y = torch.arange(10).view(5, 2), torch.arange(10, 20).view(5, 2)
    batches = config.micro_batches(x, y)
    assert [len(a) for a, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([a for a, _ in batches]), x)
    assert torch.equal(torch.cat([b for _, b in batches]), y)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size):
    model = tiny_gpt().double()
    ids = torch.randint(11, (41,))
    # float64: only the grouping of the sum differs.
    assert evaluate_loss(model, ids, batch_size=batch_size) == pytest.approx(
        evaluate_loss(model, ids, batch_size=5), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_in_few_bits_are_summed_in_float32(dtype):
    model = tiny_gpt(vocab_size=50).to(dtype)
    ids = torch.randint(50, (8 * 64 + 1,))
    by_size = [evaluate_loss(model, ids, batch_size=size) for size in (1, 8, 64)]
    exact = evaluate_loss(tiny_gpt(vocab_size=50), ids)
    # Logits are rounded, but not their sums: the kernels of larger products may round in another order.
    assert max(by_size) - min(by_size) < 1e-4
    assert by_size == pytest.approx([exact] * 3, abs=2e-3)
    x, y = ids[:-1].view(64, 8), ids[1:].view(64, 8)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    parts = list(zip(x.split(16), y.split(16), strict=True))
    assert train_step(model, [still], parts) == pytest.approx(by_size[0], abs=1e-4)


def test_training_evaluates_as_many_windows_at_a_time_as_it_trains_on():
    sizes = []
    model = tiny_gpt()
    model.register_forward_hook(lambda module, args, _: sizes.append(len(args[0])))
    config = TrainConfig(**RECIPE | {"batch_size": 4}, micro_batch_size=2)
    ids = torch.randint(11, (200,))
    train(model, ids, ids, config, generator=seeded_generator())
    assert max(sizes) == 2


def test_evaluation_needs_one_window_and_its_last_target():
    model = tiny_gpt()
    ids = torch.randint(11, (9,))
    expected = F.cross_entropy(model(ids[None, :8])[0], ids[1:]).item()
    assert evaluate_loss(model, ids) == pytest.approx(
        expected, abs=1e-6
    )  # float32 mean of eight


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_runs_without_dropout_and_leaves_the_mode_as_it_was(training):
    model = tiny_gpt(dropout=0.5).train(training)
    ids = torch.randint(11, (41,))
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert evaluate_loss(model, ids) == evaluate_loss(model, ids)
    assert all(module.training is training for module in model.modules())
    assert all(
        torch.equal(p, before[name]) and p.grad is None
        for name, p in model.named_parameters()
    )


def test_evaluation_that_fails_leaves_the_mode_as_it_was():
    model = tiny_gpt().train()
    with pytest.raises(ValueError, match=r"ids.max\(\) is 99, vocab_size is"):
        evaluate_loss(model, torch.full((20,), 99))
    assert model.training


def test_the_same_seed_gives_the_same_history_bit_by_bit():
    ids, val_ids = torch.randint(11, (200,)), torch.randint(11, (50,))
    config = TrainConfig(**RECIPE, eval_every=3)
    histories, models = [], []
    for seed in (5, 5, 6):
        models.append(tiny_gpt())
        histories.append(
            train(models[-1], ids, val_ids, config, generator=seeded_generator(seed))
        )
    assert histories[0] == histories[1]
    assert all(
        torch.equal(a, b)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)
    )
    assert histories[0].losses != histories[2].losses


def test_evaluations_come_before_the_first_update_regularly_and_at_the_end():
    ids, val_ids = torch.randint(11, (200,)), torch.randint(11, (50,))
    model = tiny_gpt()
    before = evaluate_loss(model, val_ids)
    calls = []
    history = train(
        model, ids, val_ids, TrainConfig(**RECIPE, eval_every=3), generator=seeded_generator(),
        on_eval=lambda step, loss: calls.append((step, loss)),
    )  # fmt: skip
    assert history.eval_steps == [0, 3, 6, 8] and len(history.losses) == 8
    assert calls == list(zip(history.eval_steps, history.eval_losses, strict=True))
    assert history.eval_losses[0] == before and history.eval_losses[-1] == evaluate_loss(
        model, val_ids
    )
    exact = train(
        tiny_gpt(),
        ids,
        val_ids,
        TrainConfig(**RECIPE, eval_every=4),
        generator=seeded_generator(),
    )
    assert exact.eval_steps == [0, 4, 8]
    # Evaluation draws nothing: the updates are the same whenever it comes.
    assert exact.losses == history.losses
    none = train(tiny_gpt(), ids, None, TrainConfig(**RECIPE), generator=seeded_generator())
    assert none.eval_steps == none.eval_losses == [] and none.losses == history.losses


def test_training_uses_dropout():
    ids, val_ids = torch.randint(11, (200,)), torch.randint(11, (50,))
    modes = []
    model = tiny_gpt(dropout=0.5).eval()
    model.register_forward_hook(
        lambda module, *_: modes.append((module.training, torch.is_grad_enabled()))
    )
    train(
        model,
        ids,
        val_ids,
        TrainConfig(**(RECIPE | {"max_steps": 2}), eval_every=1),
        generator=seeded_generator(),
    )
    evaluation, update = (False, False), (True, True)
    assert modes == [evaluation, update, evaluation, update, evaluation]


def test_any_model_with_a_context_length_trains():
    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = GPTConfig(
                vocab_size=11, context_length=4, d_model=1, num_layers=1, num_heads=1
            )
            self.table = nn.Embedding(11, 11)

        def forward(self, ids):
            return self.table(ids)

    ids = torch.arange(11).repeat(10)
    config = TrainConfig(max_steps=100, batch_size=8, learning_rate=0.3, weight_decay=0.0)
    history = train(Bigram(), ids, None, config, generator=seeded_generator())
    # Each id has one successor, so a table can be certain.
    assert history.losses[-1] < 0.05


# Learning


def test_training_overfits_one_batch():
    ids = torch.randint(11, (9,))  # one window only
    config = TrainConfig(max_steps=80, batch_size=1, learning_rate=1e-2, weight_decay=0.0)
    history = train(tiny_gpt(), ids, ids, config, generator=seeded_generator())
    # It starts at ln 11 = 2.4; the model can know eight ids by heart.
    assert history.losses[0] > 2.0
    assert history.losses[-1] < 0.05 and history.eval_losses[-1] < 0.05


def test_training_leaves_the_loss_lower():
    ids = (
        torch.arange(600) * torch.arange(600)
    ) % 11  # squares modulo 11 repeat: there is something to learn
    history = train(
        tiny_gpt(), ids[:500], ids[500:], TrainConfig(max_steps=60, batch_size=8, learning_rate=5e-3),
        generator=seeded_generator(),
    )  # fmt: skip
    # The sequence is determined by two ids, so far more than half of the loss can go.
    assert history.eval_losses[-1] < 0.5 * history.eval_losses[0]


# Bad input


@pytest.mark.parametrize("field", ["max_steps", "batch_size", "eval_every"])
@pytest.mark.parametrize("value", [0, -1])
def test_config_rejects_counts_below_one(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}: expected {field} >= 1"):
        TrainConfig(**(RECIPE | {field: value}))


def test_config_rejects_a_micro_batch_below_one():
    with pytest.raises(
        ValueError,
        match=r"micro_batch_size is 0: expected .* is None or micro_batch_size >= 1",
    ):
        TrainConfig(**RECIPE, micro_batch_size=0)


def test_a_step_needs_a_batch():
    model = tiny_gpt()
    with pytest.raises(
        ValueError, match=r"len\(batches\) is 0: expected len\(batches\) >= 1"
    ):
        train_step(model, [AdamW(model.parameters(), lr=0.1)], [])


@pytest.mark.parametrize("field", ["learning_rate", "max_grad_norm"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_config_rejects_rates_that_are_not_above_zero(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}: expected {field} > 0"):
        TrainConfig(**(RECIPE | {field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("warmup_steps", -1),
        ("warmup_steps", 8),
        ("floor", -0.1),
        ("floor", 1.5),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
    ],
)
def test_config_rejects_what_its_optimizer_and_schedule_reject(field, value):
    with pytest.raises(ValueError, match=rf"{field} is "):
        TrainConfig(**(RECIPE | {field: value}))


def test_config_takes_keywords_only_and_cannot_change():
    with pytest.raises(TypeError):
        TrainConfig(8, 2, 1e-2)
    with pytest.raises(AttributeError):
        TrainConfig(**RECIPE).max_steps = 9


@pytest.mark.parametrize("length", [0, 1, 8])
def test_texts_shorter_than_a_window_are_rejected(length):
    ids = torch.zeros(length, dtype=torch.long)
    with pytest.raises(
        ValueError,
        match=rf"ids has shape \({length},\), context_length is 8: .*N > context_length",
    ):
        evaluate_loss(tiny_gpt(), ids)
    with pytest.raises(
        ValueError,
        match=rf"context_length is 8, ids has shape \({length},\): .*context_length < N",
    ):
        train(tiny_gpt(), ids, None, TrainConfig(**RECIPE), generator=seeded_generator())


def test_evaluation_rejects_a_batch_size_below_one():
    with pytest.raises(ValueError, match="batch_size is 0: expected batch_size >= 1"):
        evaluate_loss(tiny_gpt(), torch.zeros(20, dtype=torch.long), batch_size=0)


def test_evaluation_rejects_a_text_that_is_no_vector():
    with pytest.raises(ValueError, match=r"ids has shape \(20, 2\)"):
        evaluate_loss(tiny_gpt(), torch.zeros(20, 2, dtype=torch.long))


def test_a_step_without_any_target_is_refused():
    x, y = torch.zeros(2, 1, 4, dtype=torch.long)
    model = tiny_gpt()
    with pytest.raises(ValueError, match="batches has no target"):
        train_step(model, [AdamW(model.parameters(), lr=0.1)], [(x, y + IGNORE_INDEX)])
