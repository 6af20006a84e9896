"""Length extrapolation: a small model whose positional encoding can be exchanged, and its loss at each position."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_learn.argument_checks import expect
from llm_learn.attention import MultiHeadAttention, causal_mask
from llm_learn.data import get_batch
from llm_learn.feedforward import MLP
from llm_learn.positional_encoding import NoPositions
from llm_learn.train import TrainConfig, train

# The loss is averaged between each two of them.
POSITION_EDGES = (0, 16, 32, 64, 128, 256, 512)

TEXT_MODEL_RECIPE = TrainConfig(
    max_steps=200, batch_size=8, learning_rate=4e-3, warmup_steps=20, eval_every=200
)


class TextModel(nn.Module):
    """A small GPT whose positional encoding can be exchanged.

    Args:
        scheme: the positional encoding.
        vocab_size: V, tokens.
        d_model: C, width of the residual stream.
        context_length: what `train` cuts windows by; a longer sequence can be processed.
    """

    def __init__(
        self,
        scheme: NoPositions,
        vocab_size: int,
        d_model: int = 64,
        context_length: int = 64,
    ):
        super().__init__()
        self.config = SimpleNamespace(context_length=context_length)
        self.scheme = scheme
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.attentions = nn.ModuleList(
            MultiHeadAttention(d_model=d_model, num_heads=4) for _ in range(2)
        )
        self.mlps = nn.ModuleList(MLP(d_model=d_model, d_ff=4 * d_model) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(5))
        self.output = nn.Linear(d_model, vocab_size)

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, window: int = 0
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V); `window` > 0 limits attention to the last `window` keys."""
        expect("ids (B, T), window >= 0", ids=ids, window=window)
        T = ids.shape[1]
        positions = torch.arange(T) if positions is None else positions
        mask = causal_mask(T)
        if window:
            mask = mask & ~causal_mask(T).tril(-window)  # not those `window` or more back
        x = self.scheme.add(self.embedding(ids), positions)
        # Two norms per block; the fifth is applied at the end.
        norms = zip(self.norms[::2], self.norms[1::2], strict=False)
        layers = zip(self.attentions, self.mlps, norms, strict=False)
        for attention, mlp, (norm_1, norm_2) in layers:
            assert isinstance(attention, MultiHeadAttention)
            q, k, v = attention.heads(norm_1(x))
            scores = self.scheme.scores(q, k, positions).masked_fill(~mask, -torch.inf)
            x = x + attention.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = x + mlp(norm_2(x))
        return self.output(self.norms[-1](x))


def trained_text_model(
    make_scheme: Callable[[], NoPositions], seed: int, vocab_size: int, train_ids: Tensor
) -> TextModel:
    """A model with that scheme after `TEXT_MODEL_RECIPE`; train_ids (N,) are the tokens to train on."""
    torch.manual_seed(seed)
    model = TextModel(make_scheme(), vocab_size)
    generator = torch.Generator().manual_seed(seed)
    _ = train(model, train_ids, None, TEXT_MODEL_RECIPE, generator=generator)
    return model.eval()


@torch.no_grad()
def loss_by_position(
    model: TextModel, x: Tensor, y: Tensor, edges: Sequence[int] = POSITION_EDGES, **how
) -> Tensor:
    """The mean loss in nats per token between each two `edges` within the length of the sequences.

    Args:
        x, y: (B, T) token IDs, and those that follow them.
        edges: positions, in rising order.
        how: further arguments of the model.
    """
    expect("x (B, T), y (B, T)", x=x, y=y)
    total = torch.zeros(x.shape[1])
    for ids, targets in zip(x.split(8), y.split(8), strict=True):
        logits = model(ids, **how).flatten(0, 1)
        losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
        total += losses.view(targets.shape).sum(0)
    total /= len(x)
    return torch.stack([total[a:b].mean() for a, b in pairwise(edges) if b <= len(total)])


def long_windows(held_out: Tensor, length: int = 512) -> tuple[Tensor, Tensor]:
    """Inputs and targets (32, length) from held_out (N,), always the same."""
    generator = torch.Generator().manual_seed(1)
    return get_batch(held_out, 32, length, generator=generator)
