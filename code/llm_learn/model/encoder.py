"""BERT's encoder: a Transformer whose positions attend in both directions."""

from torch import Tensor, nn

from llm_learn.argument_checks import expect
from llm_learn.attention import MultiHeadAttention


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
        vocab_size: V, different tokens.
        d_model: C, the width.
        num_heads: H; must divide `d_model`.
        num_layers: how many blocks.
        context_length: the most tokens that can be processed at once.
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

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors for tokens; padding is masked. (B, T), bool (B, T) -> (B, T, C)"""
        expect(
            "ids int (B, T), 1 <= T <= context_length, attention_mask bool (B, T)",
            ids=ids,
            context_length=self.positions.num_embeddings,
            attention_mask=attention_mask,
        )
        x = (
            self.tokens(ids)
            + self.positions.weight[: ids.shape[1]]
            + self.segments.weight[0]
        )
        x = self.norm(x)
        mask = attention_mask[
            :, None, None, :
        ]  # (B, 1, 1, S): every query attends to all text
        for block in self.blocks:
            x = block(x, mask)
        return x
