"""What the chapter on evaluation defines: against brute force, SciPy, planted values, and themselves."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from package_fixtures import sharp_llama

SLUG = "measuring/evaluation"
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def tiny():
    return sharp_llama(
        10,
        vocab_size=50,
        context_length=64,
        d_model=32,
        d_ff=64,
        num_heads=4,
        num_kv_heads=2,
    )


# --- Text ---


@pytest.mark.slow
@given(st.integers(0, 40), st.integers(1, 12))
def test_windows_predict_each_token_once_and_read_no_more_than_they_may(
    definitions_of, num_ids, length
):
    ids = list(range(100, 100 + num_ids))
    windows = definitions_of(SLUG).windows_of(ids, length, first=7)
    predicted = [token for window, new in windows for token in window[len(window) - new :]]
    assert predicted == ids
    text = [7, *ids]
    for k, (window, new) in enumerate(windows):
        assert new >= 1 and len(window) - 1 <= length
        assert len(window) - 1 == length or num_ids < length or k == 0
        at = text.index(window[0])
        assert text[at : at + len(window)] == window


def test_text_losses_in_one_window_are_the_models(chapter, tiny):
    ids = [3, 8, 1, 44, 9, 9, 20]
    logits = tiny(torch.tensor([[chapter.END_OF_TEXT, *ids[:-1]]]))[0]
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(ids), reduction="none"
    )
    assert torch.allclose(chapter.text_losses(tiny, ids, 32), expected, atol=1e-5)
    short = chapter.text_losses(tiny, ids, 3)  # the last window is full, and predicts one
    logits = tiny(torch.tensor([ids[3:6]]))[0, -1]
    assert short[-1].item() == pytest.approx(-logits.log_softmax(-1)[20].item(), abs=1e-5)


def test_pairs_are_counted(chapter):
    learned = "abracadabra"
    for text in ("ab", "br", "dd"):
        follows = sum(learned.startswith(text[0], i) for i in range(len(learned) - 1))
        p = (sum(learned.startswith(text, i) for i in range(len(learned))) + 1) / (
            follows + 5
        )
        assert math.exp(-chapter.pair_losses(learned, text)[0]) == pytest.approx(p)
    total = sum(
        math.exp(-chapter.pair_losses(learned, "a" + other)[0]) for other in "abcdr"
    )
    assert total == pytest.approx(1)


# --- Choices ---


def test_a_space_belongs_to_the_answer(chapter):
    one = chapter.encode_pair("It is in", " France")
    other = chapter.encode_pair("It is in ", "France")
    assert one == other and chapter.TOKENIZER.decode(one[1]) == " France"
    apart = chapter.encode_apart("It is in", " France")
    assert (
        chapter.TOKENIZER.decode(apart[0] + apart[1]) == "It is in France" and apart != one
    )


def test_rules_are_what_they_say(chapter, monkeypatch):
    questions = chapter.QUESTIONS[:5]
    alone = np.random.default_rng(1).normal(size=(5, 4))
    monkeypatch.setitem(chapter.by_rules.__globals__, "unconditional", lambda *_: alone)
    sums = np.random.default_rng(0).normal(size=(5, 4))
    ruled = chapter.by_rules(None, sums, questions)
    assert tuple(ruled) == chapter.RULES
    for i, question in enumerate(questions):
        for j, choice in enumerate(question.choices):
            tokens = len(chapter.TOKENIZER.encode(" " + choice))
            assert ruled["per token"][i, j] == pytest.approx(sums[i, j] / tokens)
            assert ruled["per character"][i, j] == pytest.approx(sums[i, j] / len(choice))
            assert ruled["gain"][i, j] == pytest.approx(sums[i, j] - alone[i, j])


def test_rounded_copies_are_rounded_and_the_model_is_as_it_was(chapter, tiny):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    small = chapter.with_bits(tiny, 3)
    assert all(
        torch.equal(before[name], value) for name, value in tiny.state_dict().items()
    )
    weight = small.blocks[0].mlp.down.weight.view(-1, 32)
    assert all(len(row.unique()) <= 7 for row in weight)
    again = chapter.with_bits(small, 3).blocks[0].mlp.down.weight
    assert torch.allclose(again.view(-1, 32), weight, atol=1e-6)
    assert small.token_embedding is tiny.token_embedding


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The United States.", "united states"),
        ("A  b", "b"),
        ("Côte d’Ivoire", "côte divoire"),
        ("", ""),
    ],
)
def test_normalised(chapter, text, expected):
    assert chapter.normalised(text) == expected
