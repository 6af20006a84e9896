"""Llama equals Hugging Face's with the same weights, never looks ahead, and learns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llm_learn.attention import document_mask
from llm_learn.model import Llama, LlamaConfig
from llm_learn.model.llama import RMSNorm
from llm_learn.reference.hugging_face import to_hugging_face

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
