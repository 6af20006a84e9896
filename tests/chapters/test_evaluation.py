"""What the chapter on evaluation defines: against brute force, SciPy, planted values, and themselves."""

import itertools
import math
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from llm_learn.model import Llama, LlamaConfig

SLUG = "measuring/evaluation"
pytestmark = pytest.mark.usefixtures("no_gradients")


def small(vocab_size: int = 50) -> Llama:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        context_length=64,
        d_model=32,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
    )
    model = Llama(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)  # probabilities that differ
    return model


@pytest.fixture
def tiny() -> Llama:
    return small()


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


@given(st.integers(0, 10**6))
def test_choices_from_a_cache_equal_choices_read_whole(definitions_of, seed):
    chapter, rng = definitions_of(SLUG), random.Random(seed)
    model = small()
    ids = lambda low, high: [rng.randrange(50) for _ in range(rng.randint(low, high))]  # noqa: E731
    prompts = [ids(1, 9) for _ in range(5)]
    choices = [[ids(1, 4) for _ in range(3)] for _ in prompts]
    with torch.no_grad():
        found = chapter.choice_log_probs(model, prompts, choices)
        for prompt, row, values in zip(prompts, choices, found, strict=True):
            for choice, value in zip(row, values, strict=True):
                logits = model(torch.tensor([prompt + choice]))[0, len(prompt) - 1 : -1]
                whole = (
                    logits.log_softmax(-1).gather(1, torch.tensor(choice)[:, None]).sum()
                )
                assert value == pytest.approx(whole.item(), abs=1e-4)


def test_many_prompts_and_many_choices_are_cut_into_batches(chapter, tiny):
    prompts = [[k % 50, (3 * k) % 50] for k in range(100)]
    choices = [[[1], [2, 3], [4, 5, 6]] for _ in prompts]
    found = chapter.choice_log_probs(tiny, prompts, choices)
    for k in (0, 47, 48, 99):
        alone = chapter.choice_log_probs(tiny, [prompts[k]], [choices[k]])
        assert np.allclose(found[k], alone[0], atol=1e-4)


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


# --- Ratings ---


def test_strengths_are_found_again(chapter):
    strengths = np.array([1.0, 0.2, -0.3, -0.9])
    odds = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
    wins = 1000 * odds * (1 - np.eye(4))
    found = chapter.bradley_terry(wins)
    assert np.allclose(found, strengths - strengths.mean(), atol=1e-6)


def test_elo_keeps_its_sum_and_depends_on_the_order(chapter):
    duels = [(0, 1)] * 6 + [(1, 0)] * 6
    one, other = chapter.elo(duels, 2), chapter.elo(duels[::-1], 2)
    assert one.sum() == pytest.approx(0) and one[0] < 0 < other[0]
    assert chapter.elo([(0, 1)], 2, k=16) == pytest.approx([8, -8])


def test_wins_are_counted_by_brute_force(chapter):
    marks = np.random.default_rng(0).integers(0, 2, (3, 2, 10)).astype(float)
    wins = chapter.wins_of(marks)
    for i, j in itertools.product(range(3), repeat=2):
        expected = ((marks[i] == 1) & (marks[j] == 0)).sum()
        assert wins[i, j] == expected


# --- Judges and leaks ---


@pytest.mark.parametrize("name", ["letters", "letters swapped", "letters, chat", "names"])
def test_a_judges_first_answer_is_the_one_that_stands_first(chapter, name):
    judge, encode = chapter.JUDGES[name]
    prompt, answers = judge("Lyon", "France", "Italy")
    assert prompt.index("France") < prompt.index("Italy") and len(answers) == 2
    if name == "names":
        assert answers == [" France", " Italy"]
    else:
        label = answers[0].strip()
        assert f"Answer {label}: France" in prompt
    ids, answer = encode(prompt, answers[0])
    assert chapter.TOKENIZER.decode(answer).strip() == answers[0].strip()
    assert "Lyon" in chapter.TOKENIZER.decode(ids)


def test_verdicts_are_in_both_orders(chapter, monkeypatch):
    seen = []

    def pretend(model, prompts, choices):
        seen.extend(chapter.TOKENIZER.decode(prompt) for prompt in prompts)
        return np.array([[k, 0.0] for k in range(len(prompts))])

    monkeypatch.setitem(chapter.verdicts.__globals__, "choice_log_probs", pretend)
    margins = chapter.verdicts(
        None, *chapter.JUDGES["names"], [("x", "P", "Q"), ("y", "R", "S")]
    )
    assert margins.tolist() == [[0, 1], [2, 3]]
    assert ["P or in Q" in seen[0], "Q or in P" in seen[1], "S or in R" in seen[3]] == [
        True
    ] * 3


def test_pairs_are_right_and_wrong(chapter):
    for pairs in (chapter.one_wrong, chapter.wrong_but_longer):
        for (city, right, wrong), q in zip(
            pairs(chapter.QUESTIONS), chapter.QUESTIONS, strict=True
        ):
            assert city == q.city and right == q.choices[q.right]
            assert wrong.removesuffix(chapter.MORE) in set(q.choices) - {right}
    longer = chapter.same_but_longer(chapter.QUESTIONS)
    assert all(b == a + chapter.MORE for _, a, b in longer)


def test_shared_words_see_words_only(chapter):
    assert chapter.shared_words("One, two three!", "zero one TWO three four", 3)
    assert not chapter.shared_words("one two three", "one two and three", 3)
    assert not chapter.shared_words("one two", "one two", 3)


def test_texts_are_learned_by_heart(chapter):
    model = small(chapter.TOKENIZER.vocab_size)
    texts = [chapter.solved(chapter.QUESTION, q) for q in chapter.QUESTIONS[:16]]
    student = chapter.crammed(model, texts, seed=0, epochs=12)
    losses = [
        [
            chapter.text_losses(m, chapter.TOKENIZER.encode(t), 64).sum().item()
            for t in texts
        ]
        for m in (model, student)
    ]
    assert np.mean(losses[1]) < np.mean(losses[0])
    assert not student.training
