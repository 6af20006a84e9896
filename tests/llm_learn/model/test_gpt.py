"""GPT equals Hugging Face's GPT-2 with the same weights, never looks ahead, and learns."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from llm_learn.feedforward import MLP, MixtureOfExperts
from llm_learn.model import GPT, GPTConfig, Llama, LlamaConfig
from llm_learn.model.gpt import (
    Block,
    init_weights,
    init_weights_fan_in,
    replace_feedforward,
)

SHAPE = {
    "vocab_size": 37,
    "context_length": 16,
    "d_model": 24,
    "num_layers": 3,
    "num_heads": 3,
}


def tiny_gpt(**changes) -> GPT:
    return GPT(GPTConfig(**(SHAPE | changes)))


def gpt_and_gpt2() -> tuple[GPT, GPT2LMHeadModel]:
    """Ours and theirs with the same weights, large ones, so that every bias, norm and branch counts."""
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=37, n_positions=16, n_embd=24, n_layer=3, n_head=3,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim < 2), std=0.3)
    ours = tiny_gpt()
    weights = {
        "token_embedding": theirs.transformer.wte,
        "position_embedding": theirs.transformer.wpe,
        "norm": theirs.transformer.ln_f,
    }
    for i, block in enumerate(theirs.transformer.h):
        weights |= {
            f"blocks.{i}.norm_1": block.ln_1,
            f"blocks.{i}.norm_2": block.ln_2,
            f"blocks.{i}.attention.qkv": block.attn.c_attn,
            f"blocks.{i}.attention.out": block.attn.c_proj,
            f"blocks.{i}.mlp.up": block.mlp.c_fc,
            f"blocks.{i}.mlp.down": block.mlp.c_proj,
        }
    state = {}
    for name, module in weights.items():
        for key, value in module.named_parameters():
            is_conv_1d = type(module).__name__ == "Conv1D" and key == "weight"
            state[f"{name}.{key}"] = value.T if is_conv_1d else value
    ours.load_state_dict(state)  # strict: no parameter of ours is left out
    return ours.eval(), theirs.eval()


# Reference


@pytest.mark.parametrize("length", [1, 7, 16])
# Logits here are of size 5. float32 rounding through three blocks stays below 1e-4; float64 admits no other formula.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)]
)
def test_gpt_matches_gpt2_with_copied_weights(dtype, tolerance, length):
    ours, theirs = (model.to(dtype) for model in gpt_and_gpt2())
    ids = torch.randint(37, (2, length))
    with torch.no_grad():
        logits, reference = ours(ids), theirs(ids).logits
    assert logits.shape == (2, length, 37)
    assert reference.std() > 1  # else the bar would be easy
    assert (logits - reference).abs().max() <= tolerance


def test_loss_and_gradients_match_gpt2():
    ours, theirs = (model.double() for model in gpt_and_gpt2())
    ids = torch.randint(37, (2, 9))
    output = theirs(ids, labels=ids)  # shifts the labels itself
    loss = F.cross_entropy(ours(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    # Theirs rounds the logits to float32 before the loss, which is near 6.
    assert loss.item() == pytest.approx(output.loss.item(), abs=1e-5)
    F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    loss.backward()
    # The embedding is used twice, as input and as output, so its gradient is the sum of both.
    our_grad, their_grad = (
        ours.token_embedding.weight.grad,
        theirs.transformer.wte.weight.grad,
    )
    torch.testing.assert_close(our_grad, their_grad, rtol=0, atol=1e-10)  # float64
    for ours_block, their_block in zip(ours.blocks, theirs.transformer.h, strict=True):
        our_grad, their_grad = (
            ours_block.attention.qkv.weight.grad,
            their_block.attn.c_attn.weight.grad.T,
        )
        torch.testing.assert_close(our_grad, their_grad, rtol=0, atol=1e-10)  # float64


# Invariant


@pytest.mark.parametrize("position", [1, 5, 9])
def test_future_tokens_do_not_change_past_logits(position):
    model = tiny_gpt().eval()
    ids = torch.randint(37, (2, 10))
    other = ids.clone()
    other[:, position:] = (ids[:, position:] + 1) % 37
    before, after = model(ids), model(other)
    # float32: the past's numbers are the same, grouped the same; logits have size 0.1.
    torch.testing.assert_close(before[:, :position], after[:, :position], rtol=0, atol=1e-6)
    assert (before[:, position] - after[:, position]).abs().max() > 1e-3


def test_a_prefix_has_the_logits_that_it_has_inside_a_longer_text():
    model = tiny_gpt().eval()
    ids = torch.randint(37, (1, 12))
    # float32: products of another length may group sums differently; logits have size 0.1.
    torch.testing.assert_close(model(ids[:, :5]), model(ids)[:, :5], rtol=0, atol=1e-6)


def test_rows_of_a_batch_do_not_mix():
    model = tiny_gpt().eval()
    ids = torch.randint(37, (3, 6))
    # float32, as above.
    torch.testing.assert_close(model(ids)[1:2], model(ids[1:2]), rtol=0, atol=1e-6)


def test_positions_matter():
    model = tiny_gpt().eval()
    logits = model(torch.full((1, 4), 5))
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3


def test_a_fresh_gpt_guesses_uniformly():
    loss = F.cross_entropy(
        tiny_gpt()(torch.randint(37, (8, 16))).flatten(0, 1), torch.randint(37, (128,))
    )
    # Logits of a fresh model have standard deviation 0.02 * sqrt(24) = 0.1, which moves the loss by 0.01.
    assert loss.item() == pytest.approx(math.log(37), abs=0.05)


def test_initialization_is_that_of_gpt2():
    model = GPT(
        GPTConfig(vocab_size=500, context_length=100, d_model=96, num_layers=8, num_heads=4)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.ndim < 2:
            assert (parameter == 1).all(), name
        else:
            scaled = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.02 / 4 if scaled else 0.02  # 4 = sqrt(2 * 8 layers)
            # At least 9,216 draws: their standard deviation is known to 0.75 %, so 4 % is five times that.
            assert parameter.std().item() == pytest.approx(std, rel=0.04), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), (
                name
            )  # five errors


def test_the_output_layer_shares_the_embedding():
    model = tiny_gpt()
    V, T, C, L = 37, 16, 24, 3
    expected = V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C
    assert sum(p.numel() for p in model.parameters()) == expected


def test_each_branch_adds_to_the_residual_stream():
    block = Block(GPTConfig(**SHAPE)).eval()
    x = torch.randn(1, 4, 24)
    mask = torch.ones(4, 4, dtype=torch.bool)
    nn.init.zeros_(block.mlp.down.weight)
    nn.init.zeros_(block.mlp.down.bias)
    assert torch.equal(block(x, mask), x + block.attention(block.norm_1(x), mask))
    nn.init.zeros_(block.attention.out.weight)
    nn.init.zeros_(block.attention.out.bias)
    assert torch.equal(block(x, mask), x)


def test_dropout_acts_while_training_only():
    ids = torch.randint(37, (1, 8))
    model = tiny_gpt(dropout=0.5)
    plain = tiny_gpt()
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), plain.eval()(ids))
    assert torch.equal(plain.train()(ids), plain.eval()(ids))


def test_dropout_acts_on_the_embeddings_and_both_branches():
    model = tiny_gpt(dropout=0.5)
    calls = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(
                lambda module, x, y: calls.append((module.p, (y == 0).any().item()))
            )
    model(torch.randint(37, (1, 8)))
    assert calls == [(0.5, True)] * (1 + 2 * 3)


# Learning


def test_gpt_overfits_one_batch():
    model = tiny_gpt()
    ids = torch.randint(37, (2, 17))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # It starts at ln 37 = 3.6; only a model that reads its whole past can tell 32 random ids apart.
    assert loss.item() < 0.05


def test_gpt_learns_to_look_back():
    """The second half of each row repeats the first: solvable by attention alone, not by counting ids."""
    model = tiny_gpt(num_layers=2)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        half = torch.randint(12, (32, 4), generator=generator)
        ids = torch.cat([half, half], dim=1)
        logits = model(ids[:, :-1])[:, 3:]  # (32, 4, V), the guesses about the second half
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Guessing costs ln 12 = 2.5 nats; a fifth of it can only come from reading the first half.
    assert loss.item() < 0.5


# Bad input


@pytest.mark.parametrize(
    "field", ["vocab_size", "context_length", "d_model", "num_layers", "num_heads"]
)
@pytest.mark.parametrize("value", [0, -3])
def test_config_rejects_sizes_below_one(field, value):
    with pytest.raises(ValueError, match=rf"{field} is {value}: expected {field} >= 1"):
        GPTConfig(**(SHAPE | {field: value}))


def test_config_rejects_heads_that_do_not_divide_the_width():
    with pytest.raises(
        ValueError, match="d_model is 24, num_heads is 5: expected d_model % num_heads == 0"
    ):
        GPTConfig(**(SHAPE | {"num_heads": 5}))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_config_rejects_a_dropout_that_is_no_share(dropout):
    with pytest.raises(
        ValueError, match=rf"dropout is {dropout}: expected 0 <= dropout < 1"
    ):
        GPTConfig(**SHAPE, dropout=dropout)


def test_config_cannot_change_and_takes_no_positions():
    with pytest.raises(AttributeError):
        GPTConfig(**SHAPE).d_model = 8
    with pytest.raises(TypeError):
        GPTConfig(37, 16, 24, 3, 3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5,), r"ids has shape \(5,\) .*: expected integers \(B, T\)"),
        ((1, 2, 3), r"ids has shape \(1, 2, 3\) .*: expected integers \(B, T\)"),
        (
            (1, 17),
            r"ids has shape \(1, 17\), context_length is 16: .*1 <= T <= context_length",
        ),
        (
            (2, 0),
            r"ids has shape \(2, 0\), context_length is 16: .*1 <= T <= context_length",
        ),
    ],
)
def test_gpt_rejects_ids_of_another_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_gpt()(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("bad", [-1, 37, 1000])
def test_gpt_rejects_ids_outside_the_vocabulary(bad):
    low, high = min(0, bad), max(36, bad)
    message = rf"ids.min\(\) is {low}, ids.max\(\) is {high}, vocab_size is 37: expected"
    with pytest.raises(ValueError, match=message):
        tiny_gpt()(torch.tensor([[0, 36, bad]]))


def test_gpt_rejects_ids_that_are_no_integers():
    with pytest.raises(
        ValueError, match=r"ids has .*dtype torch.float32: expected integers"
    ):
        tiny_gpt()(torch.zeros(1, 3))


# Llama


def test_weights_of_a_part_are_drawn_as_the_model_draws_them():
    layer = MixtureOfExperts(
        d_model=64, num_experts=4, top_k=2, make_expert=lambda: MLP(d_model=64, d_ff=256)
    )
    init_weights(layer, num_layers=8)
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            std = (
                0.02 / 4 if name.endswith("down.weight") else 0.02
            )  # 4 = sqrt(2 * 8 layers)
            assert parameter.std().item() == pytest.approx(std, rel=0.1), name


@pytest.mark.parametrize("d_model", [64, 256])
def test_weights_by_fan_in_keep_the_size_of_signals_at_any_width(d_model):
    shape = {"vocab_size": 50, "context_length": 8, "d_ff": 3 * d_model, "num_layers": 8}
    torch.manual_seed(0)
    heads = {"num_heads": 4, "num_kv_heads": 4}
    model = Llama(LlamaConfig(**shape, **heads, d_model=d_model, tie_embeddings=False))
    init_weights_fan_in(model, num_layers=8)
    # At the beginning all ids are equally likely.
    assert not model(torch.randint(50, (2, 8))).any()
    # The least of these matrices has 3,200 numbers: their standard deviation is known to 1.3 %.
    assert model.token_embedding.weight.std().item() == pytest.approx(1, rel=0.07)
    for name, p in model.blocks.named_parameters():
        if p.ndim == 2:
            std = p.shape[1] ** -0.5
            if name.endswith(("out.weight", "down.weight")):
                std /= 4  # sqrt(2 * 8 layers)
            assert p.std().item() == pytest.approx(std, rel=0.07), name
        else:
            assert (p == 1).all(), name


def test_weights_by_fan_in_set_biases_to_zero():
    layer = MLP(d_model=16, d_ff=32)
    init_weights_fan_in(layer, num_layers=1)
    assert layer.up.weight.any() and not layer.up.bias.any()


def test_replaced_layers_are_used_and_drawn_like_the_model():
    config = GPTConfig(**SHAPE)
    wide = 5 * config.d_model
    model = GPT(config)
    same = replace_feedforward(model, lambda: MLP(d_model=config.d_model, d_ff=wide))
    assert same is model
    for block in model.blocks:
        assert block.mlp.up.weight.shape == (wide, config.d_model)
        assert not block.mlp.up.bias.any()
        std = 0.02 / math.sqrt(2 * config.num_layers)
        # 2,880 draws: their standard deviation is known to 1.3 %.
        assert block.mlp.down.weight.std().item() == pytest.approx(std, rel=0.07)
    ids = torch.randint(config.vocab_size, (2, 5))
    before = model(ids)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight *= 2
    assert (model(ids) - before).abs().max() > 1e-6
