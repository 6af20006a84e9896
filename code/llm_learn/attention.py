"""Attention: masks, scaled dot-product, multi-head and grouped-query attention, and the KV cache."""

import math

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect
from llm_learn.positional_encoding import apply_rope


def causal_mask(num_queries: int, num_keys: int | None = None, *, device=None) -> Tensor:
    """Marks the keys that each query may attend to: those at its own position and before it.

    Args:
        num_queries: T; the queries are the last T of the S positions.
        num_keys: S, at least T; by default T.
        device: where the mask lives.

    (T, S) bool; True marks a key that the query may attend to.
        (T, S) bool, True = use.
    """
    num_keys = num_queries if num_keys is None else num_keys
    expect("1 <= num_queries <= num_keys", num_queries=num_queries, num_keys=num_keys)
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(
        num_keys - num_queries
    )


def document_mask(document_ids: Tensor) -> Tensor:
    """True where a query may attend to a key: not later, and in the same document. (B, T) -> (B, 1, T, T)"""
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return (same & causal_mask(document_ids.shape[1], device=document_ids.device))[:, None]


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much each query attends to each key (Vaswani et al. 2017, arXiv:1706.03762, Eq. 1, the softmax).

    Args:
        q: (..., T, D) queries.
        k: (..., S, D) keys.
        mask: bool, broadcastable to (..., T, S), True = may be attended to. A query without such a key gets zeros.

    Returns:
        (..., T, S) weights; each row sums to 1, or to 0 if all its keys are masked.
    """
    expect("q (..., T, D), k (..., S, D), q.shape[:-2] == k.shape[:-2]", q=q, k=k)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is None:
        return scores.softmax(-1)
    expect(
        "mask bool (...), mask.ndim <= scores.ndim, "
        "all(m in (1, s) for m, s in zip(mask.shape[::-1], scores.shape[::-1]))",
        mask=mask,
        scores=scores,
    )
    # The lowest finite number: -inf would make a row without any key NaN.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(~mask, 0.0)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Averages the values by attention weights (Vaswani et al. 2017, arXiv:1706.03762, Eq. 1).

    Args:
        q: (..., T, D) queries.
        k: (..., S, D) keys.
        v: (..., S, D) values; their width may differ.
        mask: bool, broadcastable to (..., T, S), True = may be attended to.

    Returns:
        (..., T, D)
    """
    expect("k.shape[:-1] == v.shape[:-1]", k=k, v=v)
    return attention_weights(q, k, mask) @ v


class MultiHeadAttention(nn.Module):
    """Multi-head attention: several heads, each on its own projection (Vaswani et al. 2017, Section 3.2.2).

    Args:
        d_model: C, width of the input and the output.
        num_heads: H; must divide `d_model`.
        bias: whether the projections add a bias.
    """

    def __init__(self, *, d_model: int, num_heads: int, bias: bool = True):
        super().__init__()
        expect("d_model >= 1, num_heads >= 1", d_model=d_model, num_heads=num_heads)
        expect("d_model % num_heads == 0", d_model=d_model, num_heads=num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head: (B, T, C) -> three of (B, H, T, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, H, D)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); `mask` is bool, broadcastable to (B, H, T, T), True = may be attended to."""
        expect("x (B, T, C)", x=x, C=self.out.in_features)
        heads = scaled_dot_product_attention(*self.heads(x), mask)  # (B, H, T, D)
        return self.out(heads.transpose(1, 2).flatten(2))  # (B, T, C)


class KVCache:
    """The keys and values that one layer has computed, so that later tokens can attend to them.

    Args:
        batch_size: B, sequences.
        num_kv_heads: K, key/value heads.
        capacity: the most positions that it can hold.
        head_dim: D, width of one head.
        dtype, device: those of the keys and values.

    Attributes:
        length: positions held so far.
    """

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device=None,
    ):
        shape = (batch_size, num_kv_heads, capacity, head_dim)
        self.keys, self.values = (
            torch.empty(shape, dtype=dtype, device=device) for _ in range(2)
        )
        self.length = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values (B, K, T, D), and returns all keys and all values, (B, K, length, D) each."""
        expect("k.shape == v.shape", k=k, v=v)
        expect("keys (B, K, S, D), k (B, K, T, D), length + T <= S", k=k, **vars(self))
        # Each call writes into the same memory, which would break every later backward pass.
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise ValueError(
                "k or v requires a gradient: use a cache under torch.no_grad()"
            )
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class GroupedQueryAttention(nn.Module):
    """Attention in which groups of query heads share a key/value head (Ainslie et al. 2023, arXiv:2305.13245).

    Args:
        d_model: C, width of the input and the output.
        num_heads: H, query heads; must divide `d_model`.
        num_kv_heads: K, key/value heads; must divide `num_heads`. Query head h uses number h // (H / K).
    """

    def __init__(self, *, d_model: int, num_heads: int, num_kv_heads: int):
        super().__init__()
        expect(
            "d_model >= 1, num_heads >= 1, num_kv_heads >= 1, d_model % num_heads == 0, num_heads % num_kv_heads == 0",
            d_model=d_model,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
        )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = d_model // num_heads
        num_all = num_heads + 2 * num_kv_heads
        self.qkv = nn.Linear(d_model, num_all * self.head_dim, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def heads(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D); `rope` rotates queries and keys."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        H, K = self.num_heads, self.num_kv_heads
        qk, v = qkv.split([H + K, K], dim=1)
        if rope is not None:
            qk = apply_rope(qk, *rope)
        q, k = qk.split([H, K], dim=1)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Lets every position attend to those that the mask allows.

        Args:
            x: (B, T, C)
            mask: bool, broadcastable to (B, H, T, S), True = may be attended to; every query needs such a key.
            rope: cosines and sines from `rope_tables`, broadcastable to (B, H, T, D / 2).
            cache: what came before the T positions; it is attended to as well, and keys and values of `x` are appended.

        Returns:
            (B, T, C)
        """
        expect("x (B, T, C)", x=x, C=self.out.in_features)
        q, k, v = self.heads(x, rope)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, K, S, D)
        # On a CPU, torch's kernel reads each key for its whole group, without copying it.
        heads = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=True
        )  # (B, H, T, D)
        return self.out(heads.transpose(1, 2).flatten(2))  # (B, T, C)
