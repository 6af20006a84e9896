"""Attention equals torch's, forward and backward, and keeps the promises that masks make."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from llm_learn.attention import (
    GroupedQueryAttention,
    KVCache,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    scaled_dot_product_attention,
)
from llm_learn.positional_encoding import apply_rope, rope_frequencies, rope_tables

# (B, H, T, S, D): one of each, square, more keys than queries, more queries than keys.
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 5, 8), (2, 2, 3, 7, 4), (1, 2, 6, 2, 5)]
# float64: rounding is 2e-16 and sums have tens of terms, so 1e-10 leaves room and still admits no other formula.
# float32: rounding is 6e-8; gradients pass through three matrix products more than outputs do.
TOLERANCES = [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-6, 1e-5)]
MASKS = ["none", "causal", "ragged", "per head", "empty rows"]
# A causal mask needs at least as many keys as queries.
CASES = [
    (kind, shape)
    for kind in MASKS
    for shape in SHAPES
    if kind != "causal" or shape[2] <= shape[3]
]


def make_mask(kind: str, B: int, H: int, T: int, S: int) -> torch.Tensor | None:
    if kind == "none":
        return None
    if kind == "causal":
        return causal_mask(T, S)
    if kind == "ragged":  # each row of the batch has its own number of keys
        lengths = torch.randint(1, S + 1, (B,))
        return (torch.arange(S) < lengths[:, None])[:, None, None, :]  # (B, 1, 1, S)
    mask = torch.rand(B, H, T, S) < 0.5
    mask[..., 0] = True
    if kind == "empty rows":
        mask[:, :, -1] = False
    return mask


def largest_difference(ours, reference, *, relative: bool) -> float:
    scale = reference.abs().max().item() if relative else 1.0
    return (ours - reference).abs().max().item() / (scale or 1.0)


# Reference


@pytest.mark.parametrize(("dtype", "forward", "backward"), TOLERANCES)
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_attention_matches_torch_sdpa(kind, shape, dtype, forward, backward):
    B, H, T, S, D = shape
    q, k, v = (torch.randn(B, H, n, D, dtype=dtype, requires_grad=True) for n in (T, S, S))
    mask = make_mask(kind, B, H, T, S)
    ours = scaled_dot_product_attention(q, k, v, mask)
    reference = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    direction = torch.randn_like(ours)
    our_grads = torch.autograd.grad(ours, (q, k, v), direction)
    reference_grads = torch.autograd.grad(reference, (q, k, v), direction)
    relative = dtype == torch.float32
    assert largest_difference(ours, reference, relative=relative) <= forward
    # Relative to the largest gradient of all three: with one key, those of q and k are zero up to rounding.
    scale = max(g.abs().max().item() for g in reference_grads) if relative else 1.0
    for ours_grad, reference_grad in zip(our_grads, reference_grads, strict=True):
        assert (ours_grad - reference_grad).abs().max().item() <= backward * (scale or 1.0)


@pytest.mark.parametrize(("dtype", "forward", "backward"), TOLERANCES)
@pytest.mark.parametrize("kind", ["none", "causal", "per head"])
@pytest.mark.parametrize("bias", [True, False])
def test_multi_head_attention_matches_torch(bias, kind, dtype, forward, backward):
    B, T, C, H = 2, 6, 12, 3
    ours = MultiHeadAttention(d_model=C, num_heads=H, bias=bias).to(dtype)
    theirs = nn.MultiheadAttention(C, H, bias=bias, batch_first=True).to(dtype)
    with torch.no_grad():
        # The fused rows come in torch's order: all queries, all keys, all values, each head by head.
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.out_proj.weight.copy_(ours.out.weight)
        if bias:
            ours.qkv.bias.normal_()
            ours.out.bias.normal_()
            theirs.in_proj_bias.copy_(ours.qkv.bias)
            theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(B, T, C, dtype=dtype, requires_grad=True)
    mask = make_mask(kind, B, H, T, T)
    attn_mask = (
        None if mask is None else ~mask.expand(B, H, T, T).flatten(0, 1)
    )  # torch: True = do not use
    our_output = ours(x, mask)
    their_output, _ = theirs(x, x, x, attn_mask=attn_mask, need_weights=False)
    direction = torch.randn_like(our_output)
    pairs = [
        (ours.qkv.weight, theirs.in_proj_weight),
        (ours.out.weight, theirs.out_proj.weight),
        (x, x),
    ]
    if bias:
        pairs += [
            (ours.qkv.bias, theirs.in_proj_bias),
            (ours.out.bias, theirs.out_proj.bias),
        ]
    our_grads = torch.autograd.grad(our_output, [a for a, _ in pairs], direction)
    their_grads = torch.autograd.grad(their_output, [b for _, b in pairs], direction)
    relative = dtype == torch.float32
    assert largest_difference(our_output, their_output, relative=relative) <= forward
    scale = max(g.abs().max().item() for g in their_grads) if relative else 1.0
    for our_grad, their_grad in zip(our_grads, their_grads, strict=True):
        assert (our_grad - their_grad).abs().max().item() <= backward * scale


def test_weights_match_a_loop_over_queries_and_keys():
    q, k = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for t in range(3):
        scores = [math.exp((q[t] * k[s]).sum().item() / 2) for s in range(5)]  # 2 = sqrt(D)
        expected[t] = torch.tensor(scores, dtype=torch.float64) / sum(scores)
    # float64, sums of five terms.
    torch.testing.assert_close(attention_weights(q, k), expected, rtol=0, atol=1e-12)


# Invariant


@given(st.integers(1, 12), st.integers(0, 12))
def test_causal_mask_allows_the_own_position_and_those_before(T, before):
    S = T + before
    mask = causal_mask(T, S)
    assert mask.dtype == torch.bool and mask.shape == (T, S)
    assert mask.tolist() == [[s <= before + t for s in range(S)] for t in range(T)]


def test_causal_mask_is_square_by_default_and_lives_where_it_is_told():
    assert torch.equal(causal_mask(4), causal_mask(4, 4))
    assert causal_mask(2, device="meta").device.type == "meta"


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.integers(0, 999))
def test_weights_are_shares_of_the_allowed_keys(T, S, D, seed):
    torch.manual_seed(seed)
    mask = torch.rand(T, S) < 0.5
    q, k = (torch.randn(n, D, dtype=torch.float64) for n in (T, S))
    weights = attention_weights(q, k, mask)
    assert weights.shape == (T, S)
    assert (weights[~mask] == 0).all() and (weights[mask] > 0).all()
    # A softmax over at most six float64 numbers.
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).double(), rtol=0, atol=1e-14)


def test_equal_keys_are_read_equally():
    q, k, v = torch.randn(1, 3, 4), torch.ones(1, 5, 4), torch.randn(1, 5, 2)
    # float32 rounding of a mean of five numbers.
    torch.testing.assert_close(
        scaled_dot_product_attention(q, k, v),
        v.mean(1, keepdim=True).expand(1, 3, 2),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize("magnitude", [1.0, 100.0])
def test_a_query_without_keys_gives_zeros_and_finite_gradients(dtype, magnitude):
    q, k, v = (
        (magnitude * torch.randn(2, 3, 4)).to(dtype).requires_grad_() for _ in range(3)
    )
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[0, 1] = False  # one query
    mask[1] = False  # a whole row of the batch
    with torch.autograd.set_detect_anomaly(True):  # No NaN in between either.
        output = scaled_dot_product_attention(q, k, v, mask)
        output.sum().backward()
    assert (
        (output[0, 1] == 0).all() and (output[1] == 0).all() and (output[0, 0] != 0).any()
    )
    for x in (q, k, v):
        assert x.grad.isfinite().all()
        assert (x.grad[1] == 0).all()  # Exactly: nothing read this row.
    assert (q.grad[0, 1] == 0).all()


def test_masked_keys_and_values_do_not_matter():
    q, k, v = (torch.randn(2, 4, 3) for _ in range(3))
    mask = causal_mask(4)
    before = scaled_dot_product_attention(q, k, v, mask)
    k[:, 2:], v[:, 2:] = 100 * torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    after = scaled_dot_product_attention(q, k, v, mask)
    # Exactly: a masked key has the weight 0, not a small one.
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2:], after[:, 2:])


def test_order_of_keys_does_not_matter():
    q, k, v = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(2, 4, 4) < 0.7
    order = torch.randperm(4)
    shuffled = scaled_dot_product_attention(q, k[:, order], v[:, order], mask[..., order])
    # Only the order of summation differs.
    torch.testing.assert_close(
        scaled_dot_product_attention(q, k, v, mask), shuffled, rtol=0, atol=1e-14
    )


def test_a_mask_broadcasts():
    q, k, v = (torch.randn(2, 3, 4, 5) for _ in range(3))
    for shape in [(4, 4), (1, 4), (2, 1, 1, 4), (3, 4, 4), ()]:
        mask = (
            torch.ones(shape, dtype=torch.bool) if shape == () else torch.rand(shape) < 0.6
        )
        assert torch.equal(
            scaled_dot_product_attention(q, k, v, mask),
            scaled_dot_product_attention(q, k, v, mask.expand(2, 3, 4, 4)),
        )


def test_values_may_have_another_width():
    q, k, v = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 7)
    assert scaled_dot_product_attention(q, k, v).shape == (2, 3, 7)


def test_huge_scores_stay_finite():
    q = k = 1e4 * torch.randn(1, 6, 8)
    assert attention_weights(q, k, causal_mask(6)).isfinite().all()


def test_heads_do_not_mix():
    attention = MultiHeadAttention(d_model=12, num_heads=3)
    x = torch.randn(2, 5, 12)
    q, k, v = attention.heads(x)
    assert q.shape == k.shape == v.shape == (2, 3, 5, 4)
    rows = attention.qkv.weight.view(3, 3, 4, 12)  # (query or key or value, H, D, C)
    for part, heads in enumerate((q, k, v)):
        for h in range(3):
            bias = attention.qkv.bias.view(3, 3, 4)[part, h]
            # float32, sums of twelve terms.
            torch.testing.assert_close(
                heads[:, h], x @ rows[part, h].T + bias, rtol=0, atol=1e-6
            )


def test_future_positions_do_not_change_past_outputs():
    attention = MultiHeadAttention(d_model=8, num_heads=2)
    x = torch.randn(1, 6, 8)
    y = x.clone()
    y[:, 3:] = torch.randn(1, 3, 8)
    mask = causal_mask(6)
    # float32: equal inputs; products of other positions may group sums differently.
    torch.testing.assert_close(
        attention(x, mask)[:, :3], attention(y, mask)[:, :3], rtol=0, atol=1e-6
    )
    assert not torch.allclose(attention(x)[:, :3], attention(y)[:, :3], atol=1e-3)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), r"num_queries is 0.*1 <= num_queries"),
        ((-2, 3), r"num_queries is -2"),
        ((4, 3), r"num_queries is 4, num_keys is 3: expected 1 <= num_queries <= num_keys"),
    ],
)
def test_causal_mask_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        causal_mask(*arguments)


def test_attention_rejects_widths_that_differ():
    with pytest.raises(ValueError, match=r"k has shape \(2, 3, 5\): .* with D = 4"):
        attention_weights(torch.randn(2, 3, 4), torch.randn(2, 3, 5))


@pytest.mark.parametrize("mask", [torch.ones(3, 3), torch.zeros(3, 3, dtype=torch.long)])
def test_attention_rejects_a_mask_that_is_not_bool(mask):
    with pytest.raises(ValueError, match=rf"mask .*{mask.dtype}: expected booleans"):
        attention_weights(torch.randn(2, 3, 4), torch.randn(2, 3, 4), mask)


def test_attention_rejects_keys_without_their_values():
    with pytest.raises(ValueError, match=r"k\.shape is .*5, 4\]\), v\.shape is .*6, 4\]\)"):
        scaled_dot_product_attention(
            torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 6, 4)
        )


@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        (
            (2, 3, 4),
            (3, 3, 4),
            r"q\.shape is .*\[2, 3, 4\]\), k\.shape is .*\[3, 3, 4\]\)",
        ),  # batches differ
        ((4,), (4,), r"q has shape \(4,\)"),  # vectors
        ((3, 4), (4,), r"k has shape \(4,\)"),
    ],
)
def test_attention_rejects_shapes_that_do_not_match(q, k, message):
    with pytest.raises(ValueError, match=message):
        attention_weights(torch.randn(q), torch.randn(k))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3), r"mask\.shape is .*\[2, 3\]\), scores\.shape is .*\[2, 3, 3\]"),
        ((4, 3, 3), r"mask\.shape is .*\[4, 3, 3\]\), scores\.shape is .*\[2, 3, 3\]"),
        ((2, 2, 3, 3), r"mask\.ndim is 4, scores\.ndim is 3: expected mask\.ndim <="),
        ((3, 1, 3, 3), r"mask\.ndim is 4, scores\.ndim is 3: expected mask\.ndim <="),
    ],
)
def test_attention_rejects_a_mask_that_does_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        attention_weights(
            torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.ones(shape, dtype=torch.bool)
        )


def test_attention_rejects_values_of_another_batch():
    with pytest.raises(
        ValueError, match=r"k\.shape is .*\[2, 3, 4\].*v\.shape is .*\[4, 3, 4\]"
    ):
        scaled_dot_product_attention(
            torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(4, 3, 4)
        )


def test_multi_head_attention_with_one_head_is_attention():
    layer, x = MultiHeadAttention(d_model=6, num_heads=1), torch.randn(2, 5, 6)
    q, k, v = layer.qkv(x).chunk(3, -1)
    torch.testing.assert_close(layer(x), layer.out(scaled_dot_product_attention(q, k, v)))


@pytest.mark.parametrize(
    ("d_model", "num_heads", "message"),
    [
        (10, 3, "d_model is 10, num_heads is 3: expected d_model % num_heads == 0"),
        (4, 8, "d_model is 4, num_heads is 8"),
        (8, 0, "num_heads is 0: expected num_heads >= 1"),
        (8, -2, "num_heads is -2"),
        (0, 2, "d_model is 0: expected d_model >= 1"),
        (-8, 2, "d_model is -8"),
    ],
)
def test_multi_head_attention_rejects_heads_that_do_not_divide_the_width(
    d_model, num_heads, message
):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(d_model=d_model, num_heads=num_heads)


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 8), (1, 2, 3, 8)])
def test_multi_head_attention_rejects_an_input_of_another_shape(shape):
    with pytest.raises(
        ValueError, match=r"x has shape \(.*\): expected \(B, T, C\) with C = 8"
    ):
        MultiHeadAttention(d_model=8, num_heads=2)(torch.randn(shape))


# Grouped queries


def grouped(num_heads: int, num_kv_heads: int, head_dim: int = 4) -> GroupedQueryAttention:
    return GroupedQueryAttention(
        d_model=num_heads * head_dim, num_heads=num_heads, num_kv_heads=num_kv_heads
    ).double()


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    with_rope=st.booleans(),
)
def test_grouped_attention_equals_copying_each_key_for_its_group(
    batch, length, kv_heads, group, with_rope
):
    layer, H, K, D = grouped(kv_heads * group, kv_heads), kv_heads * group, kv_heads, 4
    x = torch.randn(batch, length, H * D, dtype=torch.float64)
    mask = torch.rand(batch, 1, length, length) < 0.6
    mask |= torch.eye(length, dtype=torch.bool)
    rope = None
    weights = layer.qkv.weight.split([H * D, K * D, K * D])
    q, k, v = ((x @ w.T).unflatten(-1, (-1, D)).transpose(1, 2) for w in weights)
    if with_rope:
        rope = rope_tables(torch.arange(length).double(), rope_frequencies(D).double())
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    k, v = (heads.repeat_interleave(group, dim=1) for heads in (k, v))
    heads = scaled_dot_product_attention(q, k, v, mask)
    expected = heads.transpose(1, 2).flatten(2) @ layer.out.weight.T
    # float64, sums of some tens of terms.
    assert (layer(x, mask, rope) - expected).abs().max() < 1e-12


def test_grouped_attention_equals_multi_head_attention_when_every_head_has_its_own_keys():
    ours, theirs = grouped(3, 3), MultiHeadAttention(d_model=12, num_heads=3, bias=False)
    theirs = theirs.double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    assert (ours(x, causal_mask(5)) - theirs(x, causal_mask(5))).abs().max() < 1e-14


@given(length=st.integers(2, 9), data=st.data())
def test_grouped_attention_does_not_look_ahead(length, data):
    position = data.draw(st.integers(1, length - 1))
    layer = grouped(4, 2)
    x = torch.randn(1, length, 16, dtype=torch.float64)
    y = x.clone()
    y[:, position:] += 1
    before, after = layer(x, causal_mask(length)), layer(y, causal_mask(length))
    assert torch.equal(before[:, :position], after[:, :position])
    assert (before[:, position:] - after[:, position:]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("d_model", "num_heads", "num_kv_heads", "message"),
    [
        (10, 3, 1, "d_model is 10, num_heads is 3: expected d_model % num_heads == 0"),
        (
            12,
            4,
            3,
            "num_heads is 4, num_kv_heads is 3: expected num_heads % num_kv_heads == 0",
        ),
        (12, 4, 0, "num_kv_heads is 0"),
        (12, 0, 1, "num_heads is 0"),
    ],
)
def test_grouped_attention_rejects_heads_that_do_not_divide(
    d_model, num_heads, num_kv_heads, message
):
    with pytest.raises(ValueError, match=message):
        GroupedQueryAttention(
            d_model=d_model, num_heads=num_heads, num_kv_heads=num_kv_heads
        )


def test_grouped_attention_rejects_an_input_of_another_shape():
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 3, 5\): expected \(B, T, C\) with C = 16"
    ):
        grouped(4, 2)(torch.randn(2, 3, 5))


# The cache


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 3))
def test_a_cache_returns_all_that_it_was_given_in_order(lengths, spare):
    cache = KVCache(2, 3, sum(lengths) + spare, 4, dtype=torch.float64)
    k, v = torch.randn(2, 2, 3, sum(lengths), 4, dtype=torch.float64)
    for piece_k, piece_v in zip(k.split(lengths, 2), v.split(lengths, 2), strict=True):
        keys, values = cache.extend(piece_k, piece_v)
    assert torch.equal(keys, k) and torch.equal(values, v)
    assert cache.length == sum(lengths)


def test_a_full_cache_refuses_more_and_keeps_what_it_has():
    cache = KVCache(1, 2, 3, 4)
    k = torch.randn(1, 2, 2, 4)
    cache.extend(k, k)
    with pytest.raises(
        ValueError,
        match=r"length is 2, k has shape \(1, 2, 2, 4\), keys has shape \(1, 2, 3, 4\)",
    ):
        cache.extend(k, k)
    assert cache.length == 2
    assert torch.equal(cache.keys[:, :, :2], k)


def test_a_cache_refuses_what_a_backward_pass_would_need():
    cache, k = KVCache(1, 2, 3, 4), torch.randn(1, 2, 1, 4, requires_grad=True)
    for one, other in ((k, k.detach()), (k.detach(), k)):
        with pytest.raises(ValueError, match="k or v requires a gradient"):
            cache.extend(one, other)
    with torch.no_grad():
        cache.extend(k, k)
    assert cache.length == 1 and not cache.keys.requires_grad


@pytest.mark.parametrize(
    ("k", "v"),
    [
        ((2, 2, 1, 4), (2, 2, 1, 4)),
        ((1, 1, 1, 4), (1, 1, 1, 4)),
        ((1, 2, 1, 4), (1, 2, 1, 5)),
        ((1, 2, 1, 5), (1, 2, 1, 5)),
    ],
)
def test_a_cache_refuses_other_shapes(k, v):
    with pytest.raises(ValueError, match=r"k has shape|k\.shape is .*v\.shape is"):
        KVCache(1, 2, 3, 4).extend(torch.randn(k), torch.randn(v))
