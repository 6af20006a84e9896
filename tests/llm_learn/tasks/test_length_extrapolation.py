"""The small text model: nothing reads ahead, windows hide what is far, and a loss is that of its place."""

import pytest
import torch

from llm_learn.positional_encoding import ALiBi, NoPositions, RoPE
from llm_learn.tasks import length_extrapolation
from llm_learn.tasks.length_extrapolation import (
    TextModel,
    long_windows,
    loss_by_position,
    trained_text_model,
)

SCHEMES = [NoPositions, lambda: ALiBi(4), lambda: RoPE(4)]


def small(make_scheme) -> TextModel:
    return TextModel(make_scheme(), vocab_size=11, d_model=16, context_length=8)


@pytest.mark.parametrize("make_scheme", SCHEMES)
def test_no_position_reads_later_ones(make_scheme):
    model, ids = small(make_scheme), torch.randint(11, (2, 9))
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % 11
    same = (model(ids) - model(changed)).abs().amax((0, 2)) < 1e-6
    assert model(ids).shape == (2, 9, 11)
    assert same[:5].all() and not same[5]


def test_a_window_hides_what_is_further_back():
    model, ids = small(NoPositions), torch.randint(11, (1, 12))
    changed = ids.clone()
    changed[:, 0] = (ids[:, 0] + 1) % 11
    # Two blocks of windows of three reach four positions back.
    same = (model(ids, window=3) - model(changed, window=3)).abs().amax((0, 2)) < 1e-6
    assert same.tolist() == [False] * 5 + [True] * 7
    torch.testing.assert_close(model(ids, window=12), model(ids))


def test_positions_may_be_given():
    model, ids = small(lambda: RoPE(4)).double(), torch.randint(11, (2, 6))
    places = torch.arange(6)
    torch.testing.assert_close(model(ids, positions=places), model(ids))
    assert (model(ids, positions=2 * places) - model(ids)).abs().max() > 1e-6


def test_losses_are_averaged_between_edges():
    model, text = small(lambda: RoPE(4)), torch.randint(11, (9, 7))
    x, y = text[:, :-1], text[:, 1:]
    found = loss_by_position(model, x, y, edges=(0, 1, 4, 6, 100))
    each = torch.nn.functional.cross_entropy(model(x).mT, y, reduction="none").mean(0)
    wanted = torch.stack([each[0], each[1:4].mean(), each[4:6].mean()])
    torch.testing.assert_close(found, wanted)


def test_windows_are_always_the_same():
    text = torch.arange(5000)
    x, y = long_windows(text, length=20)
    assert x.shape == (32, 20) and torch.equal(y, x + 1)
    assert torch.equal(long_windows(text, length=20)[0], x)


def test_training_learns_and_depends_on_the_seed_alone(monkeypatch):
    recipe = length_extrapolation.TrainConfig(
        max_steps=20, batch_size=4, learning_rate=4e-3, warmup_steps=2, eval_every=20
    )
    monkeypatch.setattr(length_extrapolation, "TEXT_MODEL_RECIPE", recipe)
    text = torch.arange(5).repeat(200)  # each id tells the next
    first, again, other = (
        trained_text_model(lambda: RoPE(16), seed, 5, text) for seed in (0, 0, 1)
    )
    x, y = long_windows(text, length=64)
    losses = [loss_by_position(model, x, y) for model in (first, again, other)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    assert losses[0].max() < 1.0 and not first.training


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"ids has shape \(2,\): expected \(B, T\)"):
        small(NoPositions)(torch.tensor([1, 2]))
