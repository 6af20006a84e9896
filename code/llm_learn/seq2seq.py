"""Recurrent encoder–decoder models, without and with attention, and greedy translation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from llm_learn.argument_checks import expect
from llm_learn.tokenizers import Vocabulary

State = tuple[Tensor, Tensor]  # an LSTM's h and c, each (1, B, H)


class Seq2Seq(nn.Module):
    """An LSTM encoder, whose last state initialises an LSTM decoder (Sutskever et al. 2014).

    Args:
        source_size, target_size: sizes of the two vocabularies.
        hidden_size: H, width of a state.
        d_embed: width of a word's vector.
    """

    def __init__(
        self, source_size: int, target_size: int, *, hidden_size: int, d_embed: int = 32
    ):
        super().__init__()
        self.source_embedding = nn.Embedding(source_size, d_embed)
        self.target_embedding = nn.Embedding(target_size, d_embed)
        self.encoder = nn.LSTM(d_embed, hidden_size, batch_first=True)
        self.decoder = nn.LSTM(d_embed, hidden_size, batch_first=True)
        self.output = nn.Linear(hidden_size, target_size)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor, State]:
        """(B, S) -> the memory (B, S, H), the mask of its words (B, S), the last state."""
        expect(
            "source int (B, S), (source != pad_id).any(1).all()",
            source=source,
            pad_id=Vocabulary.pad_id,
        )
        mask = source != Vocabulary.pad_id
        packed = pack_padded_sequence(
            self.source_embedding(source),
            mask.sum(1).cpu(),  # lengths must be there, wherever the model is
            batch_first=True,
            enforce_sorted=False,
        )
        memory, state = self.encoder(packed)
        memory, _ = pad_packed_sequence(
            memory, batch_first=True, total_length=source.shape[1]
        )
        return memory, mask, state

    def decode(
        self, inputs: Tensor, memory: Tensor, mask: Tensor, state: State
    ) -> tuple[Tensor, State, Tensor | None]:
        """(B, T) -> logits (B, T, V), the state, and no attention weights."""
        hidden, state = self.decoder(self.target_embedding(inputs), state)
        return self.output(hidden), state, None

    def forward(self, source: Tensor, inputs: Tensor) -> Tensor:
        """Source (B, S) and the target so far (B, T) -> logits (B, T, V)."""
        logits, _, _ = self.decode(inputs, *self.encode(source))
        return logits


def dot_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """(B, T, H), (B, S, H) -> (B, T, S) (Luong et al. 2015, Eq. 8, dot)."""
    return queries @ keys.mT


def attend(scores: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B, T, S), memory (B, S, H), mask of its words (B, S) -> context, weights."""
    expect("memory (B, S, H), mask bool (B, S)", memory=memory, mask=mask)
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)  # (B, T, S)
    return weights @ memory, weights


class AttentionSeq2Seq(Seq2Seq):
    """The decoder attends to every state of the encoder (Luong et al. 2015).

    Args:
        scores: from queries (B, T, H) and keys (B, S, H) to scores (B, T, S).
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        *,
        hidden_size: int,
        scores: Callable[[Tensor, Tensor], Tensor] = dot_scores,
    ):
        super().__init__(source_size, target_size, hidden_size=hidden_size)
        self.scores = scores
        self.combine = nn.Linear(2 * hidden_size, hidden_size)

    def decode(
        self, inputs: Tensor, memory: Tensor, mask: Tensor, state: State
    ) -> tuple[Tensor, State, Tensor]:
        """(B, T) -> logits (B, T, V), the state, attention weights (B, T, S)."""
        hidden, state = self.decoder(self.target_embedding(inputs), state)  # (B, T, H)
        context, weights = attend(self.scores(hidden, memory), memory, mask)
        hidden = torch.tanh(self.combine(torch.cat([context, hidden], -1)))
        return self.output(hidden), state, weights


@torch.no_grad()
def greedy_translation(
    model: nn.Module, source: Tensor, max_new_tokens: int = 16
) -> Tensor:
    """The most likely next word, step by step: (B, S) -> (B, T), T at most `max_new_tokens`.

    Args:
        model: has `encode` and `decode`, as `Seq2Seq` has.
        source: (B, S) token IDs.
        max_new_tokens: the most words to generate, including the end token.
    """
    expect("max_new_tokens >= 1", max_new_tokens=max_new_tokens)
    memory, mask, state = model.encode(source)
    word = source.new_full((len(source), 1), Vocabulary.bos_id)
    written, ended = [], torch.zeros_like(word, dtype=torch.bool)
    while len(written) < max_new_tokens and not ended.all():
        logits, state, _ = model.decode(word, memory, mask, state)
        word = logits.argmax(-1).masked_fill(ended, Vocabulary.pad_id)  # (B, 1)
        ended = ended | (word == Vocabulary.eos_id)
        written.append(word)
    return torch.cat(written, 1)
