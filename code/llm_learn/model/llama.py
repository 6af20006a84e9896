"""Llama: a decoder-only Transformer with rotary positions, grouped-query attention, SwiGLU and a KV cache."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect
from llm_learn.attention import GroupedQueryAttention, KVCache, causal_mask
from llm_learn.feedforward import SwiGLU
from llm_learn.model.gpt import check_ids, init_weights
from llm_learn.positional_encoding import rope_frequencies, rope_tables


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The configuration of a Llama."""

    vocab_size: int  # V, tokens
    context_length: int  # the longest input it was trained on, positions
    d_model: int  # C, width of the residual stream
    d_ff: int  # width inside the feed-forward layers
    num_layers: int  # blocks
    num_heads: int  # H, query heads, divides d_model
    num_kv_heads: int  # K, key/value heads, divides num_heads
    rope_theta: float = 10_000.0  # the larger, the slower the slow pairs rotate
    norm_eps: float = 1e-5  # added to the mean square
    tie_embeddings: bool = True  # the output layer shares the embedding's weights

    def __post_init__(self):
        expect(
            "vocab_size >= 1, context_length >= 1, d_model >= 1, d_ff >= 1, num_layers >= 1, num_heads >= 1, "
            "num_kv_heads >= 1, d_model % (2 * num_heads) == 0, num_heads % num_kv_heads == 0",
            **vars(self),
        )

    @property
    def head_dim(self) -> int:
        """D, width of one head."""
        return self.d_model // self.num_heads


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, then scales (Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4).

    Args:
        d_model: C, width of the input.
        eps: added to the mean square, against division by zero.
    """

    def __init__(self, d_model: int, *, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LlamaBlock(nn.Module):
    """Grouped attention with rotated queries and keys, then a SwiGLU, each on a normalised copy and added back."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.norm_1 = RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = GroupedQueryAttention(
            d_model=config.d_model,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
        )
        self.norm_2 = RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = SwiGLU(d_model=config.d_model, d_ff=config.d_ff)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rope: tuple[Tensor, Tensor],
        cache: KVCache | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        x = x + self.attention(self.norm_1(x), mask, rope, cache)
        return x + self.mlp(self.norm_2(x))


class Llama(nn.Module):
    """A decoder-only Transformer with Llama's structure (Touvron et al. 2023, arXiv:2302.13971, Section 2.2).

    Key/value heads are shared as in Llama 2 (arXiv:2307.09288). The output layer shares the embedding's weights, as in
    many small models, unless `config.tie_embeddings` is False.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        if not config.tie_embeddings:
            shape, device = (config.d_model, config.vocab_size), self.norm.weight.device
            # Initialised once, by `init_weights`, like the rest.
            self.output = nn.utils.skip_init(nn.Linear, *shape, bias=False, device=device)
        init_weights(self, config.num_layers)

    def new_caches(self, batch_size: int, capacity: int) -> list[KVCache]:
        """An empty cache for each block, with room for `capacity` positions."""
        # Those of a norm: an embedding that is stored in fewer bits would decode all of its weights.
        c, weight = self.config, self.norm.weight
        shape = (batch_size, c.num_kv_heads, capacity, c.head_dim)
        kind = {"dtype": weight.dtype, "device": weight.device}
        return [KVCache(*shape, **kind) for _ in self.blocks]

    def hidden_states(
        self,
        ids: Tensor,
        caches: list[KVCache] | None = None,
        padding: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The input of the output layer.

        Args:
            ids: (B, T) token IDs, which continue those in the caches.
            caches: from `new_caches`; `ids` are appended to them.
            padding: (B,) number of padding tokens at the start of each row, which are masked.
            mask: (T, S) or (B, 1, T, S) bool, which keys a position may attend to; None: those that are not later.

        Returns:
            (B, T, C)
        """
        check_ids(ids, self.config.vocab_size, self.config.context_length)
        num_past = caches[0].length if caches else 0
        expect(
            "ids (B, T), num_past + T <= context_length",
            ids=ids,
            num_past=num_past,
            context_length=self.config.context_length,
        )
        num_keys = num_past + ids.shape[1]
        positions = torch.arange(num_past, num_keys, device=ids.device)  # (T,)
        # A single position, the last, attends to everything.
        if mask is None and (len(positions) > 1 or padding is not None):
            mask = causal_mask(len(positions), num_keys, device=ids.device)  # (T, S)
        if padding is not None and mask is not None:
            keys = torch.arange(num_keys, device=ids.device)
            mask = mask & (keys >= padding[:, None, None, None])  # (B, 1, T, S)
            # Padding attends to itself: a query without any key would have no average.
            mask = mask | (keys == positions[:, None])
            positions = (positions - padding[:, None, None]).clamp(min=0)  # (B, 1, T)
        x = self.token_embedding(ids)  # (B, T, C)
        rope = [table.to(x.dtype) for table in self.rope(positions)]
        for i, block in enumerate(self.blocks):
            x = block(x, mask, rope, caches[i] if caches else None)
        return self.norm(x)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for positions (..., T), from float32 whatever the weights are."""
        frequencies = rope_frequencies(self.config.head_dim, theta=self.config.rope_theta)
        return rope_tables(positions, frequencies.to(positions.device))

    def logits(self, x: Tensor) -> Tensor:
        """The output layer: hidden states (..., C) -> (..., V)"""
        if self.config.tie_embeddings:
            return x @ self.token_embedding.weight.T
        return self.output(x)

    def forward(
        self,
        ids: Tensor,
        caches: list[KVCache] | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Scores every token as the next one, at every position: (B, T) -> logits (B, T, V); see `hidden_states`."""
        return self.logits(self.hidden_states(ids, caches, padding))
