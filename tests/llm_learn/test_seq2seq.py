"""Encoder–decoder networks: attention against PyTorch's, padding that changes nothing, words one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from llm_learn.seq2seq import (
    AttentionSeq2Seq,
    Seq2Seq,
    attend,
    dot_scores,
    greedy_translation,
)
from llm_learn.tasks.number_name_translation import exact_match, pad_rows, translation_batch
from llm_learn.tokenizers import Vocabulary

SIZES = 9, 8  # ids of source and target
rows = st.lists(st.lists(st.integers(3, 7), min_size=1, max_size=6), min_size=1, max_size=4)


def make(kind: type, hidden_size: int = 6) -> Seq2Seq:
    torch.manual_seed(0)
    return kind(*SIZES, hidden_size=hidden_size).double()


both = pytest.mark.parametrize("kind", [Seq2Seq, AttentionSeq2Seq])


# Reference


def test_dot_attention_matches_torch():
    # In float64 the two differ by rounding alone.
    torch.manual_seed(0)
    queries, memory = torch.randn(3, 5, 8).double(), torch.randn(3, 7, 8).double()
    mask = torch.arange(7) < torch.tensor([7, 1, 4])[:, None]
    context, weights = attend(dot_scores(queries, memory), memory, mask)
    reference = F.scaled_dot_product_attention(
        queries, memory, memory, attn_mask=mask[:, None], scale=1.0
    )
    torch.testing.assert_close(context, reference, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5).double())
    assert not weights.masked_select(~mask[:, None].expand_as(weights)).any()


# Invariants


@both
@given(rows, st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_padding_changes_nothing(kind, texts, more):
    model = make(kind)
    source = pad_rows(texts)
    inputs = pad_rows([[Vocabulary.bos_id, *text] for text in texts])
    together = model(F.pad(source, (0, more)), inputs)
    for i, text in enumerate(texts):
        alone = model(torch.tensor([text]), inputs[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


@both
@given(rows)
@settings(max_examples=25, deadline=None)
def test_words_one_by_one_equal_all_at_once(kind, texts):
    model = make(kind)
    memory, mask, state = model.encode(pad_rows(texts))
    inputs = torch.randint(3, 8, (len(texts), 5))
    whole, last, _ = model.decode(inputs, memory, mask, state)
    steps = []
    for word in inputs.split(1, 1):
        logits, state, _ = model.decode(word, memory, mask, state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    torch.testing.assert_close(state, last)


@both
def test_later_words_do_not_change_earlier_predictions(kind):
    model = make(kind)
    source, inputs = torch.tensor([[3, 4, 5]]), torch.tensor([[1, 3, 4, 5]])
    changed = inputs.clone()
    changed[0, 2] = 7
    before, after = model(source, inputs), model(source, changed)
    torch.testing.assert_close(before[:, :2], after[:, :2], rtol=0, atol=0)
    assert not torch.allclose(before[:, 2:], after[:, 2:])


def test_only_attention_sees_the_memory():
    source, inputs = torch.tensor([[3, 4, 5]]), torch.tensor([[1, 3]])
    for kind, sees in ((Seq2Seq, False), (AttentionSeq2Seq, True)):
        model = make(kind)
        memory, mask, state = model.encode(source)
        a, b = (model.decode(inputs, m, mask, state)[0] for m in (memory, memory + 1))
        assert torch.allclose(a, b) is not sees


@both
def test_greedy_takes_the_likeliest_and_stops(kind):
    model = make(kind)
    source = pad_rows([[3, 4], [5, 6, 7, 3], [8]])
    written = greedy_translation(model, source, max_new_tokens=7)
    assert written.shape[0] == 3 and 1 <= written.shape[1] <= 7
    likeliest = model(
        source, F.pad(written, (1, 0), value=Vocabulary.bos_id)[:, :-1]
    ).argmax(-1)
    for row, wanted in zip(written.tolist(), likeliest.tolist(), strict=True):
        end = row.index(Vocabulary.eos_id) + 1 if Vocabulary.eos_id in row else len(row)
        assert row[:end] == wanted[:end]
        assert not any(row[end:])
    # Ended everywhere at once: no further step.
    with torch.no_grad():
        model.output.bias[Vocabulary.eos_id] = 100
    assert greedy_translation(model, source).tolist() == [[Vocabulary.eos_id]] * 3


class Scripted(torch.nn.Module):
    """Says what it is told to, whatever it reads; its state counts the steps."""

    script = torch.tensor([[4, 2, 6, 6, 6], [4, 5, 6, 2, 6]])

    def encode(self, source):
        return source, source > 0, 0

    def decode(self, inputs, memory, mask, state):
        return F.one_hot(self.script[:, state : state + 1], 8).float(), state + 1, None


def test_what_has_ended_is_filled_up():
    written = greedy_translation(Scripted(), torch.ones(2, 3, dtype=torch.long))
    assert written.tolist() == [[4, 2, 0, 0], [4, 5, 6, 2]]


# Learning


def test_attention_learns_to_reverse():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(3, 8, (200, 4), generator=generator).tolist()
    pairs = [(text, text[::-1]) for text in texts]
    model = AttentionSeq2Seq(8, 8, hidden_size=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    source, inputs, targets = translation_batch(pairs)
    for _ in range(120):
        loss = F.cross_entropy(model(source, inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert exact_match(greedy_translation(model, source), pairs) > 0.95


# Errors


def test_errors_name_the_argument():
    model = make(Seq2Seq)
    with pytest.raises(ValueError, match=r"\(source != pad_id\).*is False: expected"):
        model.encode(torch.tensor([[3, 4], [0, 0]]))
    with pytest.raises(
        ValueError, match="max_new_tokens is 0: expected max_new_tokens >= 1"
    ):
        greedy_translation(model, torch.tensor([[3]]), max_new_tokens=0)
    memory = torch.randn(1, 3, 4)
    with pytest.raises(ValueError, match=r"mask has .*torch\.int64: expected booleans"):
        attend(torch.randn(1, 2, 3), memory, torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"mask has shape \(1, 2\) .*with B = 1, S = 3"):
        attend(torch.randn(1, 2, 3), memory, torch.ones(1, 2, dtype=torch.bool))
