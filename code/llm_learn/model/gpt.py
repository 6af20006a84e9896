"""GPT: a decoder-only Transformer with learned positions, and the initialization of its weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from llm_learn.argument_checks import expect
from llm_learn.attention import MultiHeadAttention, causal_mask
from llm_learn.feedforward import MLP


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The configuration of a GPT."""

    vocab_size: int  # V, tokens
    context_length: int  # the longest input, positions
    d_model: int  # C, width of the residual stream
    num_layers: int  # blocks
    num_heads: int  # H, divides d_model
    dropout: float = 0.0  # probability of zeroing an activation while training

    def __post_init__(self):
        expect(
            "vocab_size >= 1, context_length >= 1, d_model >= 1, num_layers >= 1, num_heads >= 1, "
            "d_model % num_heads == 0, 0 <= dropout < 1",
            **vars(self),
        )


def check_ids(ids: Tensor, vocab_size: int, context_length: int) -> None:
    """Raises ValueError unless `ids` is (B, T) of integers from 0 to V - 1, with T from 1 to the context length."""
    expect(
        "ids int (B, T), 1 <= T <= context_length, B == 0 or (0 <= ids.min() and ids.max() < vocab_size)",
        ids=ids,
        vocab_size=vocab_size,
        context_length=context_length,
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


def init_weights(module: nn.Module, num_layers: int) -> None:
    """Initialises weights as Hugging Face does for a GPT-2 with that many blocks; zero biases."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            # Each block adds to the residual stream twice; depth must not inflate its variance.
            adds_to_stream = name.endswith(("out.weight", "down.weight"))
            std = 0.02 / math.sqrt(2 * num_layers) if adds_to_stream else 0.02
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def init_weights_fan_in(model: nn.Module, num_layers: int) -> None:
    """Initialises matrices so that their outputs are as large as their inputs; the output layer begins at zero."""
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
        init_weights(self, config.num_layers)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores every token as the next one, at every position: (B, T) -> logits (B, T, V)."""
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
    """Replaces each MLP of a GPT by another layer, initialised as the model's own are; returns the same model.

    Args:
        model: changed in place.
        make_layer: returns a new layer, which maps (B, T, C) to (B, T, C).
    """
    for block in model.blocks:
        block.mlp = mlp = make_layer()
        init_weights(mlp, model.config.num_layers)
    return model
